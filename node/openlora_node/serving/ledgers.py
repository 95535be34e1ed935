"""Ledgers as serving sees them while requests run in them: committed tally, newest voucher, and who uses how much.

The journal holds what must survive; this is its newest state in memory, so that a voucher or a token costs no read.
Only this process writes the journal, and every change of a ledger comes through here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

from ..admission import LedgerState, OpenRun, Refusal, accept
from ..journal import Advanced, Journal, Ledger, LedgerKey, VoucherEntry
from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pricing import TOKENS_PER_RATE, RoyaltySchedule, Tally
from ..protocol.structs import Voucher
from .signal import Signal


@dataclass(frozen=True)
class Amounts:
    """What a voucher must reach: cumulative tokens, and compute in wei."""

    tokens: int
    compute: int


class LiveLedger:
    """One ledger. `lock` is held while an opening voucher is judged and its request is admitted."""

    def __init__(self, key: LedgerKey, schedule: RoyaltySchedule, stored: Ledger, graces: Counter[bytes]) -> None:
        self.key = key
        self.schedule = schedule
        self.lock = asyncio.Lock()
        self.changed = Signal()
        self.tally: Tally = stored.tally
        self.signed: Signed[Voucher] | None = stored.newest_voucher
        self._runs: dict[bytes, OpenRun] = {}
        self._grace: dict[bytes, tuple[int, asyncio.TimerHandle]] = {}
        self._graces = graces
        self._open_tokens = 0
        self._open_micro = 0
        self._charge = 0
        self._output_rate = 0

    def __repr__(self) -> str:
        return f"LiveLedger({self.key.payer.hex()[:8]}, {self.tally.tokens} tokens, {len(self._runs)} running)"

    @property
    def idle(self) -> bool:
        """Whether nothing runs or awaits a closing voucher in it."""
        return not self._runs and not self._grace and not self.lock.locked()

    @property
    def voucher(self) -> Voucher | None:
        """The newest voucher."""
        return self.signed.value if self.signed else None

    @property
    def grace(self) -> int:
        """Fees of the receipts that are no debt yet, in wei."""
        return sum(fee for fee, _ in self._grace.values())

    def state(self) -> LedgerState:
        """A snapshot for the door."""
        return LedgerState(self.schedule, self.tally, self.voucher, tuple(self._runs.values()))

    def begin(self, digest: bytes, run: OpenRun) -> None:
        """A request runs from now on."""
        self._runs[digest] = run
        self._open_tokens += run.prompt_tokens
        self._open_micro += run.rates.micro_wei(run.prompt_tokens, 0)
        self._charge = max(self._charge, run.settlement_charge)
        self._output_rate = max(self._output_rate, run.rates.output_rate)

    def use(self, digest: bytes, tokens: int) -> None:
        """It generated this many tokens more."""
        run = self._runs[digest]
        self._runs[digest] = replace(run, generated=run.generated + tokens)
        self._open_tokens += tokens
        self._open_micro += run.rates.micro_wei(0, tokens)

    def end(self, digest: bytes, after: Tally | None = None) -> None:
        """It runs no more; with `after`, its receipt was committed and the ledger grew to that."""
        run = self._runs.pop(digest, None)
        if run is not None:
            self._open_tokens -= run.prompt_tokens + run.generated
            self._open_micro -= run.rates.micro_wei(run.prompt_tokens, run.generated)
            self._charge = max((other.settlement_charge for other in self._runs.values()), default=0)
            self._output_rate = max((other.rates.output_rate for other in self._runs.values()), default=0)
        if after is not None and after.tokens >= self.tally.tokens:
            self.tally = after
        self.changed.fire()

    def allow(self, digest: bytes, fee: int, seconds: float) -> None:
        """For so long, a receipt of this fee is no debt: its closing voucher may be on its way.

        A voucher that pays for all that was used so far ends it at once. What lies unpaid meanwhile is bounded by
        `unpaid_tokens`: output pauses there, whoever's it is.
        """
        self.stop_allowing(digest)
        timer = asyncio.get_running_loop().call_later(seconds, self.stop_allowing, digest)
        self._grace[digest] = (fee, timer)
        self._graces[self.key.payer] += fee

    def stop_allowing(self, digest: bytes) -> None:
        """It is a debt from now on, or paid."""
        fee, timer = self._grace.pop(digest, (0, None))
        if timer is not None:
            timer.cancel()
            self._graces[self.key.payer] -= fee
            if not self._graces[self.key.payer]:
                del self._graces[self.key.payer]

    def due(self) -> Amounts:
        """What a voucher must reach to cover all that was used so far."""
        used = self.used()
        return Amounts(used.tokens, used.compute)

    def unpaid_tokens(self) -> int:
        """As `LedgerState.unpaid_tokens`, without going through every open request."""
        used, voucher = self.used(), self.voucher
        if used.owed(self.schedule, voucher) == 0:
            return 0
        tokens, compute = (voucher.cumulative_tokens, voucher.cumulative_compute) if voucher else (0, 0)
        behind = used.compute_micro_wei - compute * TOKENS_PER_RATE
        rate = self._output_rate
        return max(0, used.tokens - tokens, behind // rate if rate and behind >= TOKENS_PER_RATE else 0)

    def covers(self, after: Tally) -> bool:
        """Whether the newest voucher pays for everything up to this tally."""
        return after.owed(self.schedule, self.voucher) == 0

    def offer(self, signed: Signed[Voucher]) -> None:
        """The journal took an opening voucher: it stands unless a newer one is held."""
        held = self.voucher
        if held is None or signed.value.covers(held):
            self._stands(signed)

    def took(self, ledger: Ledger) -> None:
        """The journal has a newest voucher."""
        self._stands(ledger.newest_voucher)

    def _stands(self, signed: Signed[Voucher] | None) -> None:
        self.signed = signed
        if self.covers(self.used()):
            for digest in list(self._grace):
                self.stop_allowing(digest)
        self.changed.fire()

    def used(self) -> Tally:
        """Receipts, and of every open request its prompt and what it has generated."""
        micro = self.tally.compute_micro_wei + self._open_micro
        if not self.tally.compute_micro_wei:
            micro += self._charge * TOKENS_PER_RATE
        return Tally(self.tally.tokens + self._open_tokens, micro)


class Ledgers:
    """The ledgers in use, and the most recently used of the others."""

    def __init__(self, journal: Journal, max_idle: int) -> None:
        self._journal = journal
        self._max_idle = max_idle
        self._held: OrderedDict[LedgerKey, LiveLedger] = OrderedDict()
        self._graces: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    async def get(self, key: LedgerKey, schedule: RoyaltySchedule) -> LiveLedger:
        """A ledger, read from the journal at its first use."""
        ledger = self._held.get(key)
        if ledger is None:
            stored = await self._journal.ledger(key)
            ledger = self._held.setdefault(key, LiveLedger(key, schedule, stored, self._graces))
            self._forget_idle()
        self._held.move_to_end(key)
        return ledger

    async def find(self, key: LedgerKey) -> LiveLedger | None:
        """A ledger that was ever opened; None for a pipeline that nobody was admitted for."""
        if (ledger := self._held.get(key)) is not None:
            return ledger
        known = await self._journal.pipeline(key.pipeline)
        if known is None:
            return None
        ledger = await self.get(key, known.schedule)
        return ledger if ledger.tally.tokens or ledger.signed or not ledger.idle else None

    async def pay(self, ledger: LiveLedger, signed: Signed[Voucher]) -> bool:
        """Keep a voucher whose signature was checked; False if it is no news. Raises VOUCHER_CONFLICT."""
        async with ledger.lock:
            if is_old(ledger, signed.value):
                return False
            verdict = accept(ledger.state(), signed.value)
            if isinstance(verdict, Refusal):
                raise verdict.error()
            outcome = await self._journal.advance_voucher(self.entry(ledger, signed))
            ledger.took(outcome.ledger)
        return isinstance(outcome, Advanced)

    def grace_of(self, payer: bytes) -> int:
        """What the receipts of a payer cost that are no debt yet, over all its ledgers."""
        return self._graces[payer]

    @staticmethod
    def entry(ledger: LiveLedger, signed: Signed[Voucher]) -> VoucherEntry:
        """A voucher as the journal takes it."""
        return VoucherEntry(signed, Address(ledger.key.signer), ledger.schedule.value(signed.value))

    def _forget_idle(self) -> None:
        idle = len(self._held) - self._max_idle
        for key in [key for key, ledger in self._held.items() if ledger.idle][: max(0, idle)]:
            del self._held[key]


def is_old(ledger: LiveLedger, voucher: Voucher) -> bool:
    """Whether the voucher held is as new as this one. Raises VOUCHER_CONFLICT where one amount grew, one fell."""
    return ledger.voucher is not None and ledger.voucher.covers(voucher)


def read_voucher(packed: bytes, key: LedgerKey) -> Signed[Voucher]:
    """A packed voucher that names this ledger; who signed it is not judged. Raises MALFORMED, VOUCHER_CONFLICT."""
    signed = Signed.unpack(Voucher, packed)
    value = signed.value
    if (value.payer, value.node, value.pipeline_id) != (key.payer, key.node, key.pipeline):
        raise OpenLoraError(ErrorCode.VOUCHER_CONFLICT, "the voucher names another payer, node or pipeline")
    return signed
