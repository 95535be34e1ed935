"""Which engine a request goes to: one that is up, one that knows its adapters, the least busy, each in its turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.daemon.choosing import SPILL, Candidate, choose


def engine(*, up: bool = True, busy: int = 0, knows: int = 0, chosen: int = 0) -> Candidate:
    return Candidate(up, busy, knows, chosen)


@pytest.mark.parametrize(
    ("candidates", "place"),
    [
        ([engine()], 0),
        ([engine(up=False), engine(busy=50)], 1),
        ([engine(busy=3), engine(busy=2)], 1),
        ([engine(), engine(busy=SPILL - 1, knows=1)], 1),
        ([engine(), engine(busy=SPILL, knows=1)], 0),
        ([engine(knows=1), engine(busy=5, knows=2)], 1),
        ([engine(chosen=4), engine(chosen=3)], 1),
        ([engine(up=False), engine(up=False)], 0),
        ([engine(up=False, knows=2), engine(), engine(busy=1, knows=1)], 2),
    ],
    ids=[
        "the only one", "one that is up", "the least busy", "one that knows the adapter", "not one far busier",
        "one that knows more of a mix", "equal ones in turn", "the first says why none serves",
        "what is down knows nothing",
    ],
)  # fmt: skip
def test_the_choice(candidates: list[Candidate], place: int) -> None:
    assert choose(candidates) == place


CANDIDATES = st.lists(
    st.builds(Candidate, st.booleans(), st.integers(0, 40), st.integers(0, 4), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)


@given(CANDIDATES)
def test_the_chosen_one_is_up_and_never_far_busier_than_another(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    up = [each for each in candidates if each.up]
    assert chosen.up or not up
    if up:
        assert chosen.busy < min(each.busy for each in up) + SPILL
        assert not any(each.knows > chosen.knows and each.busy <= chosen.busy for each in up), (
            "who knows more and is no busier goes first"
        )
