"""The door: decides whether one signed request may enter. Pure: no clock, no I/O, no chain.

`examine` turns bytes into a signed request, `may_use` and `can_pay` judge it with what the
caller looked up. docs/serving.md lists the checks in order.
"""

from .checks import FindQuote, examine, signer_of
from .entry import PartStanding, Purse, Standing, can_pay, may_use
from .rates import Rates
from .values import Admitted, Claim, House, Knock, OpenQuote, Refusal, Visitor
from .vouchers import LedgerState, OpenRun, accept, newest

__all__ = [
    "Admitted",
    "Claim",
    "FindQuote",
    "House",
    "Knock",
    "LedgerState",
    "OpenQuote",
    "OpenRun",
    "PartStanding",
    "Purse",
    "Rates",
    "Refusal",
    "Standing",
    "Visitor",
    "accept",
    "can_pay",
    "examine",
    "may_use",
    "newest",
    "signer_of",
]
