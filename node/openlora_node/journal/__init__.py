"""What must survive a crash: nonces, reservations, receipts, vouchers, debts, in one SQLite file."""

from .books import Account
from .database import OnStep
from .journal import MAX_LIVE_NONCES, Clock, Journal
from .pipelines import KnownPipeline
from .reader import Reader, Summary
from .receipts import Build
from .values import (
    Admission,
    Admitted,
    Advanced,
    AlreadyDone,
    AlreadyRunning,
    Binding,
    EscrowSnapshot,
    Ignored,
    Ledger,
    LedgerKey,
    ReceiptDraft,
    ReceiptSlot,
    RequestState,
    Role,
    StoredReceipt,
    VoucherEntry,
)

__all__ = [
    "MAX_LIVE_NONCES",
    "Account",
    "Admission",
    "Admitted",
    "Advanced",
    "AlreadyDone",
    "AlreadyRunning",
    "Binding",
    "Build",
    "Clock",
    "EscrowSnapshot",
    "Ignored",
    "Journal",
    "KnownPipeline",
    "Ledger",
    "LedgerKey",
    "OnStep",
    "Reader",
    "ReceiptDraft",
    "ReceiptSlot",
    "RequestState",
    "Role",
    "StoredReceipt",
    "Summary",
    "VoucherEntry",
]
