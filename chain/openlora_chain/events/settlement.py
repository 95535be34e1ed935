"""What the settlement tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ThawStarted:
    """Settlement: a payer takes escrow out; `thawing` is the new total, all of it until `thaw_end`."""

    payer: bytes
    node: bytes
    amount: int
    thawing: int
    thaw_end: int


@dataclass(frozen=True, slots=True)
class SignerAuthorized:
    """Settlement: a key signs for a payer from now on."""

    payer: bytes
    signer: bytes


@dataclass(frozen=True, slots=True)
class SignerThawing:
    """Settlement: a key stops signing at `ends_at`."""

    payer: bytes
    signer: bytes
    ends_at: int


@dataclass(frozen=True, slots=True)
class VoucherRedeemed:
    """Settlement: a voucher was accepted and paid as far as escrow reached."""

    payer: bytes
    node: bytes
    pipeline: bytes
    signer: bytes
    cumulative_tokens: int
    cumulative_compute: int
    operator_paid: int
    protocol_paid: int
    royalties_paid: int
    reference_digest: bytes


@dataclass(frozen=True, slots=True)
class DebtCollected:
    """Settlement: a channel's debt was paid as far as escrow reached."""

    payer: bytes
    node: bytes
    pipeline: bytes
    signer: bytes
    operator_paid: int
    protocol_paid: int
    royalties_paid: int


@dataclass(frozen=True, slots=True)
class VoucherSkipped:
    """Settlement: item `index` of a batch was left out; `reason` is the error's 4-byte selector."""

    index: int
    node: bytes
    reason: bytes


@dataclass(frozen=True, slots=True)
class PipelineSkipped:
    """Settlement: pipeline `index` of a batch was left out."""

    index: int
    pipeline: bytes
    reason: bytes


@dataclass(frozen=True, slots=True)
class PipelineRegistered:
    """Settlement: a pipeline's parts were shown: (base, version, [(adapter, version, weight)], method)."""

    pipeline: bytes
    parts: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Harvested:
    """Settlement: the royalties of a (node, pipeline) were shared out up to this sum."""

    node: bytes
    pipeline: bytes
    harvested: int


@dataclass(frozen=True, slots=True)
class OperatorPaid:
    """Settlement: a node's earnings were paid."""

    node: bytes
    recipient: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class OwnerPaid:
    """Settlement: an artifact owner was paid."""

    owner: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class SharePaid:
    """Settlement: a contributor was paid out of static shares."""

    dataset: bytes
    contributor: bytes
    bps: int
    amount: int


@dataclass(frozen=True, slots=True)
class CreditPaid:
    """Settlement: a contributor was paid credits."""

    node: bytes
    dataset: bytes
    contributor: bytes
    amount: int


EVENTS = (
    ThawStarted,
    SignerAuthorized,
    SignerThawing,
    VoucherRedeemed,
    DebtCollected,
    VoucherSkipped,
    PipelineSkipped,
    PipelineRegistered,
    Harvested,
    OperatorPaid,
    OwnerPaid,
    SharePaid,
    CreditPaid,
)
