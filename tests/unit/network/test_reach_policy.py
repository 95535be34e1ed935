"""Reachability's decisions: addresses, votes, whom to ask, a relay's books, what operators are told."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.reach import ReachState
from openlora_node.network.reach_addresses import (
    Circuit,
    Scope,
    claims,
    dialable,
    ip_of,
    parse_circuit,
    plain,
    port_of,
    scope_of,
    seen_from,
    tcp_address,
)
from openlora_node.network.reach_policy import (
    ENOUGH_VOTES,
    LONGEST_RETRY_S,
    RECHECK_S,
    Answer,
    Verdict,
    Vote,
    choose,
    decide,
    next_look_s,
    own_addresses,
)
from openlora_node.network.reach_report import fixes, report
from openlora_node.network.relay_table import RelayLimits, RelayTable
from openlora_node.protocol.structs import Reach

OUTSIDE, INSIDE = "45.10.0.7", "192.168.1.2"
HERE = tcp_address(OUTSIDE, 4001)
RELAY = "/ip4/45.10.0.9/tcp/4001/p2p/16Uiu2HAm1/p2p-circuit"


def vote(
    answer: Answer, *, observed: str = OUTSIDE, address: str = HERE, peer: str = "p", ip: str = "45.10.0.1"
) -> Vote:
    return Vote(peer, ip, observed, answer, address if answer is Answer.REACHED else "")


@pytest.mark.parametrize(
    ("address", "ip", "port"),
    [
        ("/ip4/192.0.2.1/tcp/4001", "192.0.2.1", 4001),
        ("/ip6/2001:DB8::1/tcp/1/p2p/16Uiu2HAm1", "2001:db8::1", 1),
        ("/ip6/::ffff:192.0.2.1/tcp/65535", "192.0.2.1", 65535),
        ("/dns/node.example.org/tcp/4001", None, 4001),
        ("/ip4/192.0.2.999/tcp/4001", None, 4001),
        ("/ip4/192.0.2.1/udp/4001", "192.0.2.1", 0),
        ("/ip4/192.0.2.1/tcp/65536", "192.0.2.1", 0),
        ("/ip4/192.0.2.1/tcp/x", "192.0.2.1", 0),
        ("ip4/192.0.2.1", None, 0),
        ("", None, 0),
    ],
)
def test_ip_and_port_of_an_address(address: str, ip: str | None, port: int) -> None:
    assert ip_of(address) == ip
    assert port_of(address) == port


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("10.0.0.1", Scope.PRIVATE),
        ("100.64.3.2", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("9.9.9.9", Scope.GLOBAL),
        ("2620:fe::fe", Scope.GLOBAL),
    ],
)
def test_how_far_an_ip_carries(ip: str, scope: Scope) -> None:
    assert scope_of(ip) is scope


def test_circuit_addresses_come_apart_and_together_again() -> None:
    circuit = Circuit("/ip4/45.10.0.9/tcp/4001", "16Uiu2HAm1", "16Uiu2HAm2")
    assert str(circuit) == f"{RELAY}/p2p/16Uiu2HAm2"
    assert parse_circuit(str(circuit)) == circuit
    assert parse_circuit(RELAY) == replace(circuit, target="")
    assert plain(str(circuit)) == RELAY
    assert plain("/ip4/45.10.0.9/tcp/4001/p2p/16Uiu2HAm1") == "/ip4/45.10.0.9/tcp/4001"


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/45.10.0.9/tcp/4001/p2p/16Uiu2HAm1",
        "/p2p-circuit",
        "/p2p/16Uiu2HAm1/p2p-circuit",
        f"{RELAY}/p2p/16Uiu2HAm2/p2p-circuit/p2p/16Uiu2HAm3",
        f"{RELAY}/16Uiu2HAm2",
        "/ip4/45.10.0.9/tcp/4001/p2p-circuit/p2p/16Uiu2HAm2",
        f"{RELAY}/p2p/{'m' * 300}",
    ],
)
def test_what_is_no_plain_circuit_is_none(address: str) -> None:
    assert parse_circuit(address) is None


def test_claims_put_the_outside_first_and_what_is_announced_alone() -> None:
    listen = ("/ip4/0.0.0.0/tcp/4001",)
    assert claims([OUTSIDE], listen, (), [INSIDE]) == (HERE, tcp_address(INSIDE, 4001))
    assert claims([OUTSIDE], ("/ip4/192.168.1.2/tcp/5001",), (), []) == (
        tcp_address(OUTSIDE, 5001),
        "/ip4/192.168.1.2/tcp/5001",
    )
    assert claims([OUTSIDE, "2620:fe::fe"], ("/ip6/::/tcp/4001",), (), []) == ("/ip6/2620:fe::fe/tcp/4001",)
    assert claims([OUTSIDE], listen, ("/dns/node.example.org/tcp/1",), [INSIDE]) == ("/dns/node.example.org/tcp/1",)
    assert len(claims([f"45.10.0.{n}" for n in range(50)], listen, (), [INSIDE])) == 8


def test_a_peer_is_asked_for_what_it_will_dial() -> None:
    claimed = (HERE, tcp_address(INSIDE, 4001), "/dns/node.example.org/tcp/443")
    assert seen_from(OUTSIDE, claimed) == (HERE, tcp_address(OUTSIDE, 443))
    assert seen_from("45.10.0.8", (HERE,)) == (HERE,)
    assert seen_from("", claimed) == claimed


ADDRESSES = st.one_of(
    st.builds(tcp_address, st.sampled_from([OUTSIDE, "45.10.0.8", "127.0.0.1", "2620:fe::fe"]), st.integers(0, 70_000)),
    st.sampled_from([f"/dns/{OUTSIDE}/tcp/1", f"/ip6/::ffff:{OUTSIDE}/tcp/9", f"{HERE}/p2p/x/p2p-circuit", "", "/ip4"]),
    st.text(max_size=40),
)


@given(st.lists(ADDRESSES, max_size=20))
def test_a_dial_back_goes_to_the_askers_own_ip_whatever_it_claims(claimed: list[str]) -> None:
    targets = dialable(claimed, OUTSIDE, 2)
    assert len(targets) <= 2
    for target in targets:
        _, kind, ip, transport, port = target.split("/")
        assert (kind, ip, transport) == ("ip4", OUTSIDE, "tcp")
        assert 1 <= int(port) <= 65_535


def test_half_of_the_votes_make_a_host_direct() -> None:
    reached, failed = vote(Answer.REACHED), vote(Answer.FAILED)
    assert decide([]).is_direct is None
    assert decide([vote(Answer.REFUSED)] * 9).is_direct is None
    assert decide([reached] * 3 + [failed] * 3).is_direct
    assert decide([reached] * 2 + [failed] * 3).is_direct is False
    assert decide([reached] + [vote(Answer.REFUSED)] * 7) == Verdict(True, 1, 1, (HERE,))
    assert not decide([reached] * (ENOUGH_VOTES - 1)).is_settled
    assert decide([failed] * ENOUGH_VOTES).is_settled
    assert decide([failed] * ENOUGH_VOTES).addresses == ()


def test_neighbours_in_the_local_network_have_no_say_once_anybody_else_has() -> None:
    neighbour = vote(Answer.REACHED, observed=INSIDE, address=tcp_address(INSIDE, 4001))
    assert decide([neighbour] * 4).is_direct
    assert decide([neighbour] * 4 + [vote(Answer.FAILED)]) == Verdict(False, 0, 1)


def test_addresses_come_in_the_order_of_how_many_confirmed_them() -> None:
    other = tcp_address(OUTSIDE, 5001)
    votes = [vote(Answer.REACHED, address=other), vote(Answer.REACHED), vote(Answer.REACHED)]
    assert decide(votes).addresses == (HERE, other)


@given(st.lists(st.tuples(st.uuids().map(str), st.sampled_from("abc")), max_size=20, unique=True), st.integers(0, 9))
def test_those_asked_are_of_as_many_ips_as_there_are(candidates: list[tuple[str, str]], seed: int) -> None:
    chosen = choose(candidates, 5, random.Random(seed))
    assert len(chosen) == min(5, len(candidates)) == len(set(chosen))
    ips = Counter(ip for peer, ip in candidates if peer in chosen)
    assert len(ips) == min(5, len({ip for _, ip in candidates}))


def test_the_next_look_is_soon_until_enough_have_spoken() -> None:
    settled, few = decide([vote(Answer.REACHED)] * 5), decide([vote(Answer.REACHED)])
    assert next_look_s(settled, 5.0) == RECHECK_S
    pause, pauses = 0.0, []
    for _ in range(6):
        pause = next_look_s(few, pause)
        pauses.append(pause)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, LONGEST_RETRY_S]


def test_relays_are_told_only_while_nothing_is_direct_and_a_wrong_announcement_not_at_all() -> None:
    announced = ("/dns/node.example.org/tcp/4001",)
    direct, closed, unknown = Verdict(True, 5, 5, (HERE,)), Verdict(False, 0, 5), Verdict(None)
    assert own_addresses(direct, (), (RELAY,)) == (HERE,)
    assert own_addresses(direct, announced, (RELAY,)) == announced
    assert own_addresses(closed, announced, (RELAY,)) == (RELAY,)
    assert own_addresses(unknown, announced, ()) == announced
    assert own_addresses(unknown, (), ()) == ()


LIMITS = RelayLimits(reservations=3, reservations_per_ip=2, reservation_s=100, circuits=4, circuits_per_peer=2)


def test_a_relay_gives_no_more_slots_than_it_has_and_few_to_one_ip() -> None:
    table = RelayTable(LIMITS)
    assert table.reserve("a", "1", 0) == 100
    assert table.reserve("b", "1", 0) == 100
    assert table.reserve("c", "1", 0) is None
    assert table.reserve("d", "2", 0) == 100
    assert table.reserve("e", "3", 0) is None
    assert table.reserve("a", "1", 50) == 150  # a renewal needs no room
    table.release("b")
    assert table.reserve("c", "1", 60) == 160
    assert not table.holds("d", 100)
    assert table.holds("a", 149)
    assert table.reserve("e", "3", 101) == 201  # d's has run out


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("xyz")), max_size=40))
def test_circuits_stay_within_the_limits_and_all_of_them_end(program: list[tuple[bool, str, str]]) -> None:
    table, running = RelayTable(LIMITS), Counter[tuple[str, str]]()
    for opens, source, target in program:
        if opens and table.open(source, target):
            running[source, target] += 1
        elif not opens and running[source, target]:
            table.close(source, target)
            running[source, target] -= 1
        assert table.circuits == running.total() <= LIMITS.circuits
        for side in (0, 1):
            sums = Counter[str]()
            for pair, count in running.items():
                sums[pair[side]] += count
            assert max(sums.values(), default=0) <= LIMITS.circuits_per_peer
    for source, target in list(running.elements()):
        table.close(source, target)
    assert table.circuits == 0


CLOSED = ReachState(
    reach=Reach.RELAYED,
    verdict=Verdict(False, 0, 5),
    votes=(vote(Answer.FAILED),) * 5,
    observed=(OUTSIDE,),
    interfaces=(INSIDE,),
    listen=("/ip4/0.0.0.0/tcp/4001",),
    announce=(),
    claimed=(HERE,),
    told=(RELAY,),
    relays=("16Uiu2HAm1",),
    relay="use",
    serving=0,
    punched=0,
    unpunched=0,
    checked_at=1,
)


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({}, f"forward TCP port 4001 of the router at {OUTSIDE} to {INSIDE}:4001", "until then others reach this"),
        (
            {"interfaces": (OUTSIDE,)},
            "open TCP port 4001 in this machine's firewall: nft add rule",
            "until then others",
        ),
        ({"observed": ("100.64.1.1",)}, "100.64.1.1 is a carrier's shared address", "until then others"),
        ({"announce": ("/ip4/45.10.0.7/tcp/9",)}, "network.announce names /ip4/45.10.0.7/tcp/9 and nobody", "until"),
        ({"listen": ("/ip4/127.0.0.1/tcp/4001",)}, "network.listen names only this machine", "until then others"),
        ({"reach": Reach.UNKNOWN, "relays": (), "relay": "off"}, "forward TCP port 4001", "set network.relay: use"),
        ({"reach": Reach.UNKNOWN, "relays": ()}, "forward TCP port 4001", "until then it needs a relay"),
        ({"verdict": Verdict(None), "checked_at": 0}, "no peer could be asked yet", "no peer could be asked yet"),
        (
            {"verdict": Verdict(None), "announce": ("/ip4/45.10.0.8/tcp/9",)},
            f"network.announce names /ip4/45.10.0.8/tcp/9, peers see this node at {OUTSIDE}",
            "network.announce names",
        ),
        ({"verdict": Verdict(None)}, "the peers asked would not dial back", "the peers asked would not"),
    ],
)
def test_operators_are_told_the_exact_fix(changes: dict[str, object], first: str, last: str) -> None:
    told = fixes(replace(CLOSED, **changes))  # type: ignore[arg-type]
    assert told[0].startswith(first)
    assert told[-1].startswith(last)


def test_a_direct_node_is_told_to_do_nothing() -> None:
    direct = replace(CLOSED, reach=Reach.DIRECT, verdict=Verdict(True, 5, 5, (HERE,)), told=(HERE,))
    assert fixes(direct) == ()
    shown = report(direct, "16Uiu2HAm7")
    assert shown["reach"] == "direct"
    assert shown["dial_backs"]["reached"] == shown["dial_backs"]["counted"] == shown["dial_backs"]["wanted"] == 5
    assert shown["dial_backs"]["peers"][0]["answer"] == "failed"
