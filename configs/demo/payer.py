"""The demo's payer: asks for a quote, signs, checks what came back by recounting it, pays."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from world import MAX_TOKENS, NODE_KEY, PAYER_KEY, PIPELINE, World, frames, now, say

from openlora_node.journal import EscrowSnapshot, Journal, LedgerKey, ReceiptDraft, VoucherEntry
from openlora_node.protocol import messages, structs
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import Digest
from openlora_node.protocol.messages import INFER, InferMessage
from openlora_node.protocol.pipeline import WEIGHT_ONE
from openlora_node.protocol.pricing import Charge, ComputeRates, RoyaltySchedule, Tally, charge, max_fee


class Connection:
    """One stream to the node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._inbox: AsyncIterator[InferMessage] = frames(reader)
        self._writer = writer

    async def send(self, message: InferMessage) -> InferMessage:
        """Send one message and wait for what comes next."""
        self._writer.write(INFER.encode(message))
        return await self.receive()

    async def receive(self) -> InferMessage:
        """The next message. Raises the error that the node sent."""
        message = await anext(self._inbox, None)
        if message is None:
            raise OpenLoraError(ErrorCode.NODE_LOST)
        if isinstance(message, messages.ErrorReply):
            raise message.error()
        return message

    async def close(self) -> None:
        """Close the stream."""
        self._writer.close()
        await self._writer.wait_closed()


class Payer:
    """The paying side of the demo."""

    def __init__(self, world: World, journal: Journal) -> None:
        self._world = world
        self._domain = world.domain
        self._journal = journal
        self._ledger = LedgerKey(PAYER_KEY.address, world.node, PAYER_KEY.address, PIPELINE.id)

    async def ask(self, socket: Path, prompt: str) -> None:
        """One request from quote to settled voucher, printed step by step."""
        connection = Connection(*await asyncio.open_unix_connection(str(socket)))
        try:
            quote = await self._quote(connection)
            before = (await self._journal.ledger(self._ledger)).tally
            request, tokens, done = await self._run(connection, quote, before, prompt)
            receipt = Signed.unpack(structs.Receipt, done.receipt)
            charged = self._recount(receipt, request, quote, before, len(prompt.encode()), tokens)
            draft = ReceiptDraft(receipt, done.salt, charged.after)
            await self._journal.accept_receipt(Digest(request.digest(self._domain)), draft)
            self._show(receipt.value, quote)
            await self._close(connection, quote, charged.after, receipt.value.digest(self._domain))
        finally:
            await connection.close()

    async def _quote(self, connection: Connection) -> structs.Quote:
        reply = await connection.send(messages.AskQuote(id=1, payer=PAYER_KEY.address, pipeline=PIPELINE.pack()))
        assert isinstance(reply, messages.QuoteReply)
        signed = Signed.unpack(structs.Quote, reply.quote)
        if signed.signer(self._domain) != NODE_KEY.address:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
        quote = signed.value
        prices = f"{quote.input_rate:,} wei in, {quote.output_rate:,} wei out per million tokens"
        say("quote", f"{prices}; {len(quote.royalties)} royalties; {quote.settlement_charge:,} wei once")
        return quote

    async def _run(
        self, connection: Connection, quote: structs.Quote, before: Tally, prompt: str
    ) -> tuple[structs.Request, list[int], messages.Done]:
        body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
        prompt_tokens = len(prompt.encode())
        schedule, rates = RoyaltySchedule.quoted(PIPELINE, quote), ComputeRates(quote.input_rate, quote.output_rate)
        request = structs.Request(
            payer=PAYER_KEY.address,
            node=self._world.node,
            pipeline_id=PIPELINE.id,
            quote_digest=quote.digest(self._domain),
            body_hash=structs.body_hash(body),
            max_fee=max_fee(schedule, rates, prompt_tokens, MAX_TOKENS, quote.settlement_charge),
            max_tokens=MAX_TOKENS,
            nonce=secrets.token_bytes(32),
            issued_at=now(),
            expires_at=now() + 120,
        )
        signed = request.sign(self._domain, PAYER_KEY)
        opening = self._voucher(self._charge(quote, before, prompt_tokens, 0).after, request.digest(self._domain))
        escrow = EscrowSnapshot(await self._world.escrow(PAYER_KEY.address))
        await self._journal.admit(signed, Address(PAYER_KEY.address), escrow)
        worth = schedule.value(opening.value)
        say("request", f"signed, at most {request.max_fee:,} wei; opening voucher {worth:,} wei")
        message = await connection.send(
            messages.Infer(id=1, request=signed.pack(), pipeline=PIPELINE.pack(), body=body, voucher=opening.pack())
        )
        tokens: list[int] = []
        while not isinstance(message, messages.Done):
            if isinstance(message, messages.Tokens):
                tokens += message.token_ids
                say("tokens", repr(message.text))
            message = await connection.receive()
        return request, tokens, message

    def _recount(
        self,
        signed: Signed[structs.Receipt],
        request: structs.Request,
        quote: structs.Quote,
        before: Tally,
        prompt_tokens: int,
        tokens: list[int],
    ) -> Charge:
        """The payer pays what it saw, not what it is told."""
        receipt = signed.value
        charged = self._charge(quote, before, prompt_tokens, len(tokens))
        honest = (
            signed.signer(self._domain) == NODE_KEY.address
            and receipt.request_digest == request.digest(self._domain)
            and receipt.output_hash == structs.output_hash(tokens)
            and (receipt.prompt_tokens, receipt.completion_tokens) == (prompt_tokens, len(tokens))
            and charged.is_stated_by(receipt)
        )
        if not honest:
            raise OpenLoraError(ErrorCode.RECEIPT_INVALID)
        return charged

    def _show(self, receipt: structs.Receipt, quote: structs.Quote) -> None:
        counted = f"{receipt.prompt_tokens} + {receipt.completion_tokens} tokens"
        amounts = f"compute {receipt.compute:,} + royalties {receipt.royalties:,} = {receipt.fee:,} wei"
        say("receipt", f"{counted}, {amounts}")
        names = ("base", *(f"adapter × {adapter.weight / WEIGHT_ONE}" for adapter in PIPELINE.adapters))
        shares = RoyaltySchedule.quoted(PIPELINE, quote).shares(receipt.royalties)
        for name, share in zip(names, shares, strict=True):
            say("", f"  {name:<14} earns {share:>14,} wei")

    async def _close(self, connection: Connection, quote: structs.Quote, tally: Tally, receipt_digest: bytes) -> None:
        closing = self._voucher(tally, receipt_digest)
        worth = RoyaltySchedule.quoted(PIPELINE, quote).value(closing.value)
        await self._journal.advance_voucher(VoucherEntry(closing, Address(PAYER_KEY.address), worth))
        settled = await connection.send(messages.Pay(id=1, voucher=closing.pack()))
        assert isinstance(settled, messages.Settled)
        owed = await self._journal.owed(PAYER_KEY.address, self._world.node)
        say("settled", f"{settled.cumulative_tokens} tokens covered by vouchers; owed: {owed} wei")

    def _charge(self, quote: structs.Quote, before: Tally, prompt_tokens: int, completion_tokens: int) -> Charge:
        return charge(
            before,
            RoyaltySchedule.quoted(PIPELINE, quote),
            ComputeRates(quote.input_rate, quote.output_rate),
            prompt_tokens,
            completion_tokens,
            quote.settlement_charge,
        )

    def _voucher(self, tally: Tally, reference: bytes) -> Signed[structs.Voucher]:
        return structs.Voucher(
            payer=PAYER_KEY.address,
            node=self._world.node,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=tally.tokens,
            cumulative_compute=tally.compute,
            reference_digest=reference,
        ).sign(self._domain, PAYER_KEY)
