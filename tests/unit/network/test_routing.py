"""The routing policy: what it may never do, and that load and adapters spread as promised."""

from __future__ import annotations

import random
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.rendezvous import adapter_key, affinity, node_key, order
from openlora_node.network.routing import (
    FIRST_SPREAD,
    MAX_ATTEMPTS,
    Ask,
    Candidate,
    Spread,
    alternatives,
    choose,
    draw_two,
    expected_s,
    fee_of,
    fits,
    may_retry,
)
from support.network_adverts import BASE, adapter

DICE = random.Random(1)
NODES = [adapter(n) for n in range(50)]
KEYS = [(node_key(node), node) for node in NODES]


def dice(limit: int) -> int:
    return DICE.randrange(limit)


candidates = st.builds(
    Candidate,
    node=st.binary(min_size=32, max_size=32),
    input_rate=st.integers(0, 10**18),
    output_rate=st.integers(0, 10**18),
    charge=st.integers(0, 10**15),
    max_context=st.integers(0, 10_000),
    tokens_per_second=st.integers(0, 1000),
    queue_depth=st.integers(0, 100),
    advert_age_s=st.floats(0, 10_000),
    in_flight=st.integers(0, 20),
    missing=st.integers(0, 4),
    rtt_s=st.none() | st.floats(0, 10),
    success=st.floats(0, 1),
    allowed=st.booleans(),
)
asks = st.builds(
    Ask,
    prompt_tokens=st.integers(0, 5000),
    max_tokens=st.integers(0, 5000),
    max_fee=st.integers(0, 10**18),
    royalties=st.integers(0, 10**15),
)


@given(asks, st.lists(candidates, max_size=8), st.lists(candidates, max_size=4))
def test_who_is_chosen_fits_and_somebody_is_chosen_if_a_home_fits(
    ask: Ask, homes: list[Candidate], holders: list[Candidate]
) -> None:
    chosen = choose(ask, homes, holders, dice)
    if chosen is None:
        assert not any(fits(ask, node) for node in homes)
    else:
        assert fits(ask, chosen)
        assert chosen in homes or chosen in holders
        assert ask.max_fee == 0 or fee_of(ask, chosen) <= ask.max_fee


def test_fees_are_rounded_as_the_node_rounds_them() -> None:
    ask = Ask(prompt_tokens=1, max_tokens=1, royalties=5)
    assert fee_of(ask, Candidate(b"", input_rate=1, output_rate=0, charge=3)) == 1 + 3 + 5
    assert fee_of(ask, Candidate(b"", input_rate=10**6, output_rate=10**6)) == 2 + 5


@given(asks, candidates)
def test_worse_news_never_makes_a_node_look_better(ask: Ask, node: Candidate) -> None:
    before = expected_s(ask, node)
    assert expected_s(ask, replace(node, queue_depth=node.queue_depth + 1)) >= before
    assert expected_s(ask, replace(node, in_flight=node.in_flight + 1)) > before
    assert expected_s(ask, replace(node, missing=node.missing + 1)) > before
    assert expected_s(ask, replace(node, success=node.success / 2)) >= before


def test_a_holder_is_preferred_to_a_home_that_would_have_to_load() -> None:
    home, holder = Candidate(b"home", missing=1), Candidate(b"holder")
    assert choose(Ask(max_tokens=10), [home], [holder], dice) == holder
    assert choose(Ask(max_tokens=10), [replace(home, missing=0)], [holder], dice) != holder


def test_a_node_that_fails_is_asked_only_when_nobody_else_is_left() -> None:
    good, bad = Candidate(b"good", queue_depth=50), Candidate(b"bad", success=0.1)
    assert all(choose(Ask(max_tokens=10), [good, bad], [], dice) == good for _ in range(50))
    assert choose(Ask(max_tokens=10), [bad], [], dice) == bad


@given(st.integers(0, 20))
def test_two_are_drawn_that_differ(size: int) -> None:
    pool = [Candidate(bytes([n])) for n in range(size)]
    drawn = draw_two(pool, dice)
    assert len(drawn) == len(set(drawn)) == min(2, size)
    assert set(drawn) <= set(pool)


def test_no_herd_follows_old_news() -> None:
    homes = [Candidate(bytes([n]), queue_depth=n) for n in range(16)]
    taken = Counter(choose(Ask(max_tokens=100), homes, [], dice).node for _ in range(4000))  # type: ignore[union-attr]
    assert taken.most_common(1)[0][1] < 4000 * 2.5 / 16


def test_the_order_of_an_adapter_is_stable_when_nodes_come_and_go() -> None:
    key = adapter_key(BASE, [adapter(7)])
    full = order(key, KEYS)
    assert order(key, [entry for entry in KEYS if entry[1] != full[3]]) == full[:3] + full[4:]
    assert order(key, list(reversed(KEYS))) == full


def test_adapters_divide_evenly_and_a_new_node_takes_only_its_share() -> None:
    keys = [adapter_key(BASE, [adapter(n)]) for n in range(5000)]
    first = [order(key, KEYS)[0] for key in keys]
    counts = Counter(first)
    assert len(counts) == 50
    assert max(counts.values()) < 2 * 5000 / 50
    new = adapter(1000)
    moved = [order(key, [*KEYS, (node_key(new), new)])[0] for key in keys]
    changed = [after for before, after in zip(first, moved, strict=True) if before != after]
    assert set(changed) == {new}
    assert len(changed) < 2 * 5000 / 51


def test_affinity_is_the_same_for_ints_and_for_arrays() -> None:
    nodes = np.array([key for key, _ in KEYS], dtype=np.uint64)
    for n in range(50):
        key = adapter_key(BASE, [adapter(n)])
        assert [int(x) for x in affinity(np.uint64(key), nodes)] == [affinity(key, node) for node, _ in KEYS]


def test_the_order_of_adapters_in_a_mix_does_not_matter() -> None:
    a, b = adapter(1), adapter(2)
    assert adapter_key(BASE, [a, b]) == adapter_key(BASE, [b, a]) != adapter_key(BASE, [a])


def test_the_spread_doubles_when_full_and_narrows_when_quiet() -> None:
    spread = Spread()
    for _ in range(5):
        spread = spread.busy(50)
    assert spread.homes == 50
    for _ in range(2000):
        spread = spread.accepted()
    assert spread.homes == FIRST_SPREAD


def test_a_second_node_is_asked_before_the_first_token_only() -> None:
    assert may_retry(1, 0, code_retryable=True)
    assert not may_retry(1, 1, code_retryable=True)
    assert not may_retry(1, 0, code_retryable=False)
    assert not may_retry(MAX_ATTEMPTS, 0, code_retryable=True)


def test_a_full_node_names_those_after_itself() -> None:
    ranked = NODES[:5]
    assert alternatives(ranked, ranked[2], {ranked[3]}) == (ranked[4], ranked[0], ranked[1])
    assert alternatives(ranked, b"elsewhere", ()) == tuple(ranked)
    assert len(alternatives(NODES, NODES[0], ())) == 8


@pytest.mark.slow
def test_the_simulation_shows_what_the_policy_is_for() -> None:
    module = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "routing.py"), run_name="routing")
    world = module["World"](nodes=200, adapters=2000, requests=8000)
    ours, other, hashing = (module["simulate"](name, world) for name in ("OpenLoRA", "random", "consistent hashing"))
    assert ours.warm_hits > 2 * other.warm_hits
    assert ours.p99 < other.p99
    assert ours.p99 < hashing.p99 / 10
    assert ours.refused < 0.01


def test_of_two_as_soon_as_each_other_the_cheaper_is_asked() -> None:
    dear, paid = Candidate(node=b"\x01", charge=5, rtt_s=0.010), Candidate(node=b"\x02", charge=0, rtt_s=0.012)
    for _ in range(20):
        assert choose(Ask(max_tokens=10), [dear, paid], [], random.Random(3).randrange) == paid
    soon = replace(dear, tokens_per_second=100)
    assert choose(Ask(max_tokens=10), [soon, paid], [], random.Random(3).randrange) == soon
