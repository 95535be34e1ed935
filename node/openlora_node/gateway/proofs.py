"""Proofs of a payer's own receipts: all is in its journal but the path to the anchored root, which the node shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attribution import Bundle, Evidence
from ..attribution.bundle import check
from ..journal import Reader, spending
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import Digest, format_bytes
from ..protocol.messages import Proof
from ..protocol.pipeline import Pipeline
from ..protocol.structs import Receipt, Request
from .accounts import ask_proof, signed_query
from .ports import Accounts
from .purse import Purse

AnchoredRoot = Callable[[bytes, int], Awaitable[bytes]]
"""(node, epoch) → the root that the chain holds, 32 zero bytes while there is none. Raises CHAIN_FAILED."""


@dataclass(frozen=True)
class Proven:
    """A bundle as anyone verifies it offline, and where on the chain its root stands."""

    bundle: Bundle
    epoch: int
    root: bytes
    """Where its path leads."""
    anchored: bool
    """Whether the chain holds that root already: a node anchors within a few blocks of the epoch's end."""

    def to_json(self) -> dict[str, Any]:
        """As the gateway's endpoint answers. `bundle` is text: the exact bytes of the file that anyone verifies."""
        return {
            "bundle": self.bundle.encode().decode(),
            "epoch": self.epoch,
            "root": format_bytes(self.root),
            "anchored": self.anchored,
        }


@dataclass(frozen=True)
class _Held:
    """A receipt with what the journal knows of it."""

    receipt: Signed[Receipt]
    request: Signed[Request]
    pipeline: Pipeline
    salt: bytes
    evidence: bytes


class Proofs:
    """Completes what the journal holds. Asks nodes, and takes nothing that does not hold."""

    def __init__(self, purse: Purse, accounts: Accounts, anchored: AnchoredRoot) -> None:
        self._purse = purse
        self._accounts = accounts
        self._anchored = anchored

    async def fetch(self, digest: bytes) -> Proven:
        """The proof of a receipt of ours.

        Raises NOT_FOUND for a receipt that this journal does not hold or whose epoch is open, NODE_LOST, what the node
        says, CHAIN_FAILED; RECEIPT_INVALID where what it shows is not what it signed or anchored.
        """
        held = await asyncio.to_thread(_held, self._purse.journal.path, digest)
        node = held.receipt.value.node
        conversation = await self._accounts.talk(node)
        try:
            proof = await ask_proof(conversation, signed_query(self._purse, node), digest)
        finally:
            await conversation.close()
        if not proof.closed:
            raise OpenLoraError(
                ErrorCode.NOT_FOUND, f"epoch {proof.epoch} of this receipt is still open: ask again once it is over"
            )
        return await self._complete(held, proof)

    async def _complete(self, held: _Held, proof: Proof) -> Proven:
        if held.evidence:
            evidence, salt = Evidence.unpack(held.evidence, held.salt), held.salt
        else:  # kept by a version that was not shown any leaves
            evidence, salt = Evidence.read(proof.evidence, proof.salt), proof.salt
        bundle = Bundle(held.request, held.pipeline, held.receipt, salt, proof.path, evidence)
        check(bundle, self._purse.domain)
        root = bundle.root(self._purse.domain)
        anchored = await self._anchored(held.receipt.value.node, proof.epoch)
        if any(anchored) and anchored != root:
            raise ProtocolError(
                ErrorCode.RECEIPT_INVALID,
                f"the node anchored another root for epoch {proof.epoch} than this receipt leads to",
            )
        return Proven(bundle, proof.epoch, root, any(anchored))


def _held(journal: Path, digest: bytes) -> _Held:
    """In a thread: SQLite may wait for the disk."""
    with Reader(journal) as reader:
        found = [stored for stored in reader.find_receipts(digest, 2) if stored.digest == digest]
        if not found:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "no response with this receipt was paid from here")
        (stored,) = found
        value = stored.receipt.value
        request = reader.request(Digest(value.request_digest))
        spend = reader.read(lambda tx: spending.find(tx, value.request_digest))
        if request is None or spend is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "the journal lacks the request of this receipt")
        evidence = reader.evidence(value.node, value.seq)
    return _Held(stored.receipt, request[0], Pipeline.unpack(spend.preimage), stored.salt, evidence)
