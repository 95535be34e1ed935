"""Who fetches what: nothing is lost, nothing is fetched by two who could both finish it, the slow are relieved."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.transfer_pace import Pace
from openlora_node.network.transfer_plan import MAX_CLAIM, MIN_CLAIM, Plan, claim_size

SOURCES = ("a", "b", "c")


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(["claim", "deliver", "lose"]), st.sampled_from(SOURCES), st.integers(1, 20))),
)
def test_whatever_sources_do_every_chunk_has_one_duty_and_the_rest_gets_done(
    files: list[int], program: list[tuple[str, str, int]]
) -> None:
    plan = Plan([(file, 0, count) for file, count in enumerate(files)])
    missing = {(file, index) for file, count in enumerate(files) for index in range(count)}
    asked: dict[str, list[tuple[int, int]]] = {}

    def duties() -> list[tuple[int, int]]:
        held = [(h.file, i) for h in plan._held.values() for i in range(h.next, h.end)]
        free = [(part.file, i) for part in plan._free for i in range(part.first, part.first + part.count)]
        return [chunk for chunk in held + free if chunk in missing]

    def claim(source: str, most: int) -> None:
        if source not in asked:
            got = plan.claim(source, most)
            if got is not None:
                assert 1 <= got.count <= most
                asked[source] = [(got.file, index) for index in range(got.first, got.first + got.count)]

    def deliver(source: str) -> None:
        if source in asked:
            chunk = asked[source].pop(0)
            assert plan.wants(*chunk) == (chunk in missing)
            plan.arrived(source, *chunk)
            missing.discard(chunk)
            assert plan.is_useful(source) == any(later in missing for later in asked[source])
            if not asked[source]:
                lose(source)

    def lose(source: str) -> None:
        plan.release(source)
        asked.pop(source, None)

    for action, source, number in program:
        if action == "claim":
            claim(source, number)
        elif action == "deliver":
            for _ in range(number):
                deliver(source)
        else:
            lose(source)
        assert len(plan) == len(missing)
        assert sorted(duties()) == sorted(missing)
    for source in SOURCES[1:]:
        lose(source)
    while missing:
        claim("a", 16)
        deliver("a")
    assert len(plan) == 0


def test_an_idle_source_takes_over_half_of_what_the_busiest_still_has() -> None:
    plan = Plan([(0, 0, 16)])
    assert plan.claim("slow", 16) is not None
    plan.arrived("slow", 0, 0)
    stolen = plan.claim("fast", 100)
    assert stolen is not None
    assert (stolen.first, stolen.count) == (8, 8)
    for index in range(8, 16):
        plan.arrived("fast", 0, index)
    plan.release("fast")
    again = plan.claim("fast", 100)
    assert again is not None
    assert (again.first, again.count) == (4, 4)
    for index in range(1, 8):
        plan.arrived("fast", 0, index)
    assert len(plan) == 0
    assert not plan.is_useful("slow")


def test_a_claim_follows_the_speed_of_its_source() -> None:
    assert claim_size(None) == 16
    assert claim_size(0.1) == MIN_CLAIM
    assert claim_size(100.0) == 100
    assert claim_size(1e9) == MAX_CLAIM


def test_the_pace_is_one_for_all_who_ask() -> None:
    now, slept = 0.0, []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = Pace(100.0, clock=lambda: now, sleep=sleep)

    async def take() -> None:
        nonlocal now
        for _ in range(5):
            await pace.take(10)
        assert slept == [0.04999999999999999, 0.15000000000000002, 0.25] or len(slept) == 3
        assert abs(slept[-1] - 0.25) < 1e-9
        now = 100.0
        slept.clear()
        await pace.take(25)
        assert slept == [], "a quarter of a second is saved up, and no more"
        await pace.take(10)
        assert abs(slept[0] - 0.1) < 1e-9

    asyncio.run(take())
