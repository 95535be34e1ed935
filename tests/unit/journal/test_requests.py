"""The door's transaction: nonce and reservation, debts and opening vouchers, interruption and forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.journal import Admitted, AlreadyDone, AlreadyRunning, EscrowSnapshot, Journal, Reader, RequestState
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from support.journal import (
    NODE,
    NOW,
    PIPELINE,
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
    voucher,
)

PAYER = signer(0).address


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(tmp_path: Path, clock: Clock):
    async with open_journal(tmp_path / "journal.sqlite", clock) as journal:
        yield journal
        await journal.check_integrity(deep=True)


def state_of(journal: Journal, nonce: int) -> RequestState | None:
    with Reader(journal.path) as reader:
        return reader.request_state(digest_of(request(nonce)))


async def refusal(journal: Journal, *args, **options) -> OpenLoraError:
    with pytest.raises(OpenLoraError) as caught:
        await admit(journal, *args, **options)
    return caught.value


async def test_a_new_request_is_admitted_and_reserves_its_max_fee(journal: Journal) -> None:
    first = request(1, max_fee=700)
    assert await admit(journal, first) == Admitted(digest_of(first), 700)
    ledger = await journal.ledger(key_of())
    assert (ledger.reserved, ledger.exposure, ledger.owed) == (700, 700, 0)


async def test_the_same_request_attaches_while_it_runs_and_returns_its_receipt_afterwards(journal: Journal) -> None:
    first = request(1)
    await admit(journal, first)
    assert await admit(journal, first) == AlreadyRunning(digest_of(first))
    stored = await journal.commit_receipt(digest_of(first), Builder())
    assert await admit(journal, first) == AlreadyDone(digest_of(first), stored)
    assert (await journal.ledger(key_of())).reserved == 0


async def test_a_finished_request_returns_its_receipt_even_when_expired_indebted_and_without_escrow(
    journal: Journal, clock: Clock
) -> None:
    first = request(1)
    stored = await respond(journal, first)
    clock.now += 10_000
    assert await admit(journal, first, EscrowSnapshot(0)) == AlreadyDone(digest_of(first), stored)


async def test_a_nonce_belongs_to_one_request_of_one_payer(journal: Journal) -> None:
    await admit(journal, request(1))
    assert (await refusal(journal, request(1, max_fee=2))).code is ErrorCode.NONCE_REUSED
    assert isinstance(await admit(journal, request(1, payer=1)), Admitted)


async def test_a_nonce_stays_taken_when_its_request_was_interrupted_or_answered(journal: Journal) -> None:
    await admit(journal, request(1))
    await journal.interrupt(digest_of(request(1)))
    await respond(journal, request(2))
    for nonce in (1, 2):
        assert (await refusal(journal, request(nonce, max_fee=3))).code is ErrorCode.NONCE_REUSED


@pytest.mark.parametrize(
    ("escrow", "missing"),
    [
        (EscrowSnapshot(999), 1),
        (EscrowSnapshot(0), 1_000),
        (EscrowSnapshot(1_500, thawing=600), 100),
        (EscrowSnapshot(1_000, thawing=1_000), 1_000),
    ],
)
async def test_an_escrow_too_low_is_refused_with_what_is_missing(
    journal: Journal, escrow: EscrowSnapshot, missing: int
) -> None:
    error = await refusal(journal, request(1, max_fee=1_000), escrow)
    assert error.code is ErrorCode.ESCROW_TOO_LOW
    assert f" {missing} wei" in error.message
    assert state_of(journal, 1) is None
    assert (await journal.ledger(key_of())).reserved == 0


async def test_the_last_wei_can_be_reserved_and_no_wei_twice(journal: Journal) -> None:
    escrow = EscrowSnapshot(2_500, thawing=500)
    await admit(journal, request(1), escrow)
    await admit(journal, request(2, pipeline=b"\x23" * 32), escrow)
    assert " 1 wei" in (await refusal(journal, request(3, max_fee=1), escrow)).message
    await journal.interrupt(digest_of(request(1)))
    await admit(journal, request(4), escrow)


async def test_payers_and_their_nodes_have_separate_escrows(journal: Journal) -> None:
    await admit(journal, request(1), EscrowSnapshot(1_000))
    assert isinstance(await admit(journal, request(1, payer=1), EscrowSnapshot(1_000)), Admitted)


async def test_committed_fees_stay_reserved_until_they_are_redeemed(journal: Journal) -> None:
    await respond(journal, request(1), Builder(tokens=10, micro=1_000_000, royalty=2))  # costs 30
    await journal.advance_voucher(voucher(10, 10))
    escrow = EscrowSnapshot(1_000)
    assert " 30 wei" in (await refusal(journal, request(2), escrow)).message
    await journal.record_redeemed(key_of(), 30)
    await admit(journal, request(2), escrow)


async def test_an_opening_voucher_prepays_its_own_reservation(journal: Journal) -> None:
    # Worth 600 of the 1,000 reserved: reserving 1,600 would refuse a payer who can pay.
    escrow = EscrowSnapshot(2_000)
    await admit(journal, request(1), escrow, opening=voucher(0, 600))
    await admit(journal, request(2, pipeline=b"\x23" * 32), escrow, opening=voucher(0, 600, pipeline=b"\x23" * 32))
    ledger = await journal.ledger(key_of())
    assert (ledger.voucher_value, ledger.exposure) == (600, 1_000)


async def test_a_voucher_beyond_the_reservation_counts_in_full(journal: Journal) -> None:
    error = await refusal(journal, request(1), EscrowSnapshot(1_000), opening=voucher(0, 1_001))
    assert error.code is ErrorCode.ESCROW_TOO_LOW
    assert (await journal.ledger(key_of())).voucher is None, "a refused request leaves no voucher behind"


async def test_a_debtor_is_refused_until_a_voucher_covers_the_debt(journal: Journal) -> None:
    await respond(journal, request(1), Builder(tokens=10, micro=1_000_000, royalty=2))
    assert await journal.owed(PAYER, NODE) == 30
    error = await refusal(journal, request(2))
    assert error.code is ErrorCode.DEBT_OUTSTANDING
    assert " 30 wei" in error.message
    assert (await refusal(journal, request(2), opening=voucher(9, 9))).code is ErrorCode.DEBT_OUTSTANDING
    assert await journal.owed(PAYER, NODE) == 30
    await admit(journal, request(2), opening=voucher(10, 10))
    assert await journal.owed(PAYER, NODE) == 0


async def test_an_opening_voucher_does_not_pay_the_debt_of_another_pipeline(journal: Journal) -> None:
    await respond(journal, request(1, pipeline=b"\x23" * 32))
    assert (await refusal(journal, request(2), opening=voucher(1_000, 1_000))).code is ErrorCode.DEBT_OUTSTANDING


async def test_debt_up_to_what_the_caller_allows_is_let_in(journal: Journal) -> None:
    await respond(journal, request(1), Builder(tokens=10, micro=1_000_000, royalty=2))
    assert (await refusal(journal, request(2), debt_allowed=29)).code is ErrorCode.DEBT_OUTSTANDING
    await admit(journal, request(2), debt_allowed=30)


@pytest.mark.parametrize(
    "opening",
    [
        voucher(1, 1, payer=1),
        voucher(1, 1, by=1),
        voucher(1, 1, pipeline=b"\x99" * 32),
        voucher(1, 1, node=b"\x99" * 32),
    ],
    ids=["payer", "signer", "pipeline", "node"],
)
async def test_an_opening_voucher_of_another_ledger_is_refused(journal: Journal, opening) -> None:
    assert (await refusal(journal, request(1), opening=opening)).code is ErrorCode.VOUCHER_CONFLICT


async def test_an_older_opening_voucher_changes_nothing(journal: Journal) -> None:
    await journal.advance_voucher(voucher(50, 50))
    await admit(journal, request(1), opening=voucher(10, 10))
    assert (await journal.ledger(key_of())).newest_voucher == voucher(50, 50).voucher


async def test_an_interrupted_request_costs_nothing_and_may_be_admitted_again_until_it_expires(
    journal: Journal, clock: Clock
) -> None:
    first = request(1)
    await admit(journal, first)
    assert await journal.interrupt(digest_of(first))
    assert not await journal.interrupt(digest_of(first)), "released once"
    ledger = await journal.ledger(key_of())
    assert (ledger.reserved, ledger.fee) == (0, 0)
    clock.now = first.value.expires_at + 60
    assert isinstance(await admit(journal, first), Admitted)
    await journal.interrupt(digest_of(first))
    clock.now += 1
    assert (await refusal(journal, first)).code is ErrorCode.REQUEST_EXPIRED


async def test_what_ran_when_the_process_died_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        for nonce in range(3):
            await admit(journal, request(nonce))
        await admit(journal, request(3, pipeline=b"\x23" * 32))
        await respond(journal, request(4))
    async with open_journal(path) as journal:
        assert await journal.interrupt_running() == 4
        assert await journal.interrupt_running() == 0
        assert [state_of(journal, nonce) for nonce in (0, 1, 2, 4)] == [RequestState.INTERRUPTED] * 3 + [
            RequestState.DONE
        ]
        assert (await journal.ledger(key_of())).reserved == 0
        await journal.check_integrity(deep=True)


async def test_prune_forgets_only_interrupted_requests_that_can_no_longer_be_admitted(
    journal: Journal, clock: Clock
) -> None:
    for nonce in (1, 2):
        await admit(journal, request(nonce))
    await respond(journal, request(3), debt_allowed=0)
    await journal.interrupt(digest_of(request(1)))
    clock.now = NOW + 360
    assert await journal.prune() == 0
    clock.now += 1
    assert await journal.prune() == 1
    assert [state_of(journal, nonce) for nonce in (1, 2, 3)] == [None, RequestState.RUNNING, RequestState.DONE]
    assert (await refusal(journal, request(1))).code is ErrorCode.REQUEST_EXPIRED, "a forgotten nonce is not free"


async def test_prune_is_bounded(journal: Journal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openlora_node.journal.journal.PRUNE_LIMIT", 2)
    for nonce in range(5):
        await admit(journal, request(nonce))
    await journal.interrupt_running()
    clock.now += 1_000
    assert [await journal.prune() for _ in range(4)] == [2, 2, 1, 0]


async def test_a_signer_has_a_bounded_number_of_live_nonces(tmp_path: Path, clock: Clock) -> None:
    async with open_journal(tmp_path / "journal.sqlite", clock, max_live_nonces=3) as journal:
        for nonce in range(3):
            await respond(journal, request(nonce), debt_allowed=10**9)
        assert (await refusal(journal, request(3), debt_allowed=10**9)).code is ErrorCode.TOO_MANY_NONCES
        assert isinstance(await admit(journal, request(0)), AlreadyDone), "a retry needs no new nonce"
        await admit(journal, request(3, payer=1))
        clock.now += 361
        await admit(journal, request(3, issued_at=clock.now), debt_allowed=10**9)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"node": b"\x99" * 32}, ErrorCode.WRONG_NODE),
        ({"issued_at": 2**64 - 301}, ErrorCode.BAD_AMOUNT),
        ({"max_fee": 2**128 - 1}, ErrorCode.ESCROW_TOO_LOW),
    ],
)
async def test_requests_that_do_not_fit_are_refused(journal: Journal, change: dict, code: ErrorCode) -> None:
    assert (await refusal(journal, request(1, **change))).code is code


async def test_the_largest_amounts_of_the_protocol_fit(journal: Journal) -> None:
    everything = EscrowSnapshot(2**128 - 1)
    await admit(journal, request(1, max_fee=2**128 - 1, max_tokens=2**64 - 1), everything)
    assert (await refusal(journal, request(2, max_fee=1), everything)).code is ErrorCode.ESCROW_TOO_LOW
    await admit(journal, request(2, max_fee=0), everything)


@pytest.mark.parametrize(("balance", "thawing"), [(-1, 0), (10, 11), (2**128, 0), (10, -1)])
def test_an_impossible_escrow_cannot_be_made(balance: int, thawing: int) -> None:
    with pytest.raises(ProtocolError):
        EscrowSnapshot(balance, thawing)


async def test_a_voucher_lost_with_an_old_journal_is_no_debt_once_it_was_redeemed(journal: Journal) -> None:
    await respond(journal, request(1), Builder(tokens=10, micro=1_000_000, royalty=2))
    await journal.record_redeemed(key_of(), 30)
    assert await journal.owed(PAYER, NODE) == 0
    assert RICH.balance > 0
    await admit(journal, request(2, pipeline=PIPELINE))


@pytest.mark.parametrize(("tokens", "compute", "owed"), [(10_000, 0, 10), (0, 10_000, 20), (9, 10_000, 2), (10, 10, 0)])
async def test_compute_and_royalties_are_owed_apart(journal: Journal, tokens: int, compute: int, owed: int) -> None:
    """Royalties may flow back to the payer: a voucher of many tokens must not stand in for compute, nor the reverse."""
    await respond(journal, request(1), Builder(tokens=10, micro=1_000_000, royalty=2))  # 10 compute, 20 royalties
    await journal.advance_voucher(voucher(tokens, compute))
    assert await journal.owed(PAYER, NODE) == owed
    if owed:
        assert (await refusal(journal, request(2))).code is ErrorCode.DEBT_OUTSTANDING
