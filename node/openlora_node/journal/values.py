"""What goes into and comes out of the journal, as values. Knows no SQL and no clock.

Amounts are wei. A ledger is what one signer owes one node for one pipeline on behalf of one payer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import Digest
from ..protocol.pricing import MAX_WEI, Tally
from ..protocol.structs import Receipt, Request, Voucher


class Role(StrEnum):
    """Whose memory a journal is."""

    NODE = "node"
    PAYER = "payer"


@dataclass(frozen=True)
class Binding:
    """What a journal belongs to, for life: one domain, and one node (its 32-byte id) or one payer (its address)."""

    domain: Domain
    role: Role
    owner: bytes

    @classmethod
    def to_node(cls, domain: Domain, node: bytes) -> Binding:
        """A node's journal: every row names this node."""
        return cls(domain, Role.NODE, node)

    @classmethod
    def to_payer(cls, domain: Domain, payer: bytes) -> Binding:
        """A gateway's journal: every row names this payer."""
        return cls(domain, Role.PAYER, payer)

    def __post_init__(self) -> None:
        width = 32 if self.role == Role.NODE else 20
        if type(self.owner) is not bytes or len(self.owner) != width:
            raise ProtocolError(ErrorCode.BAD_ID, f"the journal of a {self.role} is bound to {width} bytes")

    def covers(self, payer: bytes, node: bytes) -> bool:
        """Whether rows of this payer and node belong here."""
        return self.owner == (node if self.role == Role.NODE else payer)


class RequestState(StrEnum):
    """`running` holds a reservation; `interrupted` may be admitted again until it expires; `done` has a receipt."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    DONE = "done"


@dataclass(frozen=True)
class LedgerKey:
    """Who pays whom for what. Vouchers are cumulative within one key."""

    payer: bytes
    node: bytes
    signer: bytes
    pipeline: bytes

    @classmethod
    def of(cls, struct: Request | Voucher | Receipt, signer: bytes) -> LedgerKey:
        """The ledger that a signed struct counts in."""
        return cls(struct.payer, struct.node, signer, struct.pipeline_id)


@dataclass(frozen=True)
class Ledger:
    """One ledger as it stands. `tally` and `fee` sum the committed receipts, `reserved` the running requests."""

    key: LedgerKey
    tally: Tally = field(default_factory=Tally)
    fee: int = 0
    reserved: int = 0
    voucher: bytes | None = None
    """The newest voucher, packed with its signature."""
    voucher_compute: int = 0
    """The compute of the newest voucher."""
    voucher_value: int = 0
    """Its compute and the royalties of its tokens."""
    redeemed: int = 0
    """What the chain has paid for vouchers of this ledger, cumulative."""

    @property
    def newest_voucher(self) -> Signed[Voucher] | None:
        """The newest voucher, unpacked."""
        return None if self.voucher is None else Signed.unpack(Voucher, self.voucher)

    @property
    def exposure(self) -> int:
        """The most that the escrow may still have to pay for what has been committed, reserved or vouchered.

        A voucher given while a request runs prepays part of its reservation: the two are not added.
        """
        return max(0, max(self.fee + self.reserved, self.voucher_value + self.owed) - self.redeemed)

    @property
    def owed(self) -> int:
        """Committed fees that no voucher covers yet, compute and royalties judged apart (see `pricing.Tally.owed`).

        What was redeemed was vouchered, even if the voucher is lost.
        """
        owed = sum(self.uncovered)
        return owed if self.redeemed <= self.voucher_value else min(owed, max(0, self.fee - self.redeemed))

    @property
    def uncovered(self) -> tuple[int, int]:
        """Compute and royalties of the committed receipts beyond what the newest voucher holds of each."""
        royalties = self.fee - self.tally.compute
        return (
            max(0, self.tally.compute - self.voucher_compute),
            max(0, royalties - (self.voucher_value - self.voucher_compute)),
        )


@dataclass(frozen=True)
class EscrowSnapshot:
    """A payer's escrow with one node, read from the chain no earlier than the newest recorded redemption."""

    balance: int
    thawing: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.thawing <= self.balance <= MAX_WEI:
            raise ProtocolError(ErrorCode.BAD_AMOUNT, "an escrow thaws between nothing and its whole balance")


@dataclass(frozen=True)
class VoucherEntry:
    """A voucher whose signature was checked: who signed it, and what it is worth in wei under its pipeline's terms."""

    voucher: Signed[Voucher]
    signer: Address
    value: int


@dataclass(frozen=True)
class Admitted:
    """The request runs now and holds `reserved` wei of the escrow."""

    digest: Digest
    reserved: int


@dataclass(frozen=True)
class AlreadyRunning:
    """The very same request runs: attach to its stream. Nothing was written."""

    digest: Digest


@dataclass(frozen=True)
class StoredReceipt:
    """A committed receipt and the salt of its Merkle leaf."""

    receipt: Signed[Receipt]
    digest: Digest
    salt: bytes


@dataclass(frozen=True)
class AlreadyDone:
    """The very same request has a receipt: it is never run or charged again. Nothing was written."""

    digest: Digest
    stored: StoredReceipt


Admission = Admitted | AlreadyRunning | AlreadyDone


@dataclass(frozen=True)
class ReceiptSlot:
    """The place in the chain that the next receipt must fill, and what its ledger held before."""

    request: Signed[Request]
    request_digest: Digest
    seq: int
    previous: Digest
    before: Tally


@dataclass(frozen=True)
class ReceiptDraft:
    """A signed receipt for a slot, the 32-byte salt of its leaf, and the ledger's tally after it."""

    receipt: Signed[Receipt]
    salt: bytes
    after: Tally
    evidence: bytes = b""
    """Kept beside the receipt as it stands: the leaves behind its two roots."""


@dataclass(frozen=True)
class Advanced:
    """The voucher is the newest of its ledger and is stored."""

    ledger: Ledger


@dataclass(frozen=True)
class Ignored:
    """A voucher at least as new is already stored. Nothing was written."""

    ledger: Ledger
