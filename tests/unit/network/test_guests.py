"""Connections that came in by themselves: bounded by place and together, counted exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.guests import Guests, place_of


@pytest.mark.parametrize(
    ("ip", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_places(ip: str, place: str) -> None:
    assert place_of(ip) == place


def test_one_place_has_its_part_and_some_room_is_nobodys() -> None:
    guests = Guests(64)
    assert [guests.enter("10.0.0.1") for _ in range(9)] == [True] * 8 + [False]
    for place in range(2, 8):
        assert all(guests.enter(f"10.0.0.{place}") for _ in range(8))
    assert len(guests) == 56
    assert not guests.enter("10.0.0.99"), "an eighth is kept for outbound connections"
    guests.leave("10.0.0.1")
    assert guests.enter("10.0.0.99")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=200), st.integers(1, 40), st.integers(0, 6))
def test_counts_are_those_who_are_here(program: list[tuple[bool, int]], most: int, per_place: int) -> None:
    guests, here = Guests(most, per_place), []
    for enters, place in program:
        ip = f"10.0.0.{place}"
        if enters:
            if guests.enter(ip):
                here.append(ip)
        elif ip in here:
            here.remove(ip)
            guests.leave(ip)
        assert len(guests) == len(here)
        assert all(here.count(ip) <= (per_place or max(8, most // 8)) for ip in here)
    assert len(here) <= max(1, most - most // 8)
