"""A payer's own proofs: fetches a receipt's leaves and its path to the anchored root from the node that signed it."""

from __future__ import annotations

import asyncio

from ..attribution.bundle import Bundle, check
from ..journal.database import Transaction
from ..journal.values import StoredReceipt
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import ErrorReply, GetProof, Proof
from ..protocol.structs import AccountQuery, Receipt
from .ports import Accounts
from .purse import Purse

ANSWER_TIMEOUT_S = 20.0


class Proofs:
    """Asks nodes, and takes nothing that does not hold."""

    def __init__(self, purse: Purse, accounts: Accounts) -> None:
        self._purse = purse
        self._accounts = accounts

    async def fetch(self, digest: bytes) -> bytes:
        """The bundle of a receipt of ours, as `openlora receipts verify` takes it.

        Raises NOT_FOUND for a receipt that this journal does not hold or whose epoch is open, NODE_LOST, what the node
        says; RECEIPT_INVALID where its leaves do not lead to the receipt's roots or do not add up to its fee.
        """
        stored = await self._purse.journal.transact(lambda tx: _receipt(tx, digest))
        if stored is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "no response with this receipt was paid from here")
        node = stored.receipt.value.node
        conversation = await self._accounts.talk(node)
        try:
            query = AccountQuery(payer=self._purse.payer, node=node, issued_at=self._purse.clock())
            signed = query.sign(self._purse.domain, self._purse.signer)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await conversation.send(GetProof(query=signed.pack(), receipt=digest))
                reply = await conversation.receive()
        except TimeoutError:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the node sends no proof") from None
        finally:
            await conversation.close()
        if reply is None:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the node ended the session")
        if isinstance(reply, ErrorReply):
            raise reply.error()
        if not isinstance(reply, Proof):
            raise ProtocolError(ErrorCode.MALFORMED, "the node answered with something else than a proof")
        bundle = Bundle.decode(reply.bundle)
        if bundle.receipt.pack() != stored.receipt.pack():
            raise ProtocolError(ErrorCode.RECEIPT_INVALID, "the node proves another receipt than the one asked for")
        check(bundle, self._purse.domain)
        return reply.bundle


def _receipt(tx: Transaction, digest: bytes) -> StoredReceipt | None:
    row = tx.one("SELECT signed, digest, salt FROM receipts WHERE digest = ?", digest)
    return None if row is None else StoredReceipt(Signed.unpack(Receipt, row[0]), row[1], row[2])
