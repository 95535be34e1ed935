"""Signed requests, receipts and vouchers for tests of the journal, and a clock that a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from openlora_node.journal import (
    Binding,
    Build,
    EscrowSnapshot,
    Journal,
    LedgerKey,
    ReceiptDraft,
    ReceiptSlot,
    VoucherEntry,
)
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import Receipt, ReceiptStatus, Request, Voucher

DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x5e" * 20)
NODE = b"\x11" * 32
PIPELINE = b"\x22" * 32
NOW = 1_750_000_000
RICH = EscrowSnapshot(10**30)
NODE_BINDING = Binding.to_node(DOMAIN, NODE)


@cache
def signer(index: int) -> LocalSigner:
    """Key number `index`."""
    return LocalSigner((index + 1).to_bytes(32, "big"))


NODE_KEY = signer(999)


@dataclass
class Clock:
    """Unix seconds, as far as the test moves them."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now


def open_journal(path: Path, clock: Clock | None = None, **options: object) -> Journal:
    """The journal of `NODE`."""
    return Journal.open(path, NODE_BINDING, clock or Clock(), **options)  # type: ignore[arg-type]


def request(
    nonce: int,
    *,
    payer: int = 0,
    max_fee: int = 1_000,
    pipeline: bytes = PIPELINE,
    issued_at: int = NOW,
    node: bytes = NODE,
    max_tokens: int = 100,
) -> Signed[Request]:
    """Request number `nonce` of payer number `payer`, signed by the payer."""
    return Request(
        payer=signer(payer).address,
        node=node,
        pipeline_id=pipeline,
        quote_digest=b"\x33" * 32,
        body_hash=b"\x44" * 32,
        max_fee=max_fee,
        max_tokens=max_tokens,
        nonce=nonce.to_bytes(32, "big"),
        issued_at=issued_at,
        expires_at=issued_at + 300,
    ).sign(DOMAIN, signer(payer))


def digest_of(signed: Signed[Request]) -> Digest:
    """The digest of a request."""
    return Digest(signed.value.digest(DOMAIN))


def key_of(payer: int = 0, pipeline: bytes = PIPELINE, node: bytes = NODE) -> LedgerKey:
    """The ledger of a payer that signs for itself."""
    address = signer(payer).address
    return LedgerKey(address, node, address, pipeline)


@dataclass
class Builder:
    """Builds receipts of `tokens` tokens at `micro` micro-wei of compute each and `royalty` wei each; counts calls."""

    tokens: int = 10
    micro: int = 1_500_000
    royalty: int = 2
    status: ReceiptStatus = ReceiptStatus.COMPLETE
    finished_at: int = NOW
    slots: list[ReceiptSlot] = field(default_factory=list)

    def __call__(self, slot: ReceiptSlot) -> ReceiptDraft:
        self.slots.append(slot)
        free = self.status == ReceiptStatus.FAILED
        tokens = 0 if free else self.tokens
        grown = Tally(slot.before.tokens + self.tokens, slot.before.compute_micro_wei + self.tokens * self.micro)
        after = slot.before if free else grown
        receipt = Receipt(
            request_digest=slot.request_digest,
            payer=slot.request.value.payer,
            node=slot.request.value.node,
            pipeline_id=slot.request.value.pipeline_id,
            status=self.status,
            engine_digest=b"\x55" * 32,
            prompt_tokens=tokens // 2,
            completion_tokens=tokens - tokens // 2,
            output_hash=b"\x66" * 32,
            attribution_root=ZERO32,
            commitment_root=ZERO32,
            compute=after.compute - slot.before.compute,
            royalties=0 if free else self.tokens * self.royalty,
            started_at=self.finished_at,
            finished_at=self.finished_at,
            seq=slot.seq,
            previous=slot.previous,
        )
        return ReceiptDraft(receipt.sign(DOMAIN, NODE_KEY), b"\x77" * 32, after)


def voucher(
    tokens: int,
    compute: int,
    *,
    payer: int = 0,
    by: int | None = None,
    royalty: int = 2,
    pipeline: bytes = PIPELINE,
    reference: bytes = ZERO32,
    node: bytes = NODE,
) -> VoucherEntry:
    """A voucher for these cumulative amounts, worth compute and `royalty` wei a token."""
    key = signer(payer if by is None else by)
    value = Voucher(
        payer=signer(payer).address,
        node=node,
        pipeline_id=pipeline,
        cumulative_tokens=tokens,
        cumulative_compute=compute,
        reference_digest=reference,
    )
    return VoucherEntry(value.sign(DOMAIN, key), key.address, compute + tokens * royalty)


async def admit(journal: Journal, signed: Signed[Request], escrow: EscrowSnapshot = RICH, **options: object) -> object:
    """Admit a request that its payer signed."""
    return await journal.admit(signed, signed.signer(DOMAIN), escrow, **options)  # type: ignore[arg-type]


async def respond(journal: Journal, signed: Signed[Request], build: Build | None = None, **options: object) -> object:
    """Admit a request and commit its receipt."""
    await admit(journal, signed, **options)  # type: ignore[arg-type]
    return await journal.commit_receipt(digest_of(signed), build or Builder())
