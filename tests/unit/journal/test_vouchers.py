"""Vouchers: the newest wins whatever order they come in, contradictions are refused, redemptions only rise."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from openlora_node.journal import Advanced, Ignored, Journal, VoucherEntry
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import NODE, PIPELINE, key_of, open_journal, signer, voucher


@pytest.fixture
async def journal(tmp_path: Path):
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        yield journal
        await journal.check_integrity(deep=True)


@pytest.mark.parametrize("order", [*permutations(((1, 5), (2, 5), (2, 9)))], ids=str)
async def test_vouchers_out_of_order_leave_the_newest(journal: Journal, order) -> None:
    held = (-1, -1)
    for amounts in order:
        outcome = await journal.advance_voucher(voucher(*amounts))
        assert isinstance(outcome, Advanced if amounts > held else Ignored)
        held = max(held, amounts)
        assert outcome.ledger.newest_voucher == voucher(*held).voucher
    assert (await journal.ledger(key_of())).voucher_value == 9 + 2 * 2


async def test_the_same_amounts_again_are_ignored_whatever_they_refer_to(journal: Journal) -> None:
    await journal.advance_voucher(voucher(3, 3))
    assert isinstance(await journal.advance_voucher(voucher(3, 3, reference=b"\x01" * 32)), Ignored)
    assert (await journal.ledger(key_of())).newest_voucher == voucher(3, 3).voucher


@pytest.mark.parametrize("amounts", [(4, 2), (2, 4)])
async def test_amounts_that_contradict_each_other_are_refused(journal: Journal, amounts: tuple[int, int]) -> None:
    await journal.advance_voucher(voucher(3, 3))
    with pytest.raises(OpenLoraError) as caught:
        await journal.advance_voucher(voucher(*amounts))
    assert caught.value.code is ErrorCode.VOUCHER_CONFLICT
    assert (await journal.ledger(key_of())).newest_voucher == voucher(3, 3).voucher


async def test_a_newer_voucher_is_not_worth_less(journal: Journal) -> None:
    await journal.advance_voucher(voucher(3, 3))
    newer = voucher(4, 4)
    with pytest.raises(OpenLoraError) as caught:
        await journal.advance_voucher(VoucherEntry(newer.voucher, newer.signer, 1))
    assert caught.value.code is ErrorCode.VOUCHER_CONFLICT


async def test_signers_and_pipelines_have_ledgers_of_their_own(journal: Journal) -> None:
    await journal.advance_voucher(voucher(9, 9))
    assert isinstance(await journal.advance_voucher(voucher(1, 1, by=1)), Advanced)
    assert isinstance(await journal.advance_voucher(voucher(1, 1, pipeline=b"\x99" * 32)), Advanced)
    assert (await journal.ledger(key_of())).newest_voucher == voucher(9, 9).voucher


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (voucher(1, 2**128 - 1), ErrorCode.BAD_AMOUNT),
        (voucher(1, 1, node=b"\x99" * 32), ErrorCode.WRONG_NODE),
    ],
    ids=["value", "node"],
)
async def test_vouchers_that_do_not_fit_are_refused(journal: Journal, entry: VoucherEntry, code: ErrorCode) -> None:
    with pytest.raises(OpenLoraError) as caught:
        await journal.advance_voucher(entry)
    assert caught.value.code is code


async def test_huge_vouchers_on_many_ledgers_do_not_overflow_the_account(journal: Journal) -> None:
    for number in range(3):
        await journal.advance_voucher(voucher(0, 2**128 - 1, pipeline=bytes([number]) * 32))
    assert await journal.owed(signer(0).address, NODE) == 0


async def test_redemptions_only_rise(journal: Journal) -> None:
    await journal.advance_voucher(voucher(10, 80))
    assert (await journal.record_redeemed(key_of(), 60)).exposure == 40
    assert (await journal.record_redeemed(key_of(), 50)).redeemed == 60
    assert (await journal.record_redeemed(key_of(), 100)).exposure == 0


@pytest.mark.parametrize("value", [-1, 2**128])
async def test_an_impossible_redemption_is_refused(journal: Journal, value: int) -> None:
    with pytest.raises(OpenLoraError) as caught:
        await journal.record_redeemed(key_of(pipeline=PIPELINE), value)
    assert caught.value.code is ErrorCode.BAD_AMOUNT
