"""Lanes: requests spread over engines of one base, adapters stay where they are, ends and failures are counted off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from openlora_node.daemon.choosing import SPILL
from openlora_node.daemon.lanes import MAX_KNOWN, PENDING_S, Lane, Lanes
from openlora_node.engineclient import Chunk, EngineInfo, EngineLoad, Mix
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pipeline import WEIGHT_ONE, Adapter, Pipeline

BASE, OTHER = b"\xb0" * 32, b"\xa0" * 32
ALONE = Pipeline.of(BASE)
ADAPTED = Pipeline.of(BASE, Adapter(id=OTHER, terms_version=0, weight=WEIGHT_ONE))


class Engine:
    """Serves nothing, but takes the time that it is told."""

    refuses = False

    def __init__(self) -> None:
        self.told: list[bytes] = []

    async def info(self) -> EngineInfo:
        return EngineInfo("m", "", 64, "1", bytes(32))

    async def count(self, body: Any, mix: Mix) -> int:
        return 1

    @asynccontextmanager
    async def generate(self, body: Any, mix: Mix, **_: Any) -> AsyncIterator[AsyncIterator[Chunk]]:
        if self.refuses:
            raise OpenLoraError(ErrorCode.BUSY)

        async def nothing() -> AsyncIterator[Chunk]:
            return
            yield

        yield nothing()

    async def ensure(self, artifact: bytes, folder: Path) -> None:
        self.told.append(artifact)

    async def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0.0)


class Two:
    """Two engines of one base on a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now, self.up, self.loads = 0.0, [True, True], list[float]()
        self.engines = [Engine(), Engine()]
        self.lanes = [
            Lane(self.engines[place], lambda place=place: self.up[place], self.loads.append, lambda: self.now)
            for place in (0, 1)
        ]
        self.choose = Lanes(self.lanes)

    def place(self, pipeline: Pipeline = ALONE) -> int:
        return self.lanes.index(self.choose(pipeline))


def run(lane: Lane) -> Any:
    return lane.generate(None, Mix(), max_tokens=1, tenant="t", request_id="r")  # type: ignore[arg-type]


async def test_a_burst_is_spread_before_any_of_it_runs() -> None:
    two = Two()
    assert sorted(two.place() for _ in range(8)) == [0] * 4 + [1] * 4


async def test_what_runs_counts_until_it_ends_or_fails() -> None:
    two = Two()
    lane = two.choose(ALONE)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(run(lane))
        assert (lane.running, lane.candidate([]).busy) == (1, 1), "it is not counted twice"
        two.now += 10 * PENDING_S
        assert lane.candidate([]).busy == 1
    assert (lane.running, lane.candidate([]).busy) == (0, 0)
    Engine.refuses = True
    try:
        with pytest.raises(OpenLoraError):
            async with run(two.choose(ALONE)):
                pass
    finally:
        Engine.refuses = False
    assert [lane.candidate([]).busy for lane in two.lanes] == [0, 0]
    task = asyncio.create_task(_hold(two.lanes[0]))
    await asyncio.sleep(0)
    assert two.lanes[0].running == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert two.lanes[0].running == 0


async def _hold(lane: Lane) -> None:
    async with run(lane):
        await asyncio.Event().wait()


async def test_who_is_refused_on_the_way_is_forgotten_after_a_while() -> None:
    two = Two()
    for _ in range(4):
        two.place()
    assert [lane.candidate([]).busy for lane in two.lanes] == [2, 2]
    two.now += PENDING_S + 0.1
    assert [lane.candidate([]).busy for lane in two.lanes] == [0, 0]


async def test_an_adapter_stays_where_it_is_until_that_engine_is_far_busier_or_gone() -> None:
    two = Two()
    await two.lanes[1].ensure(OTHER, Path("/a"))
    assert [two.place(ADAPTED) for _ in range(SPILL)] == [1] * SPILL
    assert two.place(ADAPTED) == 0, "eight ahead: the other learns it"
    two.up[1] = False
    assert two.place(ADAPTED) == 0
    two.up[1] = True
    two.now += PENDING_S + 1
    two.lanes[1].forget()
    two.lanes[0].forget()
    await two.lanes[0].ensure(OTHER, Path("/a"))
    assert two.place(ADAPTED) == 0, "a restarted engine has it no more"
    two.lanes[0].drop(OTHER)
    assert two.lanes[0].candidate([OTHER]).knows == 0


async def test_each_adapter_that_an_engine_learns_is_timed_once() -> None:
    two = Two()
    lane = two.lanes[0]
    await lane.ensure(OTHER, Path("/a"))
    await lane.ensure(OTHER, Path("/a"))
    assert two.loads == [0.0]
    assert two.engines[0].told == [OTHER, OTHER], "the client decides what needs a call"
    for number in range(MAX_KNOWN):
        await lane.ensure(number.to_bytes(32, "big"), Path("/a"))
    assert lane.candidate([OTHER]).knows == 0, "bounded: the least recently used is forgotten"
    assert lane.candidate([(MAX_KNOWN - 1).to_bytes(32, "big")]).knows == 1
