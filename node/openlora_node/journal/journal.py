"""The journal: every promise that outlives the process, one method each, one transaction each.

Nonces with their reservations, receipts, newest vouchers, debts. It checks no signature and computes no price; it knows
neither chain nor network. A method that returned is on disk; one that raised changed nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.structs import Request
from . import receipts, requests, vouchers
from .binding import bind, check_clock, seq_floor
from .books import Books, wei
from .database import OnStep, Transaction, connect, create_file, ignore_step, storage_errors
from .pipelines import KnownPipeline, pipeline_of
from .reader import Reader
from .schema import migrate
from .values import (
    Admission,
    Advanced,
    Binding,
    EscrowSnapshot,
    Ignored,
    Ledger,
    LedgerKey,
    ReceiptDraft,
    Role,
    StoredReceipt,
    VoucherEntry,
)
from .writer import MAX_QUEUED, Writer

T = TypeVar("T")
Clock = Callable[[], int]
"""Unix seconds; called from the writer's thread."""

MAX_LIVE_NONCES = 10_000
PRUNE_LIMIT = 1_000


class Journal:
    """An open journal. Its methods may be called concurrently from any asyncio loop; what waits commits together.

    A cancelled call either never ran or commits all the same: ask again with the same request to learn which.
    Every method may raise OpenLoraError BUSY (queue full), DRAINING (closing), STORAGE_* and JOURNAL_CORRUPT.
    """

    def __init__(self, path: Path, binding: Binding, clock: Clock, writer: Writer, floor: int, nonces: int) -> None:
        self.path = path
        self.binding = binding
        self._clock = clock
        self._writer = writer
        self._seq_floor = floor
        self._max_live_nonces = nonces

    @classmethod
    def open(
        cls,
        path: Path,
        binding: Binding,
        clock: Clock,
        *,
        max_live_nonces: int = MAX_LIVE_NONCES,
        max_queued: int = MAX_QUEUED,
        on_step: OnStep = ignore_step,
    ) -> Self:
        """Open or create the journal at `path`, migrate it, and start its writer. Blocks on the disk.

        The caller holds the lock of the data directory. Raises JOURNAL_TOO_NEW, JOURNAL_MISMATCH, JOURNAL_CORRUPT,
        CLOCK_WRONG, STORAGE_*; a refused journal is left as it was.
        """
        now = clock()
        with storage_errors():
            create_file(path)
            connection = connect(path, "rw")
            try:
                migrate(connection, path, now, on_step)
                bind(connection, binding, on_step)
                check_clock(connection, binding, now)
            except BaseException:
                connection.close()
                raise
        writer = Writer(connection, on_step, max_queued)
        writer.start()
        return cls(path, binding, clock, writer, seq_floor(now), max_live_nonces)

    async def close(self) -> None:
        """Commit what is queued, then close. May be called twice."""
        await asyncio.to_thread(self._writer.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def admit(
        self,
        request: Signed[Request],
        signer: Address,
        escrow: EscrowSnapshot,
        *,
        opening: VoucherEntry | None = None,
        debt_allowed: int = 0,
        pipeline: KnownPipeline | None = None,
    ) -> Admission:
        """Insert the nonce, keep the opening voucher and reserve `max_fee`, all or nothing.

        `signer` is who signed the request. `debt_allowed` (wei) lets a payer who runs requests side by side in while
        its closing vouchers are under way. `pipeline`, the request's, is kept under its id for the life of the journal.
        Raises NONCE_REUSED, REQUEST_EXPIRED, TOO_MANY_NONCES, DEBT_OUTSTANDING,
        ESCROW_TOO_LOW, VOUCHER_CONFLICT, WRONG_NODE.
        """
        self._check_ours(request.value.payer, request.value.node)
        digest = Digest(request.value.digest(self.binding.domain))
        entry = requests.Entry(request, digest, signer, escrow, opening, debt_allowed, pipeline)
        return await self.transact(lambda tx: requests.admit(tx, entry, self._clock(), self._max_live_nonces))

    async def interrupt(self, request_digest: Digest) -> bool:
        """Release the reservation of a request that will get no receipt; False if it was not running."""
        return await self.transact(lambda tx: requests.interrupt(tx, request_digest))

    async def interrupt_running(self) -> int:
        """At start-up, before the first `admit`: release what a lost process had reserved. Returns how many."""
        return await self.transact(requests.interrupt_running)

    async def prune(self) -> int:
        """Forget interrupted requests whose time is over, a bounded number a call. Returns how many."""
        return await self.transact(lambda tx: requests.prune(tx, self._clock(), PRUNE_LIMIT))

    async def commit_receipt(self, request_digest: Digest, build: receipts.Build) -> StoredReceipt:
        """Fill the next slot of this node's chain, release the reservation, advance the ledger.

        `build` runs inside the transaction, in the writer's thread: it computes the charge on `slot.before`, signs, and
        must not block or touch the journal. A request that has its receipt keeps it; `build` is not called again.
        Raises NOT_FOUND, RECEIPT_INVALID, and whatever `build` raises.
        """
        self._check_role(Role.NODE)
        domain, floor = self.binding.domain, self._seq_floor
        return await self.transact(lambda tx: receipts.commit_receipt(tx, domain, request_digest, floor, build))

    async def accept_receipt(self, request_digest: Digest, draft: ReceiptDraft) -> StoredReceipt:
        """For a payer: keep a receipt that a node sent and that was checked, and advance the ledger.

        Also closes a request that was interrupted here while the node ran it. Raises NOT_FOUND, RECEIPT_INVALID.
        """
        self._check_role(Role.PAYER)
        domain = self.binding.domain
        return await self.transact(lambda tx: receipts.accept_receipt(tx, domain, request_digest, draft))

    async def advance_voucher(self, entry: VoucherEntry) -> Advanced | Ignored:
        """Keep the newest voucher of its ledger. Opens the ledger if need be: check first that the pipeline is known.

        Raises VOUCHER_CONFLICT where one amount grew and the other fell, WRONG_NODE, BAD_AMOUNT.
        """
        self._check_ours(entry.voucher.value.payer, entry.voucher.value.node)
        return await self.transact(lambda tx: vouchers.advance_voucher(tx, entry))

    async def record_redeemed(self, key: LedgerKey, value: int) -> Ledger:
        """Note what the chain has paid for this ledger so far; lower values are ignored."""
        self._check_ours(key.payer, key.node)
        wei(value)
        return await self.transact(lambda tx: vouchers.record_redeemed(tx, key, value))

    async def owed(self, payer: bytes, node: bytes) -> int:
        """Committed fees of the payer with the node that no voucher covers yet, in wei."""
        return await self.transact(lambda tx: Books(tx).account(payer, node).owed)

    async def ledger(self, key: LedgerKey) -> Ledger:
        """One ledger, empty if there is none under this key."""
        return await self.transact(lambda tx: Books(tx).ledger(key))

    async def receipt(self, request_digest: Digest) -> StoredReceipt | None:
        """The receipt of a request, if it has one."""
        return await self.transact(lambda tx: receipts.receipt_of(tx, request_digest))

    async def pipeline(self, pipeline: bytes) -> KnownPipeline | None:
        """The pipeline under an id, if a request was ever admitted for it."""
        return await self.transact(lambda tx: pipeline_of(tx, pipeline))

    async def check_integrity(self, deep: bool = False) -> None:
        """See `Reader.check_integrity`; runs beside the writer on one committed state."""
        await asyncio.to_thread(self._check, deep)

    def _check(self, deep: bool) -> None:
        with Reader(self.path) as reader:
            reader.check_integrity(deep)

    async def transact(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation of this package in one transaction, so that rows of two rooms commit together."""
        return await asyncio.wrap_future(self._writer.submit(operation))

    def _check_ours(self, payer: bytes, node: bytes) -> None:
        if not self.binding.covers(payer, node):
            raise OpenLoraError(ErrorCode.WRONG_NODE)

    def _check_role(self, role: Role) -> None:
        if self.binding.role != role:
            raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, f"this is the journal of a {self.binding.role}")
