"""What is decided of a dataset's pool: whole redeemed epochs, never more than came in, nothing twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.settlement.crediting import (
    NOBODY,
    Activate,
    Decision,
    Epoch,
    Lapse,
    Pool,
    Post,
    Wait,
    add_up,
    decide,
    within,
)

ANN, BOB = b"a" * 20, b"b" * 20
WINDOW, NOW = 1_000, 10_000
E1 = Epoch(1, 600_000, ((ANN, 100_000), (BOB, 200_000)))
E2 = Epoch(2, 400_000, ((BOB, 50_000),))


def pool(accrued: int, settled: int = 0, since: int = NOW, reach: int = 0, until: int | None = None) -> Pool:
    return Pool(accrued, settled, since, reach, until)


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        (pool(0), Wait()),
        (pool(5, 5), Wait()),
        (pool(1_000_000, until=NOW + 1), Wait()),
        (pool(1_000_000, until=NOW), Activate()),
        (pool(1_000_000, since=NOW - WINDOW - 1), Lapse()),
        # Both epochs came in: all of the pool is decided, rounding included.
        (pool(1_000_000), Post(2, ((ANN, 100_000), (BOB, 250_000)), 1_000_000)),
        (pool(999_990), Post(2, ((ANN, 100_000), (BOB, 250_000)), 999_990)),
        # The second is not redeemed yet: the first alone, and no wei of the second's.
        (pool(700_000), Post(1, E1.credited, 600_000)),
        (pool(700_000, reach=650_000), Post(1, E1.credited, 650_000)),
        # Not even the first: wait, until half of the window is gone; then what there is, in the same parts.
        (pool(150_000), Wait()),
        (pool(150_000, since=NOW - WINDOW // 2), Post(1, ((ANN, 50_000), (BOB, 100_000)), 150_000)),
    ],
)
def test_the_decision_table(seen: Pool, decision: Decision) -> None:
    assert decide(seen, (), (E1, E2), WINDOW, NOW) == decision


def test_a_post_continues_the_table_in_force() -> None:
    found = decide(pool(1_600_000, 600_000), E1.credited, (E2,), WINDOW, NOW)
    assert found == Post(2, ((ANN, 100_000), (BOB, 250_000)), 1_000_000)
    assert found.total == 350_000


def test_what_receipts_credit_is_reached_where_the_owner_assigns_less_by_now() -> None:
    assert decide(pool(450_000), (), (Epoch(1, 60_000, E1.credited),), WINDOW, NOW) == Post(1, E1.credited, 300_000)


def test_the_money_of_an_open_epoch_is_left_to_it() -> None:
    """The last decision fell when 250,000 wei of an epoch had come that is still open: a post must reach them."""
    seen = Pool(1_650_000, 600_000, NOW - 1, 1_650_000 - 400_000, None, told=False)
    assert decide(seen, (), (E2,), WINDOW, NOW) == Wait()
    assert decide(seen, (), (E2,), WINDOW, NOW + WINDOW // 2) == Post(2, E2.credited, 1_250_000), "not for ever"
    closed = Epoch(3, 650_000, ((ANN, 650_000),))
    assert decide(seen, (), (E2, closed), WINDOW, NOW) == Post(3, ((ANN, 650_000), (BOB, 50_000)), 1_650_000)


def test_what_nobody_is_credited_with_goes_to_shares_without_waiting_for_the_window() -> None:
    nothing = Epoch(3, 500_000, ())
    assert decide(pool(500_000), (), (nothing,), WINDOW, NOW) == Post(3, ((NOBODY, 0),), 500_000)
    assert decide(pool(500_000), E1.credited, (nothing,), WINDOW, NOW) == Post(3, E1.credited, 500_000)
    assert add_up([((NOBODY, 0),), E1.credited]) == E1.credited, "the row of nobody goes"


def test_money_without_receipts_waits_for_the_window() -> None:
    assert decide(pool(500_000), (), (), WINDOW, NOW) == Wait()
    assert decide(pool(500_000, since=NOW - WINDOW), (), (), WINDOW, NOW) == Wait()


OWNERS = st.binary(min_size=20, max_size=20).filter(lambda owner: owner != NOBODY)
ROWS = st.dictionaries(OWNERS, st.integers(1, 10**20), max_size=5)
EPOCHS = st.lists(st.tuples(st.integers(0, 10**20), ROWS), max_size=5)


@given(EPOCHS, ROWS, st.integers(0, 10**21), st.integers(0, 10**21), st.integers(0, 2 * WINDOW), st.data())
def test_a_post_is_one_that_the_contract_takes(
    made: list[tuple[int, dict[bytes, int]]],
    table: dict[bytes, int],
    settled: int,
    left: int,
    age: int,
    data: st.DataObject,
) -> None:
    epochs = [Epoch(number, assigned, tuple(sorted(rows.items()))) for number, (assigned, rows) in enumerate(made, 1)]
    before = tuple(sorted(table.items()))
    reach = data.draw(st.integers(0, settled + left))
    seen = Pool(settled + left, settled, NOW - age, reach, None)
    found = decide(seen, before, epochs, WINDOW, NOW)
    if isinstance(found, Post):
        assert seen.settled < found.through <= seen.accrued
        assert found.through >= seen.must_reach
        assert 0 <= found.total - sum(table.values()) <= found.through - seen.settled, "else BadAmounts"
        assert all(dict(found.rows).get(owner, 0) >= wei for owner, wei in before), "a table only grows"
        assert [owner for owner, _ in found.rows] == sorted({owner for owner, _ in found.rows})


@given(ROWS, st.integers(0, 10**20))
def test_parts_stay_parts(rows: dict[bytes, int], most: int) -> None:
    given_rows = tuple(sorted(rows.items()))
    kept = within(given_rows, most)
    assert sum(wei for _, wei in kept) <= most
    total = sum(rows.values())
    if total <= most:
        assert kept == given_rows
    else:
        assert most - sum(wei for _, wei in kept) <= len(rows)
