"""Questions to a node about our account there, over `/openlora/voucher/1`: signed, one question, one answer in time."""

from __future__ import annotations

import asyncio

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import ErrorReply, GetAccount, GetProof, Proof, PutVoucher
from ..protocol.structs import AccountQuery
from .ports import Conversation
from .purse import Purse

ANSWER_TIMEOUT_S = 15.0


def signed_query(purse: Purse, node: bytes) -> bytes:
    """What shows a node that we may ask; it holds for a minute."""
    query = AccountQuery(payer=purse.payer, node=node, issued_at=purse.clock())
    return query.sign(purse.domain, purse.signer).pack()


async def ask(conversation: Conversation, question: GetAccount | PutVoucher | GetProof) -> object:
    """The answer. Raises what the node says, NODE_LOST where it does not answer in time."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await conversation.send(question)
            reply = await conversation.receive()
    except TimeoutError:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the node does not answer about our account") from None
    if reply is None:
        raise OpenLoraError(ErrorCode.NODE_LOST, "the node ended the session about our account")
    if isinstance(reply, ErrorReply):
        raise reply.error()
    return reply


async def ask_proof(conversation: Conversation, query: bytes, receipt: bytes) -> Proof:
    """What proves a receipt of ours, by its digest. Raises as `ask`, MALFORMED for another answer."""
    reply = await ask(conversation, GetProof(query=query, receipt=receipt))
    if not isinstance(reply, Proof):
        raise ProtocolError(ErrorCode.MALFORMED, "the node answered with something else than a proof")
    return reply
