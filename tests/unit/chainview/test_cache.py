"""The cache of chain reads: fresh, stale, dropped while being read, one read a key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from openlora_node.chainview.cache import Cache
from openlora_node.protocol.errors import ErrorCode, OpenLoraError


@dataclass
class Source:
    """What is behind the cache."""

    value: int = 1
    now: float = 0.0
    reads: int = 0
    down: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def clock(self) -> float:
        return self.now

    async def read(self, key: str) -> int:
        self.reads += 1
        value = self.value
        await self.gate.wait()
        if self.down:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED)
        return value


def cache_of(source: Source, size: int = 2) -> Cache[str, int]:
    return Cache("test", source.read, source.clock, size=size, fresh_s=10, stale_s=100)


async def test_fresh_answers_are_not_read_again_and_old_ones_are() -> None:
    source = Source()
    cache = cache_of(source)
    assert [await cache.get("a") for _ in range(3)] == [1, 1, 1]
    assert source.reads == 1
    source.value, source.now = 2, 10
    assert await cache.get("a") == 2


async def test_while_reading_fails_an_answer_serves_until_it_is_stale() -> None:
    source = Source()
    cache = cache_of(source)
    await cache.get("a")
    source.down, source.now = True, 99
    assert await cache.get("a") == 1
    assert source.reads == 2
    assert await cache.get("a", offline=True) == 1
    assert source.reads == 2
    source.now = 100
    with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
        await cache.get("a", offline=True)
    with pytest.raises(OpenLoraError, match="CHAIN_FAILED"):
        await cache.get("b")


async def test_another_mark_makes_an_answer_old() -> None:
    source = Source()
    cache = cache_of(source)
    await cache.get("a", "block 1")
    source.value = 2
    assert await cache.get("a", "block 1") == 1
    assert await cache.get("a", "block 2") == 2


async def test_what_was_dropped_while_being_read_is_not_kept() -> None:
    source = Source()
    cache = cache_of(source)
    source.gate.clear()
    waiting = asyncio.create_task(cache.get("a"))
    while not source.reads:
        await asyncio.sleep(0)
    cache.drop("a")
    source.value = 2
    source.gate.set()
    assert await waiting == 1
    assert await cache.get("a") == 2
    source.down = True
    cache.drop_where(lambda key: key == "a")
    with pytest.raises(OpenLoraError):
        await cache.get("a")


async def test_many_who_ask_at_once_share_one_read_and_one_may_leave() -> None:
    source = Source()
    cache = cache_of(source)
    source.gate.clear()
    tasks = [asyncio.create_task(cache.get("a")) for _ in range(5)]
    while not source.reads:
        await asyncio.sleep(0)
    tasks[0].cancel()
    source.gate.set()
    assert await asyncio.gather(*tasks[1:]) == [1] * 4
    assert source.reads == 1


async def test_it_holds_no_more_than_its_size() -> None:
    source = Source()
    cache = cache_of(source)
    for key in "abc":
        await cache.get(key)
    assert len(cache) == 2
    await cache.get("c")
    assert source.reads == 3
    await cache.get("a")
    assert source.reads == 4
