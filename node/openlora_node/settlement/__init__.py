"""Settlement: vouchers become money, receipts become anchors, royalties reach their owners."""

from .accounting import Totals, earnings_rows, read_totals, write_csv
from .chores import EpochsLike, Sending
from .decisions import Decisions
from .leaves import Leaves
from .policy import Rules
from .sending import make_outbox
from .service import SettlementService, SettlementStatus

__all__ = [
    "Decisions",
    "EpochsLike",
    "Leaves",
    "Rules",
    "Sending",
    "SettlementService",
    "SettlementStatus",
    "Totals",
    "earnings_rows",
    "make_outbox",
    "read_totals",
    "write_csv",
]
