"""The outbox under random programs of events: whatever happens, every intent executes exactly once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from openlora_chain.errors import ChainError
from openlora_chain.outbox import Outbox
from openlora_chain.policy import Rules
from openlora_chain.reverts import ErrorTable
from openlora_chain.store import IntentState, NewIntent, Order
from openlora_chain.transaction import UnsignedTransaction
from support.simchain import BASE_FEE, CHAIN_ID, HOT, TARGET, MemoryOutbox, SimChain

CONFIRMATIONS = 6
RULES = Rules(confirmations=CONFIRMATIONS, max_in_flight=4)


@dataclass
class World:
    """A chain, a store that survives crashes, and the outbox that a crash replaces."""

    chain: SimChain = field(default_factory=SimChain)
    store: MemoryOutbox = field(default_factory=MemoryOutbox)
    now: int = 1_000
    submitted: list[NewIntent] = field(default_factory=list)
    foreign: int = 0
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self.crash()

    def crash(self) -> None:
        self.outbox = Outbox(
            self.chain, self.store, HOT, CHAIN_ID, ErrorTable(()).explain, RULES, clock=lambda: self.now
        )

    async def step(self) -> None:
        try:
            await self.outbox.step()
        except ChainError:
            assert self.chain.unreachable

    async def submit(self) -> None:
        number = len(self.submitted)
        new = NewIntent("pay", bytes((number,)), CHAIN_ID, HOT.address, TARGET, b"%04d" % number, value=number % 2)
        self.submitted.append(new)
        await self.outbox.submit(new)

    async def use_key_elsewhere(self) -> None:
        """Another program spends the next nonce, or one that is in flight."""
        self.foreign += 1
        nonce = await SimChain.nonce(self.chain, HOT.address) if not self.chain.unreachable else 0
        fee = BASE_FEE * 50
        other = UnsignedTransaction(CHAIN_ID, nonce, TARGET, 0, b"foreign%d" % self.foreign, 50_000, fee, fee)
        raw = (await HOT.sign_transaction(other)).raw
        if not self.chain.unreachable:
            try:
                await self.chain.send_raw(raw)
            except ChainError:
                return

    async def order(self, index: int, order: Order) -> None:
        if self.submitted:
            try:
                await self.outbox.order(self.submitted[index % len(self.submitted)].id, order)
            except ChainError:
                return


# Programs alternate work with trouble: uniformly random events would seldom get an intent mined and then disturb it.
WORK = st.sampled_from([("submit",), ("round",), ("round",), ("step",), ("mine", 1), ("mine", None)])
TROUBLE = st.one_of(
    st.tuples(st.just("reorg"), st.integers(1, CONFIRMATIONS - 1), st.sampled_from(["lost", "returned", "oldest"])),
    st.tuples(st.just("order"), st.integers(0, 9), st.sampled_from([Order.BUMP, Order.CANCEL])),
    st.tuples(st.just("tick"), st.sampled_from([1, 20, 70])),
    st.tuples(st.just("base_fee"), st.sampled_from([BASE_FEE // 2, BASE_FEE, BASE_FEE * 3])),
    st.sampled_from([("drop",), ("foreign",), ("crash",), ("cut",), ("mine", 0)]),
)
PHASE = st.tuples(st.lists(WORK, min_size=1, max_size=5), TROUBLE).map(lambda phase: [*phase[0], phase[1]])
PROGRAMS = st.lists(PHASE, min_size=1, max_size=15).map(lambda phases: [event for phase in phases for event in phase])


async def play(world: World, program: list[tuple[object, ...]]) -> None:
    for name, *arguments in program:
        match name:
            case "submit":
                await world.submit()
            case "step":
                await world.step()
            case "round":
                await world.step()
                world.chain.mine()
                await world.step()
            case "mine":
                world.chain.mine(*arguments)  # type: ignore[arg-type]
            case "reorg":
                world.chain.reorg(*arguments)  # type: ignore[arg-type]
            case "drop":
                world.chain.drop_pool()
            case "foreign":
                await world.use_key_elsewhere()
            case "crash":
                world.crash()
            case "tick":
                world.now += arguments[0]  # type: ignore[operator]
            case "order":
                await world.order(*arguments)  # type: ignore[arg-type]
            case "cut":
                world.chain.unreachable = not world.chain.unreachable
            case "base_fee":
                world.chain.base_fee = arguments[0]  # type: ignore[assignment]


async def settle(world: World) -> None:
    """Calm: the node answers, blocks come. Everything must close in bounded time."""
    world.chain.unreachable = False
    for _ in range(400):
        world.now += 30
        await world.outbox.step()
        world.chain.mine()
        if not await world.store.open_intents(HOT.address, CHAIN_ID):
            return
    raise AssertionError(list(await world.store.open_intents(HOT.address, CHAIN_ID)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROGRAMS)
@example([*4 * [("submit",)], ("foreign",), ("mine", 1), ("round",), ("reorg", 2, "lost")])  # all in flight wait
def test_every_intent_executes_exactly_once(program: list[tuple[object, ...]]) -> None:
    async def run() -> None:
        world = World()
        await play(world, program)
        await settle(world)
        executed = world.chain.executions()
        for new in world.submitted:
            intent = await world.store.find(new.id)
            assert intent is not None
            expected = {IntentState.FINAL: 1, IntentState.CANCELLED: 0}[intent.state]
            assert executed[new.data] == expected, intent
        nonces = [tx.nonce for block in world.chain.blocks for tx in block.txs if tx.sender == HOT.address]
        assert nonces == list(range(len(nonces)))

    asyncio.run(run())


def test_a_refused_intent_does_not_keep_a_gap_open() -> None:
    """The foreign transaction below ours is lost, and the one intent that could take its nonce reverts for now."""

    async def run() -> None:
        world = World()
        await world.submit()
        await world.use_key_elsewhere()
        world.chain.mine(1)
        await world.step()
        world.chain.refuses[b"0001"] = b""
        await world.submit()
        await world.step()
        world.chain.reorg(2, "lost")
        for _ in range(20):
            world.now += 30
            await world.step()
            world.chain.mine()
        first = await world.store.find(world.submitted[0].id)
        assert first is not None
        assert first.state is IntentState.FINAL

    asyncio.run(run())
