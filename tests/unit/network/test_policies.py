"""Buckets, scores and the half-open table against plain models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network import patches
from openlora_node.network.buckets import Allowance, Buckets
from openlora_node.network.halfopen import HalfOpen
from openlora_node.network.identity import identify, parse_peer_id, peer_address, peer_id_of
from openlora_node.network.scores import DENY_S, HALF_LIFE_S, Fault, Scores
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from support.network_peers import Registry, secret


@given(st.lists(st.floats(0, 3), max_size=60))
def test_a_bucket_never_gives_more_than_burst_and_rate(gaps: list[float]) -> None:
    buckets: Buckets[str] = Buckets(Allowance(rate=2.0, burst=5.0))
    now, taken = 100.0, 0
    for gap in gaps:
        now += gap
        taken += buckets.take("a", now)
        assert taken <= 5.0 + 2.0 * (now - 100.0) + 1e-6


def test_buckets_are_bounded_and_the_idlest_is_forgotten() -> None:
    buckets: Buckets[int] = Buckets(Allowance(1.0, 1.0), max_keys=3)
    for key in (1, 2, 1, 3, 4):
        buckets.take(key, 0.0)
    assert len(buckets) == 3
    assert buckets.level(2, 0.0) == 1.0
    assert buckets.level(1, 0.0) == 0.0


def test_faults_decay_and_add_up_to_a_closed_door() -> None:
    scores = Scores()
    assert not scores.charge("p", Fault.FORGED, 0.0)
    assert scores.points("p", HALF_LIFE_S) == pytest.approx(25.0)
    assert not scores.charge("p", Fault.FORGED, HALF_LIFE_S)
    assert scores.charge("p", Fault.FORGED, HALF_LIFE_S)
    assert scores.is_denied("p", HALF_LIFE_S + DENY_S - 1)
    assert not scores.is_denied("p", HALF_LIFE_S + DENY_S + 1)
    assert not scores.is_denied("q", 0.0)


def test_scores_are_bounded() -> None:
    scores = Scores(max_peers=4)
    for index in range(50):
        scores.charge(str(index), Fault.STALE, 0.0)
        scores.deny(str(index), 0.0)
    assert len(scores._points) == len(scores._denied) == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from("abc")), max_size=200))
def test_half_open_connections_stay_within_both_bounds(steps: list[tuple[bool, int, str]]) -> None:
    table: HalfOpen[tuple[int, str]] = HalfOpen(per_address=4, in_all=8)
    inside: list[tuple[int, str]] = []
    for enters, number, address in steps:
        key = (number, address)
        if enters and key not in inside:
            evicted = table.enter(key, address)
            inside.append(key)
            if evicted is not None:
                same = [k for k in inside[:-1] if k[1] == address]
                assert evicted == (same[0] if len(same) == 4 else inside[0])
                inside.remove(evicted)
        elif not enters and key in inside:
            table.leave(key)
            inside.remove(key)
        assert len(table) == len(inside) <= 8
        assert all(sum(k[1] == a for k in inside) <= 4 for a in "abc")


def test_a_peer_id_yields_the_address_of_its_key() -> None:
    for index in range(20):
        peer = parse_peer_id(peer_id_of(secret(index)))
        assert peer_address(peer) == LocalSigner(secret(index)).address


def test_a_peer_is_the_node_that_the_registry_says() -> None:
    registry = Registry()
    node = registry.register(secret(1))
    assert identify(parse_peer_id(peer_id_of(secret(1))), registry).node == node
    assert identify(parse_peer_id(peer_id_of(secret(2))), registry).node is None
    ed25519 = parse_peer_id("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")
    assert identify(ed25519, registry).address is None


@pytest.mark.parametrize("text", ["", "0OIl", "16Uiu2HA", "Q" * 500, "16Uiu2HAm\n", "é"])
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError) as error:
        parse_peer_id(text)
    assert error.value.code is ErrorCode.BAD_ID


def test_the_self_test_accepts_the_pinned_libp2p_and_names_the_version_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patches.self_test()
    with pytest.raises(OpenLoraError, match=r"pip install libp2p==0\.8\.1"):
        patches.self_test("0.9.0")
    for name, (owner, _) in patches.EXPECTED.items():
        with monkeypatch.context() as patch:
            patch.delattr(owner, name.partition(".")[2])
            with pytest.raises(OpenLoraError, match=name):
                patches.self_test()
    for module, name in patches.CONSTANTS:
        with monkeypatch.context() as patch:
            patch.delattr(module, name)
            with pytest.raises(OpenLoraError, match=name):
                patches.self_test()
