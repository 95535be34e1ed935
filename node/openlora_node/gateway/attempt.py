"""One attempt at one node: request, stream, payments, receipt, closing voucher. Drives `Progress` over a stream.

Nothing is sent before the purse has written it down, and nothing is paid that did not come. However an attempt ends,
its request ends in the journal: with a kept receipt, or given up with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..attribution import Evidence
from ..journal import EscrowSnapshot, StoredReceipt
from ..openai import parse_body
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.messages import Accepted, Done, Infer, InferMessage, Paused, Pay, Settled, Tokens
from ..protocol.pipeline import Pipeline
from ..protocol.structs import Receipt, ReceiptStatus
from .checking import Expected, check_receipt
from .evidence import Ordered, check_evidence
from .ledger_book import Amounts
from .offers import Offer
from .ports import Chain, Exchange
from .progress import Piece, Progress, Stage
from .purse import Purse, Ticket
from .wording import INLINE_TOKENS, Decode, check_text

ACCEPT_TIMEOUT_S = 30.0
"""Longest wait until the node has taken the request or refused it."""
SILENCE_S = 120.0
"""Longest wait for the next message: loading an adapter, or standing in the node's queue."""
AFTER_CANCEL_S = 15.0
SETTLED_TIMEOUT_S = 10.0
INLINE_BYTES = 4_096
"""Of leaves that are checked at once: a hundred take two milliseconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What one attempt asks for: the exact bytes of the body, and what was counted of it."""

    body: bytes
    pipeline: Pipeline
    model: str
    prompt_tokens: int
    max_tokens: int
    """Over all choices together."""
    decode: Decode
    choices: int = 1
    longest_token: int = 1 << 16
    """Characters that a token may stand for."""
    logprobs: int = 0
    """Log-probabilities asked for each token."""


@dataclass(frozen=True)
class Finished:
    """How a response ended. Amounts in wei."""

    stored: StoredReceipt
    finish_reason: str
    offer: Offer
    ticket: Ticket
    lengths: tuple[int, ...]
    """Generated tokens of each choice."""

    @property
    def receipt(self) -> Receipt:
        """The receipt that was kept."""
        return self.stored.receipt.value


Deliver = Callable[[Piece], Awaitable[None]]


class Attempt:
    """One signed request at one node."""

    def __init__(
        self,
        exchange: Exchange,
        purse: Purse,
        chain: Chain,
        order: Order,
        offer: Offer,
        on_accepted: Callable[[], None] = lambda: None,
    ) -> None:
        self._exchange = exchange
        self._purse = purse
        self._chain = chain
        self._order = order
        self._offer = offer
        self._on_accepted = on_accepted
        self._cancelled = False
        self._timer: asyncio.Timeout | None = None
        self.lost = 0
        """What the vouchers of a request that was given up are worth at most, in wei."""
        self._heard_at = 0.0
        """When the node last did something for its money, by the loop's clock."""
        self.progress = Progress(
            prompt_tokens=order.prompt_tokens,
            max_tokens=order.max_tokens,
            choices=order.choices,
            longest_token=order.longest_token,
            logprobs=order.logprobs,
        )

    def __repr__(self) -> str:
        return f"Attempt(node {self._offer.node.hex()[:8]}, {self.progress})"

    @property
    def started(self) -> bool:
        """Whether a token has come: from then on no other node is asked."""
        return self.progress.generated > 0

    def hang_up(self) -> None:
        """The client is gone: let the node stop; what it made is still received, checked and paid."""
        if not self._cancelled:
            self._cancelled = True
            self._exchange.cancel()
            if self._timer is not None:
                self._timer.reschedule(asyncio.get_running_loop().time() + AFTER_CANCEL_S)

    async def run(self, deliver: Deliver, escrow: EscrowSnapshot, max_fee: int) -> tuple[Finished, bytes]:
        """Until the receipt is kept: how it ended, and the packed closing voucher, which is yet to be sent.

        Raises what the node refused with; RECEIPT_INVALID where it lied, NODE_LOST where it vanished: then nothing is
        paid beyond the vouchers given. `max_fee` in wei. Raises SPEND_CAP, ESCROW_TOO_LOW before anything is sent.
        """
        ticket = await self._purse.admit(
            self._offer,
            self._order.body,
            prompt_tokens=self._order.prompt_tokens,
            max_tokens=self._order.max_tokens,
            max_fee=max_fee,
            model=self._order.model,
            escrow=escrow,
        )
        try:
            done = await self._stream(ticket, deliver)
            checked = check_receipt(
                Signed.unpack(Receipt, self.progress.done(done)), await self._expected(ticket, done), self._purse.domain
            )
            evidence = await self._check_evidence(checked.receipt.value, done)
            if checked.receipt.value.status != ReceiptStatus.FAILED:
                await self._check_texts(done)
            stored, closing = await self._purse.settle(ticket, checked, done.salt, evidence)
        except ProtocolError as error:
            broken = OpenLoraError(ErrorCode.RECEIPT_INVALID, f"the node broke the protocol: {error.message}")
            await self._give_up(ticket, broken)
            raise broken from None
        except BaseException as error:
            await self._give_up(ticket, error)
            raise
        lengths = tuple(map(len, self.progress.ids))
        return Finished(stored, done.finish_reason, self._offer, ticket, lengths), closing.pack()

    async def close(self, closing: bytes) -> None:
        """Hand over the closing voucher. It is on disk: what fails here is repeated by the recovery."""
        try:
            async with asyncio.timeout(SETTLED_TIMEOUT_S):
                await self._exchange.send(Pay(id=1, voucher=closing))
                while not isinstance(await self._exchange.receive(), Settled):
                    pass
        except (OpenLoraError, TimeoutError) as error:
            logger.info("a closing voucher was not confirmed and will be sent again: %s", error)

    async def _stream(self, ticket: Ticket, deliver: Deliver) -> Done:
        infer = Infer(
            id=1,
            request=ticket.request.pack(),
            pipeline=self._order.pipeline.pack(),
            body=self._order.body,
            voucher=ticket.opening.pack(),
        )
        await self._exchange.send(infer)
        self._hear()
        if self._cancelled:
            self._exchange.cancel()
        while True:
            match message := await self._next():
                case Accepted():
                    self.progress.accepted(message)
                    self._hear()
                    await self._purse.accepted(ticket)
                    self._on_accepted()
                case Tokens():
                    piece = self.progress.tokens(message)
                    if piece.token_ids:
                        self._hear()
                    self._purse.generated(ticket, self.progress.generated)
                    if not self._cancelled:
                        await deliver(piece)
                        self._hear()  # a slow client is no fault of the node's
                case Paused():
                    tokens, compute = self.progress.paused(message)
                    voucher = await self._purse.pay(ticket, Amounts(tokens, compute))
                    await self._exchange.send(Pay(id=1, voucher=voucher.pack()))
                case Done():
                    return message
                case Settled():
                    pass
                case _:
                    raise OpenLoraError(ErrorCode.RECEIPT_INVALID, "the node sent a message that has no place here")

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def _next(self) -> InferMessage:
        """The next message. A node that brings no token for too long is lost; one that was told to stop must soon.

        Messages that bring none do not count: a node could hold a request open with them for ever.
        """
        try:
            limit = SILENCE_S if self.progress.stage is Stage.ACCEPTED else ACCEPT_TIMEOUT_S
            if self._cancelled:
                self._heard_at, limit = asyncio.get_running_loop().time(), AFTER_CANCEL_S
            async with asyncio.timeout_at(self._heard_at + limit) as self._timer:
                return await self._exchange.receive()
        except TimeoutError:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the node fell silent") from None
        finally:
            self._timer = None

    async def _check_texts(self, done: Done) -> None:
        whole = done.finish_reason == "length" and self._order.choices == 1
        for ids, text in zip(self.progress.ids, self.progress.texts, strict=True):
            if len(ids) <= INLINE_TOKENS:
                decoded = self._order.decode(ids)
            else:
                decoded = await asyncio.to_thread(self._order.decode, ids)
            check_text("".join(text), decoded, whole=whole)

    async def _expected(self, ticket: Ticket, done: Done) -> Expected:
        seq = Signed.unpack(Receipt, done.receipt).value.seq
        now_key = self._chain.key_of(ticket.offer.node)
        quoted_by = ticket.offer.signed.signer(self._purse.domain)
        return Expected(
            request=ticket.request.value,
            request_digest=ticket.digest,
            offer=ticket.offer,
            prompt_tokens=self._order.prompt_tokens,
            completion_tokens=self.progress.generated,
            output=self.progress.output_hash,
            keys=frozenset(key for key in (now_key, quoted_by) if key is not None),
            now=self._purse.clock(),
            least_seq=ticket.least_seq,
            charge_due=await self._purse.charge_due(ticket, seq),
        )

    async def _check_evidence(self, receipt: Receipt, done: Done) -> Evidence:
        def check() -> Evidence:
            evidence = Evidence.read(done.evidence, done.salt)
            body = parse_body(self._order.body, len(self._order.body))
            ordered = Ordered(self._offer, self._purse.signer.address, self.progress.ids, body)
            check_evidence(receipt, evidence, ordered)
            return evidence

        return check() if len(done.evidence) <= INLINE_BYTES else await asyncio.to_thread(check)

    async def _give_up(self, ticket: Ticket, error: BaseException) -> None:
        self._exchange.cancel()
        note = str(error) if isinstance(error, OpenLoraError) else "the gateway stopped"
        self.lost = await asyncio.shield(self._purse.give_up(ticket, note, self.progress.output_hash))


def is_failed(finished: Finished) -> bool:
    """Whether the node itself says that the run failed: it costs nothing."""
    return finished.receipt.status == ReceiptStatus.FAILED
