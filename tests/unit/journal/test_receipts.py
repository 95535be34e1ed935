"""Receipts: one a request, chained, exactly as large as their ledger grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from openlora_node.journal import Binding, Journal, Reader, ReceiptDraft, ReceiptSlot
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import ReceiptStatus
from support.journal import (
    DOMAIN,
    NODE,
    NODE_KEY,
    NOW,
    RICH,
    Builder,
    Clock,
    admit,
    digest_of,
    key_of,
    open_journal,
    request,
    respond,
    signer,
)

DEBT = {"debt_allowed": 10**9}


@pytest.fixture
async def journal(tmp_path: Path):
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        yield journal
        await journal.check_integrity(deep=True)


async def test_receipts_form_a_chain_that_starts_at_zero(journal: Journal) -> None:
    stored = [await respond(journal, request(nonce), **DEBT) for nonce in range(4)]
    receipts = [one.receipt.value for one in stored]
    assert [one.previous for one in receipts] == [ZERO32, *(one.digest for one in stored[:-1])]
    assert [one.seq for one in receipts] == [(NOW << 20) + number for number in range(4)]
    assert [one.digest for one in stored] == [one.digest(DOMAIN) for one in receipts]


async def test_a_commit_frees_the_reservation_and_advances_the_ledger(journal: Journal) -> None:
    await admit(journal, request(1))
    await journal.commit_receipt(digest_of(request(1)), Builder(tokens=3, micro=1_500_000, royalty=2))
    ledger = await journal.ledger(key_of())
    assert (ledger.tally, ledger.fee, ledger.reserved) == (Tally(3, 4_500_000), 4 + 6, 0)
    slot_of = Builder(tokens=1, micro=1_500_000, royalty=2)
    await respond(journal, request(2), slot_of, **DEBT)
    assert slot_of.slots[0].before == Tally(3, 4_500_000)
    # 4.5 and 1.5 make 6: rounding happens on the sum, not on each response.
    assert (await journal.ledger(key_of())).fee == 6 + 8


async def test_a_second_commit_returns_the_first_receipt_and_does_not_build(journal: Journal) -> None:
    build = Builder()
    first = await respond(journal, request(1), build)
    again = await journal.commit_receipt(digest_of(request(1)), build)
    assert again == first
    assert len(build.slots) == 1
    with Reader(journal.path) as reader:
        assert reader.receipts(NODE, 0, 10) == [first]


async def test_a_failed_response_costs_nothing_and_closes_the_request(journal: Journal) -> None:
    stored = await respond(journal, request(1), Builder(status=ReceiptStatus.FAILED))
    ledger = await journal.ledger(key_of())
    assert (ledger.tally, ledger.fee, ledger.reserved) == (Tally(), 0, 0)
    assert stored.receipt.value.tokens == 0


async def test_a_cancelled_response_is_charged(journal: Journal) -> None:
    await respond(journal, request(1), Builder(status=ReceiptStatus.CANCELLED, tokens=4, micro=1_000_000, royalty=0))
    assert (await journal.ledger(key_of())).fee == 4


def forged(**changes: object):
    """A builder whose receipt, rightly signed, says something else."""

    def build(slot: ReceiptSlot) -> ReceiptDraft:
        draft = Builder()(slot)
        return replace(draft, receipt=msgspec.structs.replace(draft.receipt.value, **changes).sign(DOMAIN, NODE_KEY))

    build.__name__ = f"forged {', '.join(changes)}"
    return build


def drafted(**changes: object):
    def build(slot: ReceiptSlot) -> ReceiptDraft:
        return replace(Builder()(slot), **changes)

    build.__name__ = f"drafted {', '.join(changes)}"
    return build


@pytest.mark.parametrize(
    "build",
    [
        forged(seq=NOW << 20 | 1),
        forged(seq=0),
        forged(previous=b"\x01" * 32),
        forged(request_digest=b"\x01" * 32),
        forged(payer=b"\x01" * 20),
        forged(node=b"\x01" * 32),
        forged(pipeline_id=b"\x01" * 32),
        forged(prompt_tokens=6),
        forged(compute=14),
        forged(royalties=986),
        forged(status=ReceiptStatus.FAILED, compute=0, royalties=0, prompt_tokens=0, completion_tokens=0),
        drafted(after=Tally(10, 16_000_000)),
        drafted(after=Tally(9, 15_000_000)),
        drafted(salt=b"short"),
    ],
    ids=lambda build: build.__name__,
)
async def test_a_receipt_that_does_not_fit_is_refused_and_the_request_runs_on(journal: Journal, build) -> None:
    await admit(journal, request(1))
    with pytest.raises(OpenLoraError) as caught:
        await journal.commit_receipt(digest_of(request(1)), build)
    assert caught.value.code is ErrorCode.RECEIPT_INVALID
    ledger = await journal.ledger(key_of())
    assert (ledger.reserved, ledger.fee) == (1_000, 0)
    assert (await journal.commit_receipt(digest_of(request(1)), Builder())).receipt.value.seq == NOW << 20


async def test_a_failing_builder_leaves_nothing_behind(journal: Journal) -> None:
    def build(_slot: ReceiptSlot) -> ReceiptDraft:
        raise LookupError("the key is locked")

    await admit(journal, request(1))
    with pytest.raises(LookupError):
        await journal.commit_receipt(digest_of(request(1)), build)
    await journal.commit_receipt(digest_of(request(1)), Builder())


async def test_only_running_requests_get_a_receipt(journal: Journal) -> None:
    with pytest.raises(OpenLoraError) as caught:
        await journal.commit_receipt(Digest(b"\x01" * 32), Builder())
    assert caught.value.code is ErrorCode.NOT_FOUND
    await admit(journal, request(1))
    await journal.interrupt(digest_of(request(1)))
    with pytest.raises(OpenLoraError) as caught:
        await journal.commit_receipt(digest_of(request(1)), Builder())
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


async def test_every_opening_moves_the_sequence_past_what_a_lost_copy_can_have_used(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "journal.sqlite"
    seqs, previous = [], []
    for nonce, seconds in enumerate((0, 0, 5, -30)):
        clock.now += seconds
        async with open_journal(path, clock) as journal:
            stored = await respond(journal, request(nonce), **DEBT)
            seqs.append(stored.receipt.value.seq)
            previous.append(stored.receipt.value.previous)
            await journal.check_integrity(deep=True)
    later = (NOW + 5) << 20
    assert seqs == [NOW << 20, (NOW << 20) + 1, later, later + 1], "a clock set back does not set the sequence back"
    assert len(set(previous)) == 4


async def test_a_restored_backup_does_not_reuse_a_sequence_number(tmp_path: Path) -> None:
    clock, path, backup = Clock(), tmp_path / "journal.sqlite", tmp_path / "backup.sqlite"
    async with open_journal(path, clock) as journal:
        await respond(journal, request(1), **DEBT)
        with Reader(path) as reader:
            reader.back_up(backup)
        lost = await respond(journal, request(2), **DEBT)
    clock.now += 1
    async with open_journal(backup, clock) as journal:
        fresh = await respond(journal, request(3), **DEBT)
        assert fresh.receipt.value.seq > lost.receipt.value.seq
        await journal.check_integrity(deep=True)


class TestPayer:
    """A gateway's journal keeps what nodes send."""

    @pytest.fixture
    async def journal(self, tmp_path: Path):
        binding = Binding.to_payer(DOMAIN, signer(0).address)
        async with Journal.open(tmp_path / "gateway.sqlite", binding, Clock()) as journal:
            yield journal
            await journal.check_integrity(deep=True)

    def draft(self, nonce: int, seq: int, before: Tally, node: bytes = NODE) -> ReceiptDraft:
        signed = request(nonce, node=node)
        return Builder()(ReceiptSlot(signed, digest_of(signed), seq, Digest(b"\x0f" * 32), before))

    async def test_receipts_of_many_nodes_arrive_in_any_order(self, journal: Journal) -> None:
        other = b"\x12" * 32
        for nonce, node in ((1, NODE), (2, NODE), (3, other)):
            await admit(journal, request(nonce, node=node))
        later = await journal.accept_receipt(digest_of(request(2)), self.draft(2, 900, Tally()))
        await journal.accept_receipt(digest_of(request(1)), self.draft(1, 800, Tally(10, 15_000_000)))
        await journal.accept_receipt(digest_of(request(3, node=other)), self.draft(3, 900, Tally(), other))
        assert await journal.accept_receipt(digest_of(request(2)), self.draft(2, 900, Tally())) == later
        assert await journal.owed(signer(0).address, NODE) == 70
        assert await journal.owed(signer(0).address, other) == 35

    async def test_a_second_receipt_under_one_sequence_number_is_refused(self, journal: Journal) -> None:
        for nonce in (1, 2):
            await admit(journal, request(nonce))
        await journal.accept_receipt(digest_of(request(1)), self.draft(1, 900, Tally()))
        with pytest.raises(OpenLoraError) as caught:
            await journal.accept_receipt(digest_of(request(2)), self.draft(2, 900, Tally(10, 15_000_000)))
        assert caught.value.code is ErrorCode.RECEIPT_INVALID

    async def test_a_receipt_closes_a_request_that_was_given_up(self, journal: Journal) -> None:
        await admit(journal, request(1))
        await journal.interrupt_running()
        await journal.accept_receipt(digest_of(request(1)), self.draft(1, 900, Tally()))
        assert (await journal.ledger(key_of())).fee == 35

    async def test_each_role_has_its_own_way_to_a_receipt(self, journal: Journal, tmp_path: Path) -> None:
        with pytest.raises(OpenLoraError) as caught:
            await journal.commit_receipt(digest_of(request(1)), Builder())
        assert caught.value.code is ErrorCode.JOURNAL_MISMATCH
        async with open_journal(tmp_path / "node.sqlite") as node:
            with pytest.raises(OpenLoraError) as caught:
                await node.accept_receipt(digest_of(request(1)), self.draft(1, 900, Tally()))
            assert caught.value.code is ErrorCode.JOURNAL_MISMATCH

    async def test_requests_of_another_payer_do_not_enter(self, journal: Journal) -> None:
        with pytest.raises(OpenLoraError) as caught:
            await admit(journal, request(1, payer=1), RICH)
        assert caught.value.code is ErrorCode.WRONG_NODE

    async def test_a_sequence_number_beyond_storage_is_refused(self, journal: Journal) -> None:
        await admit(journal, request(1))
        with pytest.raises(OpenLoraError) as caught:
            await journal.accept_receipt(digest_of(request(1)), self.draft(1, 2**63, Tally()))
        assert caught.value.code is ErrorCode.BAD_AMOUNT
