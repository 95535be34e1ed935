"""LazyHeap against a plain list, and its memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.scheduling.heaps import LazyHeap

operations = st.lists(st.tuples(st.sampled_from(["push", "discard", "pop", "grow"]), st.integers(0, 9)), max_size=200)


@given(operations, st.randoms(use_true_random=False))
def test_it_orders_as_a_sorted_list_does(program: list[tuple[str, int]], rng: random.Random) -> None:
    ranks = {item: rng.randrange(5) for item in range(10)}
    heap: LazyHeap[int] = LazyHeap(ranks.__getitem__)
    held: set[int] = set()
    for operation, item in program:
        if operation == "push":
            ranks[item] = rng.randrange(5)
            heap.push(item)
            held.add(item)
        elif operation == "discard":
            assert heap.discard(item) == (item in held)
            held.discard(item)
        elif operation == "grow":
            ranks[item] += rng.randrange(3)
        elif held:
            popped = heap.pop()
            assert ranks[popped] == min(ranks[other] for other in held)
            held.remove(popped)
        assert len(heap) == len(held)
        assert set(heap) == held
        first = heap.peek()
        assert (first is None) == (not held)
        if first is not None:
            assert ranks[first] == min(ranks[other] for other in held)


def test_equal_ranks_leave_in_order_of_arrival() -> None:
    heap: LazyHeap[str] = LazyHeap(lambda _item: 0)
    for item in "dacb":
        heap.push(item)
    assert [heap.pop() for _ in range(4)] == list("dacb")


def test_an_empty_heap_says_so() -> None:
    heap: LazyHeap[int] = LazyHeap(lambda item: item)
    assert heap.peek() is None
    with pytest.raises(IndexError):
        heap.pop()


def test_memory_follows_the_items_not_the_traffic() -> None:
    heap: LazyHeap[int] = LazyHeap(lambda item: item)
    for item in range(10_000):
        heap.push(item)
        heap.push(item)
        if item >= 10:
            heap.discard(item - 10)
    assert len(heap) == 10
    assert len(heap._heap) < 100
