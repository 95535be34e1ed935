"""Picking nodes by what is seen and experienced, without a network."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest

from openlora_node.network.adverts import Advert
from openlora_node.network.candidates import Candidates, Seen
from openlora_node.network.filters import AdapterFilter, filter_digest
from openlora_node.network.identity import Peer
from openlora_node.network.rendezvous import adapter_key, node_key, order
from openlora_node.network.routing import Ask
from openlora_node.network.standing import LACK_S, Outcome, Standing, outcome_of
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from support.network_adverts import BASE, NOW, adapter, signed
from support.network_peers import secret

NODES = [adapter(1000 + index) for index in range(40)]
ASK = Ask(adapters=frozenset({adapter(1)}), max_tokens=50)
ORDER = order(adapter_key(BASE, ASK.adapters), [(node_key(node), node) for node in NODES])


@dataclass
class FakeNetwork:
    """Nodes with adverts and filters; fetching can be made to fail or hang."""

    nodes: list[bytes]
    holds: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    fetched: list[bytes] = field(default_factory=list)
    gone: bool = False
    hangs: bool = False
    changes: dict[bytes, dict[str, object]] = field(default_factory=dict)

    async def seen(self, base: bytes) -> tuple[Seen, ...]:
        if self.gone:
            raise OpenLoraError(ErrorCode.INTERNAL)
        return tuple(Seen(self.advert(node), 0.01) for node in self.nodes) if base == BASE else ()

    def advert(self, node: bytes) -> Advert:
        adapters = self.holds.get(node, frozenset())
        digest = filter_digest(AdapterFilter.build(adapters).pack()) if adapters else bytes(32)
        value = signed(secret(1), node, adapters=adapters, **self.changes.get(node, {})).value
        return Advert(msgspec.structs.replace(value, filter_digest=digest), b"", node.hex())

    async def connect_node(self, node: bytes) -> Peer:
        if self.hangs:
            await asyncio.Event().wait()
        return Peer(node.hex(), None, None)

    async def filter_of(self, node: bytes) -> AdapterFilter | None:
        self.fetched.append(node)
        adapters = self.holds.get(node)
        if adapters is None:
            raise OpenLoraError(ErrorCode.NODE_LOST)
        return AdapterFilter.build(adapters)


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


def candidates(network: FakeNetwork, clock: Clock | None = None, **options: object) -> Candidates:
    dice = random.Random(7)
    return Candidates(network, clock=clock or Clock(), dice=dice.randrange, **options)  # type: ignore[arg-type]


async def test_an_adapter_goes_to_the_first_two_of_its_order() -> None:
    picker = candidates(FakeNetwork(NODES))
    picks: Counter[bytes | None] = Counter()
    for _ in range(40):
        node = await picker.pick(BASE, ASK)
        assert node is not None
        picks[node] += 1
        picker.report(node, Outcome.COMPLETED)
    assert set(picks) <= set(ORDER[:2])
    assert await picker.pick(b"\x01" * 32, ASK) is None, "nobody serves another base"
    await picker.close()


async def test_requests_without_adapters_spread_over_all_nodes() -> None:
    picker = candidates(FakeNetwork(NODES))
    picks: Counter[bytes] = Counter()
    for _ in range(400):
        node = await picker.pick(BASE, Ask(max_tokens=5))
        assert node is not None
        picks[node] += 1
    assert len(picks) == len(NODES)
    assert max(picks.values()) < 30, "what is in flight counts"
    await picker.close()


async def test_a_holder_is_preferred_to_a_home_that_would_have_to_load() -> None:
    holder = ORDER[20]
    picker = candidates(FakeNetwork(NODES, {holder: ASK.adapters}))
    await picker.live(BASE)  # a small network's filters are fetched ahead
    while holder not in picker._filters:
        await asyncio.sleep(0)
    assert await picker.pick(BASE, ASK) == holder
    await picker.close()


async def test_busy_widens_the_spread_and_its_hints_are_followed() -> None:
    picker = candidates(FakeNetwork(NODES))
    tried: list[bytes] = []
    for _ in range(2):
        node = await picker.pick(BASE, ASK, tried)
        assert node is not None
        assert node in {*ORDER[:4], ORDER[30]}
        picker.report(node, Outcome.BUSY, others=[ORDER[30]])
        tried.append(node)
    seen = {await picker.pick(BASE, ASK, tried) for _ in range(60)}
    assert ORDER[30] in {*seen, *tried}
    assert len(seen) >= 3
    assert seen - {ORDER[30]} <= set(ORDER[:16])
    assert not seen & set(tried)
    await picker.close()


async def test_a_node_that_lies_about_its_adapters_loses_the_adapter_at_once_and_its_standing_soon() -> None:
    liar, honest = ORDER[0], ORDER[25]
    network = FakeNetwork(NODES, {liar: frozenset({adapter(1), adapter(2)}), honest: frozenset({adapter(1)})})
    clock = Clock()
    picker = candidates(network, clock)
    await picker.live(BASE)
    while len(picker._filters) < len(NODES):
        await asyncio.sleep(0)
    first = await picker.pick(BASE, ASK)
    assert first == liar
    picker.report(liar, outcome_of(OpenLoraError(ErrorCode.ADAPTER_NOT_FOUND)))
    assert picker.standing.success(liar, clock()) < 0.5
    for _ in range(30):
        node = await picker.pick(BASE, ASK)
        assert node == honest
        picker.report(node, Outcome.COMPLETED)
    assert node is not None
    other = Ask(adapters=frozenset({adapter(2)}))
    assert await picker.pick(BASE, other) == liar, "one in 256 such answers is the filter's error"
    picker.report(liar, Outcome.NO_ADAPTER)
    assert picker.standing.success(liar, clock()) < 0.3
    assert await picker.pick(BASE, other) != liar
    others = [node for node in NODES if node != liar]
    assert await picker.pick(BASE, other, others) is None, "it said itself that it does not find the adapter"
    clock.now += LACK_S + 1
    assert await picker.pick(BASE, other) != liar
    assert await picker.pick(BASE, other, others) == liar, "better than nobody"
    clock.now += 4 * 600
    assert picker.standing.success(liar, clock()) > 0.6
    await picker.close()


async def test_a_node_that_promised_nothing_loses_less() -> None:
    clock = Clock()
    picker = candidates(FakeNetwork(NODES), clock)
    node = await picker.pick(BASE, ASK)
    assert node is not None
    picker.report(node, Outcome.NO_ADAPTER)
    assert picker.standing.success(node, clock()) == pytest.approx(2 / 2.5)
    assert picker.standing.lacks(node, adapter(1), clock())
    assert not picker.standing.lacks(node, adapter(1), clock() + LACK_S + 1)
    await picker.close()


async def test_price_context_and_permission_come_first() -> None:
    cheap, small, barred = ORDER[0], ORDER[1], ORDER[2]
    network = FakeNetwork(ORDER[:4])
    network.changes = {
        cheap: {"input_rate": 1, "output_rate": 1},
        small: {"max_context": 10},
    }
    picker = candidates(network, allows=lambda node: node != barred)
    dear = Ask(adapters=ASK.adapters, max_tokens=100, max_fee=10)
    assert {await picker.pick(BASE, dear) for _ in range(10)} == {cheap}
    assert await picker.pick(BASE, dear, [cheap]) is None
    wide = Ask(max_tokens=100)
    assert {await picker.pick(BASE, wide) for _ in range(30)} == {cheap, ORDER[3]}
    await picker.close()


async def test_a_slow_filter_holds_a_pick_up_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openlora_node.network.candidates.FILTER_WAIT_S", 0.01)
    network = FakeNetwork(NODES, dict.fromkeys(NODES, ASK.adapters), hangs=True)
    picker = candidates(network)
    async with asyncio.timeout(5):
        assert await picker.pick(BASE, ASK) in ORDER[:2]
    await picker.close()
    assert not picker._fetching


async def test_a_restarting_network_is_no_reason_to_forget_the_nodes() -> None:
    clock, network = Clock(), FakeNetwork(NODES)
    picker = candidates(network, clock)
    network.gone = True
    with pytest.raises(OpenLoraError):
        await picker.pick(BASE, ASK)
    network.gone = False
    assert await picker.pick(BASE, ASK)
    network.gone = True
    clock.now += 60
    assert await picker.pick(BASE, ASK)
    await picker.close()


async def test_alternatives_follow_the_full_node_in_the_order_and_leave_out_the_full() -> None:
    picker = candidates(FakeNetwork(NODES), own=ORDER[3])
    assert picker.alternatives(BASE, ASK.adapters) == ()
    await picker.live(BASE)
    assert picker.alternatives(BASE, ASK.adapters) == tuple(ORDER[4:12])
    picker.report(ORDER[5], Outcome.BUSY)
    assert picker.alternatives(BASE, ASK.adapters, 3) == (ORDER[4], ORDER[6], ORDER[7])
    assert await picker.pick(BASE, ASK, [node for node in NODES if node != ORDER[3]]) is None, "never this node itself"
    await picker.close()


def test_what_an_error_says_of_the_node() -> None:
    assert outcome_of(ProtocolError(ErrorCode.MALFORMED)) is Outcome.LIED
    assert outcome_of(OpenLoraError(ErrorCode.MALFORMED)) is Outcome.REFUSED
    assert outcome_of(OpenLoraError(ErrorCode.ESCROW_TOO_LOW)) is Outcome.REFUSED
    assert outcome_of(OpenLoraError(ErrorCode.NODE_LOST)) is Outcome.UNREACHABLE
    assert outcome_of(OpenLoraError(ErrorCode.DRAINING)) is Outcome.BUSY


def test_standing_is_bounded_fades_and_counts_what_is_in_flight() -> None:
    standing = Standing(max_nodes=3)
    for index in range(10):
        standing.picked(adapter(index), float(index))
    assert len(standing) == 3
    node = adapter(9)
    standing.picked(node, 9.0)
    assert standing.in_flight(node, 10.0) == 2
    standing.report(node, Outcome.FAILED, 10.0)
    assert standing.in_flight(node, 10.0) == 1
    assert standing.in_flight(node, 5_000.0) == 0
    assert standing.success(node, 10.0) == pytest.approx(2 / 3)
    assert 0.9 < standing.success(node, 5_000.0) < 1.0
    standing.report(node, Outcome.BUSY, 10.0, retry_after_s=5)
    assert standing.is_busy(node, 14.0)
    assert not standing.is_busy(node, 16.0)
    standing.report(node, Outcome.BUSY, 10.0, retry_after_s=10**9)
    assert not standing.is_busy(node, 41.0)


async def test_a_funded_node_whose_charge_is_paid_is_preferred() -> None:
    pair, pipeline = NODES[:2], b"\x07" * 32
    funded: set[bytes] = set(pair)
    due = {(node, pipeline): 9 for node in pair}
    picker = candidates(
        FakeNetwork(pair),
        allows=funded.__contains__,
        charge=lambda node, ask: due.get((node, ask.pipeline), 0),
    )
    ask = Ask(max_tokens=5, pipeline=pipeline)
    for paid in pair:
        due = {(node, pipeline): 0 if node == paid else 9 for node in pair}
        for _ in range(10):
            assert await picker.pick(BASE, ask) == paid
            picker.report(paid, Outcome.COMPLETED, base=BASE, ask=ask)
    funded.remove(pair[1])
    assert await picker.pick(BASE, ask) == pair[0], "no funds, no request, however cheap"
    assert await picker.pick(BASE, ask, {pair[0]}) is None
    await picker.close()
