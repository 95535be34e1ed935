"""What a voucher must reach and may not pass, given its ledger and the requests open in it. Pure.

Both amounts are judged apart: compute pays the operator, royalties pay the artifacts' owners, who may be the payer
itself (docs/protocol.md, section 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.pricing import TOKENS_PER_RATE, ComputeRates, RoyaltySchedule, Tally
from ..protocol.structs import Voucher
from .values import Refusal


@dataclass(frozen=True)
class OpenRun:
    """A request without a receipt: what it has used so far and the most that it may use."""

    rates: ComputeRates
    settlement_charge: int
    prompt_tokens: int
    max_tokens: int
    generated: int = 0


@dataclass(frozen=True)
class LedgerState:
    """One ledger: its committed receipts, the newest voucher held, and what runs in it."""

    schedule: RoyaltySchedule
    tally: Tally
    voucher: Voucher | None
    open: tuple[OpenRun, ...] = ()

    def used(self) -> Tally:
        """Receipts, and of every open request its prompt and what it has generated."""
        return self._with((run, run.generated) for run in self.open)

    def most(self) -> Tally:
        """Receipts, and the most that every open request may come to."""
        return self._with((run, run.max_tokens) for run in self.open)

    def with_run(self, run: OpenRun) -> LedgerState:
        """The same ledger with one more open request."""
        return LedgerState(self.schedule, self.tally, self.voucher, (*self.open, run))

    def with_voucher(self, voucher: Voucher | None) -> LedgerState:
        """The same ledger with another newest voucher."""
        return LedgerState(self.schedule, self.tally, voucher, self.open)

    def owed(self) -> int:
        """What the newest voucher leaves unpaid of what was used so far, in wei."""
        return self.used().owed(self.schedule, self.voucher)

    def unpaid_tokens(self) -> int:
        """Tokens of output past the newest voucher, by the amount that lags most; 0 while nothing is owed."""
        used = self.used()
        if used.owed(self.schedule, self.voucher) == 0:
            return 0
        tokens, compute = (self.voucher.cumulative_tokens, self.voucher.cumulative_compute) if self.voucher else (0, 0)
        behind = used.compute_micro_wei - compute * TOKENS_PER_RATE
        rate = max((run.rates.output_rate for run in self.open), default=0)
        return max(0, used.tokens - tokens, behind // rate if rate and behind >= TOKENS_PER_RATE else 0)

    def _with(self, runs: Iterable[tuple[OpenRun, int]]) -> Tally:
        tokens, micro, once = self.tally.tokens, self.tally.compute_micro_wei, 0
        for run, generated in runs:
            tokens += run.prompt_tokens + generated
            micro += run.rates.micro_wei(run.prompt_tokens, generated)
            once = max(once, run.settlement_charge)
        return Tally(tokens, micro if self.tally.compute_micro_wei else micro + once * TOKENS_PER_RATE)


def newest(held: Voucher | None, offered: Voucher | None) -> Voucher | None:
    """Which of two vouchers of one key stands. Raises VOUCHER_CONFLICT where one amount grew and the other fell."""
    if held is None or offered is None:
        return offered or held
    return offered if offered.covers(held) else held


def is_not_ahead(state: LedgerState, voucher: Voucher) -> Refusal | None:
    """A voucher pays for no more than the ledger and its open requests can come to; one as old as ours is no news."""
    most, held = state.most(), state.voucher
    tokens = max(most.tokens, held.cumulative_tokens if held else 0)
    compute = max(-(-most.compute_micro_wei // TOKENS_PER_RATE), held.cumulative_compute if held else 0)
    if voucher.cumulative_tokens > tokens or voucher.cumulative_compute > compute:
        return Refusal(
            ErrorCode.VOUCHER_CONFLICT,
            f"the voucher runs ahead of what was served: sign at most {tokens} tokens and {compute} wei of compute",
        )
    return None


def accept(state: LedgerState, voucher: Voucher) -> Voucher | Refusal:
    """The voucher that stands after `voucher` was offered for this ledger."""
    try:
        stands = newest(state.voucher, voucher)
    except ProtocolError as error:
        return Refusal.of(error)
    assert stands is not None
    return is_not_ahead(state, voucher) or stands


def opens(state: LedgerState, voucher: Voucher | None, grace: int) -> Refusal | None:
    """The opening voucher covers earlier debt and the prompts of every open request, `state`'s newest among them.

    `grace` (wei) is what receipts cost whose closing vouchers are still awaited: not yet a debt.
    """
    stands = state.voucher
    if voucher is not None:
        accepted = accept(state, voucher)
        if isinstance(accepted, Refusal):
            return accepted
        stands = accepted
    due = LedgerState(state.schedule, state.tally, stands, tuple(_prompt_only(run) for run in state.open))
    if due.owed() > grace:
        reach = due.used()
        return Refusal(
            ErrorCode.VOUCHER_TOO_LOW,
            f"the opening voucher must reach {reach.tokens} tokens and {reach.compute} wei of compute",
        )
    return None


def _prompt_only(run: OpenRun) -> OpenRun:
    return OpenRun(run.rates, run.settlement_charge, run.prompt_tokens, run.max_tokens)
