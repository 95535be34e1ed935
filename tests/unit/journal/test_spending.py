"""What a day has cost: kept in sums of five minutes, and always what the rows add up to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from openlora_node.journal import Journal
from openlora_node.journal import spending as books
from openlora_node.journal.books import number
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import NOW, Clock, open_journal

UNCAPPED = 2**120


def spend(index: int, at: int, amount: int) -> books.Spend:
    return books.Spend(
        request_digest=index.to_bytes(32, "big"), node=bytes(32), signer=bytes(20), pipeline=bytes(32), at=at,
        amount=amount, given=0, model="base", prompt_tokens=1, quote=b"quote", preimage=b"preimage",
    )  # fmt: skip


@pytest.fixture
async def journal(tmp_path: Path):
    async with open_journal(tmp_path / "journal.sqlite", Clock()) as journal:
        yield journal


def by_rows(transaction, after: int) -> int:
    """The sum that the slots stand for: every row of the slots from the one that holds `after` + 1."""
    first = (after + 1) // books.SLOT_S * books.SLOT_S
    return sum(number(amount) for at, amount in transaction.all("SELECT at, amount FROM spends") if at >= first)


@pytest.mark.parametrize("seed", range(5))
async def test_the_sums_are_what_the_rows_add_up_to(journal: Journal, seed: int) -> None:
    draw = random.Random(seed)

    def work(transaction) -> None:
        for each in range(200):
            books.reserve(
                transaction, spend(each, NOW + draw.randrange(2 * books.DAY_S), draw.randrange(10**18)), UNCAPPED
            )
            other = draw.randrange(each + 1).to_bytes(32, "big")
            match draw.randrange(4):
                case 0:
                    books.paid(transaction, other, draw.randrange(10**18), charged=False)
                case 1:
                    books.give(transaction, other, draw.randrange(10**18))
                case 2:
                    books.lost(transaction, other, "gone")
                case _:
                    pass
            after = NOW + draw.randrange(2 * books.DAY_S)
            assert books.spent_since(transaction, after) == by_rows(transaction, after)

    await journal.transact(work)


async def test_what_a_version_before_the_sums_wrote_is_counted_once(journal: Journal) -> None:
    def before(transaction) -> None:
        for each in range(3):
            books.reserve(transaction, spend(each, NOW + each, 100), UNCAPPED)
        transaction.write("test", "DELETE FROM spent_slots")  # as a journal of that version is

    def now(transaction) -> list[int]:
        books.paid(transaction, (0).to_bytes(32, "big"), 40, charged=False)  # before anything was summed
        first = books.spent_since(transaction, NOW - 1)
        books.paid(transaction, (1).to_bytes(32, "big"), 50, charged=False)
        return [first, books.spent_since(transaction, NOW - 1)]

    await journal.transact(before)
    assert await journal.transact(now) == [240, 190]


async def test_the_cap_of_a_day_holds_and_says_what_is_left(journal: Journal) -> None:
    await journal.transact(lambda transaction: books.reserve(transaction, spend(1, NOW, 700), 1_000))
    with pytest.raises(OpenLoraError, match="300 wei are left") as caught:
        await journal.transact(lambda transaction: books.reserve(transaction, spend(2, NOW, 301), 1_000))
    assert caught.value.code is ErrorCode.SPEND_CAP
    later = NOW + books.DAY_S + books.SLOT_S
    await journal.transact(lambda transaction: books.reserve(transaction, spend(2, later, 1_000), 1_000))
