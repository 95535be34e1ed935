"""A read-only view of a journal, for the CLI and for answering queries: it can neither write nor block the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from ..protocol.structs import Receipt, Request
from .backup import back_up
from .binding import read_binding
from .books import LEDGER_COLUMNS, Account, Books, ledger_of
from .database import Transaction, connect, scalar, storage_errors
from .integrity import violations
from .pipelines import KnownPipeline, pipeline_of
from .receipts import receipt_of
from .schema import bundled, check_version
from .values import Binding, Ledger, LedgerKey, RequestState, StoredReceipt

MAX_VIOLATIONS = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """How much a journal holds."""

    schema: int
    running: int
    interrupted: int
    receipts: int
    ledgers: int
    newest_seq: int | None


class Reader:
    """Synchronous and bound to no thread, but used by one at a time. Each method sees the newest commit.

    Raises OpenLoraError NOT_FOUND where there is no journal, JOURNAL_TOO_NEW, JOURNAL_CORRUPT, STORAGE_*.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise OpenLoraError(ErrorCode.NOT_FOUND, f"there is no journal named {path.name} here")
        with storage_errors():
            self._connection = connect(path, "ro")
            try:
                self.schema = bundled()[-1].version
                self.binding = _binding_of(self._connection, self.schema)
            except BaseException:
                self._connection.close()
                raise
        self._view = Transaction(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def summary(self) -> Summary:
        """Counts over the whole journal."""
        with self._snapshot():
            states = dict(self._view.all("SELECT state, count(*) FROM requests GROUP BY state"))
            return Summary(
                schema=self.schema,
                running=states.get(RequestState.RUNNING, 0),
                interrupted=states.get(RequestState.INTERRUPTED, 0),
                receipts=scalar(self._connection, "SELECT count(*) FROM receipts"),
                ledgers=scalar(self._connection, "SELECT count(*) FROM ledgers"),
                newest_seq=scalar(self._connection, "SELECT max(seq) FROM receipts"),
            )

    def request_state(self, digest: Digest) -> RequestState | None:
        """Where a request stands; None if it is unknown or forgotten."""
        with storage_errors():
            row = self._view.one("SELECT state FROM requests WHERE digest = ?", digest)
        return None if row is None else RequestState(row[0])

    def receipt(self, request_digest: Digest) -> StoredReceipt | None:
        """The receipt of a request."""
        with storage_errors():
            return receipt_of(self._view, request_digest)

    def receipts(self, node: bytes, after_seq: int, limit: int) -> list[StoredReceipt]:
        """A node's receipts past `after_seq` in the order of the chain, at most `limit`."""
        with storage_errors():
            rows = self._view.all(
                "SELECT signed, digest, salt FROM receipts WHERE node = ? AND seq > ? ORDER BY seq LIMIT ?",
                node, after_seq, limit,
            )  # fmt: skip
        return [StoredReceipt(Signed.unpack(Receipt, signed), Digest(digest), salt) for signed, digest, salt in rows]

    def receipt_at(self, node: bytes, seq: int) -> StoredReceipt | None:
        """The first receipt of a node with this sequence number or a later one."""
        found = self.receipts(node, seq - 1, 1)
        return found[0] if found else None

    def newest_receipt(self, node: bytes) -> StoredReceipt | None:
        """The newest receipt of a node."""
        found = self.newest_receipts(node, 1)
        return found[0] if found else None

    def newest_receipts(self, node: bytes, limit: int) -> list[StoredReceipt]:
        """A node's newest receipts, newest first, at most `limit`."""
        with storage_errors():
            rows = self._view.all(
                "SELECT signed, digest, salt FROM receipts WHERE node = ? ORDER BY seq DESC LIMIT ?", node, limit
            )
        return [StoredReceipt(Signed.unpack(Receipt, signed), Digest(digest), salt) for signed, digest, salt in rows]

    def newest_paid(self, limit: int) -> list[StoredReceipt]:
        """A payer's newest receipts, of whatever nodes, newest request first, at most `limit`."""
        with storage_errors():
            rows = self._view.all(
                "SELECT r.signed, r.digest, r.salt FROM spends s JOIN receipts r ON r.request_digest = s.request_digest"
                " ORDER BY s.at DESC, r.seq DESC LIMIT ?", limit,
            )  # fmt: skip
        return [StoredReceipt(Signed.unpack(Receipt, signed), Digest(digest), salt) for signed, digest, salt in rows]

    def nodes(self) -> list[bytes]:
        """The nodes that rows of this journal name."""
        with storage_errors():
            return [row[0] for row in self._view.all("SELECT DISTINCT node FROM accounts")]

    def find_receipts(self, prefix: bytes, limit: int) -> list[StoredReceipt]:
        """Receipts whose own or whose request's digest begins with `prefix`, in the order of the chain."""
        past = (int.from_bytes(prefix.ljust(32, b"\0"), "big") + (1 << 8 * (32 - len(prefix)))) if prefix else 1 << 256
        end = past.to_bytes(33, "big")[1:] if past < 1 << 256 else b"\xff" * 33
        with storage_errors():
            rows = self._view.all(
                "SELECT signed, digest, salt FROM receipts WHERE (digest >= ? AND digest < ?)"
                " OR (request_digest >= ? AND request_digest < ?) ORDER BY seq LIMIT ?",
                prefix, end, prefix, end, limit,
            )  # fmt: skip
        return [StoredReceipt(Signed.unpack(Receipt, signed), Digest(digest), salt) for signed, digest, salt in rows]

    def request(self, digest: Digest) -> tuple[Signed[Request], Address] | None:
        """A request and who signed it."""
        with storage_errors():
            row = self._view.one("SELECT signed, signer FROM requests WHERE digest = ?", digest)
        return None if row is None else (Signed.unpack(Request, row[0]), Address(row[1]))

    def pipeline(self, pipeline: bytes) -> KnownPipeline | None:
        """The pipeline under an id, if a request was ever admitted for it."""
        with storage_errors():
            return pipeline_of(self._view, pipeline)

    def evidence(self, node: bytes, seq: int) -> bytes:
        """What was kept beside a receipt; empty for one without."""
        with storage_errors():
            row = self._view.one("SELECT data FROM evidence WHERE node = ? AND seq = ?", node, seq)
        return b"" if row is None else bytes(row[0])

    def account(self, payer: bytes, node: bytes) -> Account:
        """A payer's sums with one node."""
        with storage_errors():
            return Books(self._view).account(payer, node)

    def ledger(self, key: LedgerKey) -> Ledger:
        """One ledger, empty if there is none under this key."""
        with storage_errors():
            return Books(self._view).ledger(key)

    def ledgers(self, payer: bytes, node: bytes, limit: int) -> list[Ledger]:
        """A payer's ledgers with one node, at most `limit`."""
        with storage_errors():
            rows = self._view.all(
                f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE payer = ? AND node = ? LIMIT ?",  # noqa: S608 - a constant
                payer, node, limit,
            )  # fmt: skip
        return [ledger_of(row) for row in rows]

    def open_receipts(self, key: LedgerKey, limit: int) -> list[StoredReceipt]:
        """The newest receipts of a ledger that its newest voucher does not cover yet, newest first."""
        with self._snapshot():
            ledger = Books(self._view).ledger(key)
            rows = self._view.all(
                "SELECT signed, digest, salt FROM receipts WHERE payer = ? AND node = ? AND signer = ? AND pipeline = ?"
                " ORDER BY seq DESC LIMIT ?",
                key.payer, key.node, key.signer, key.pipeline, limit,
            )  # fmt: skip
        found: list[StoredReceipt] = []
        # The two amounts pay different people: a receipt is open while either of its parts may be.
        compute, royalties = ledger.uncovered if ledger.owed else (0, 0)
        for signed, digest, salt in rows:
            if compute <= 0 and royalties <= 0:
                break
            found.append(StoredReceipt(Signed.unpack(Receipt, signed), Digest(digest), salt))
            compute -= found[-1].receipt.value.compute
            royalties -= found[-1].receipt.value.royalties
        return found

    def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run a reading operation of this package on one state."""
        with self._snapshot():
            return operation(self._view)

    def violations(self, deep: bool = False) -> list[str]:
        """The first `MAX_VIOLATIONS` things that are wrong, each as what and where."""
        with self._snapshot():
            return list(islice(violations(self._connection, self.binding, deep), MAX_VIOLATIONS))

    def check_integrity(self, deep: bool = False) -> None:
        """Raises OpenLoraError JOURNAL_CORRUPT with the first violation and how many there are."""
        if found := self.violations(deep):
            raise OpenLoraError(
                ErrorCode.JOURNAL_CORRUPT, f"{found[0]} ({len(found)} found): keep the file, restore the newest backup"
            )

    def back_up(self, target: Path) -> None:
        """Copy the journal to `target` while it is in use. Never replaces a file."""
        with storage_errors():
            back_up(self._connection, target)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Several reads of one state."""
        with storage_errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def _binding_of(connection: sqlite3.Connection, schema: int) -> Binding:
    if check_version(connection, schema) < schema:
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "the journal has an older schema: start the daemon once")
    binding = read_binding(connection)
    if binding is None:
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "the journal was never opened by a daemon")
    return binding
