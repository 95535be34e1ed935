"""The receipt of one response: what it cost, who it was made with, signed for its place in the node's chain. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..journal import ReceiptDraft, ReceiptSlot
from ..protocol.crypto import Signer
from ..protocol.eip712 import Domain
from ..protocol.ids import ZERO32
from ..protocol.pricing import ComputeRates, RoyaltySchedule, charge
from ..protocol.structs import Receipt, ReceiptStatus, output_hash
from . import leaves
from .evidence import Evidence
from .parts import Output, Part, Sampling


@dataclass(frozen=True)
class Outcome:
    """What is known of a response when it ended. Times are unix seconds, prices those of its quote."""

    status: ReceiptStatus
    signer: bytes
    """Who signed the request."""
    rates: ComputeRates
    schedule: RoyaltySchedule
    settlement_charge: int
    parts: tuple[Part, ...]
    sampling: Sampling
    output: Output
    prompt_tokens: int
    engine_digest: bytes
    started_at: int
    finished_at: int
    salt: bytes
    """32 random bytes."""


def build_receipt(slot: ReceiptSlot, outcome: Outcome, domain: Domain, key: Signer) -> ReceiptDraft:
    """Fill the slot. Runs inside the journal's transaction: no I/O, no waiting. Raises BAD_AMOUNT beyond 2^128 wei."""
    if outcome.status == ReceiptStatus.FAILED:
        return _failed(slot, outcome, domain, key)
    output = outcome.output
    charged = charge(
        slot.before, outcome.schedule, outcome.rates, outcome.prompt_tokens, output.count, outcome.settlement_charge
    )
    evidence = Evidence(
        leaves.attribution(outcome.parts, outcome.schedule, slot.before, charged, outcome.signer, outcome.salt),
        leaves.commitment(outcome.sampling, output, outcome.salt),
    )
    receipt = Receipt(
        **_common(slot, outcome),
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=output.count,
        output_hash=output_hash(output.token_ids),
        attribution_root=leaves.root(evidence.attribution),
        commitment_root=leaves.root(evidence.commitment),
        compute=charged.compute,
        royalties=charged.royalties,
    )
    return ReceiptDraft(receipt.sign(domain, key), outcome.salt, charged.after, evidence.pack())


def _failed(slot: ReceiptSlot, outcome: Outcome, domain: Domain, key: Signer) -> ReceiptDraft:
    evidence = Evidence(leaves.signer_alone(outcome.signer, outcome.salt))
    receipt = Receipt(
        **_common(slot, outcome),
        prompt_tokens=0,
        completion_tokens=0,
        output_hash=output_hash(()),
        attribution_root=leaves.root(evidence.attribution),
        commitment_root=ZERO32,
        compute=0,
        royalties=0,
    )
    return ReceiptDraft(receipt.sign(domain, key), outcome.salt, slot.before, evidence.pack())


def _common(slot: ReceiptSlot, outcome: Outcome) -> dict[str, Any]:
    request = slot.request.value
    return {
        "request_digest": slot.request_digest,
        "payer": request.payer,
        "node": request.node,
        "pipeline_id": request.pipeline_id,
        "status": outcome.status,
        "engine_digest": outcome.engine_digest,
        "started_at": outcome.started_at,
        "finished_at": max(outcome.started_at, outcome.finished_at),
        "seq": slot.seq,
        "previous": slot.previous,
    }
