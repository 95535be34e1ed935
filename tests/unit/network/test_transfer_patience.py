"""Patience with a source: whoever keeps the rate is never given up, whoever drips is, however fast it was before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.transfer_patience import Patience

RATE, SLACK_S = 1000.0, 15.0


@given(st.lists(st.floats(0.001, SLACK_S * 0.99), max_size=40), st.floats(1.0, 50.0))
def test_a_source_that_keeps_the_rate_is_never_given_up(pauses: list[float], faster: float) -> None:
    now = 100.0
    patience = Patience(RATE, SLACK_S, now)
    for pause in pauses:
        now += pause
        assert now < patience.until
        patience.brought(round(pause * RATE * faster) + 1, now)


@given(st.floats(0.05, 0.9), st.integers(0, 1 << 40), st.floats(0.01, 10.0))
def test_a_drip_is_given_up_however_much_it_brought_before(share: float, before: int, pause: float) -> None:
    now = 100.0
    patience = Patience(RATE, SLACK_S, now)
    patience.brought(before, now)
    began = now
    while now < patience.until:
        now += pause
        if now < patience.until:
            patience.brought(int(pause * RATE * share), now)
    assert now - began <= SLACK_S / (1 - share) + 2 * pause


def test_a_source_that_was_late_is_not_held_to_its_past() -> None:
    patience = Patience(RATE, SLACK_S, 0.0)
    patience.brought(5000, 1000.0)
    assert patience.until == 1005.0
