"""The demo's node: quotes, checks requests at its door, answers, signs receipts, keeps vouchers.

There is no engine here yet: a stand-in spells the prompt backwards, one byte a token.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator

from world import ADAPTER_OWNERS, BASE, BASE_OWNER, NODE_KEY, PIPELINE, ROYALTY_RATES, World, frames, now, say

from openlora_node.journal import (
    AlreadyDone,
    AlreadyRunning,
    EscrowSnapshot,
    Journal,
    LedgerKey,
    ReceiptDraft,
    ReceiptSlot,
    VoucherEntry,
)
from openlora_node.protocol import messages, structs
from openlora_node.protocol.crypto import Address, keccak256
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.messages import INFER, InferMessage
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge, max_fee

RATES = ComputeRates(input_rate=2 * 10**14, output_rate=6 * 10**14)
SETTLEMENT_CHARGE = 10**9
PARTS = [(PIPELINE.base, PIPELINE.base_terms_version), *((a.id, a.terms_version) for a in PIPELINE.adapters)]
OWNERS = {BASE: BASE_OWNER.address, **{artifact: key.address for artifact, key in ADAPTER_OWNERS.items()}}
SCHEDULE = RoyaltySchedule.of(PIPELINE, ROYALTY_RATES[BASE], tuple(ROYALTY_RATES[a.id] for a in PIPELINE.adapters))


class Node:
    """The serving side of the demo."""

    def __init__(self, world: World, journal: Journal) -> None:
        self._world = world
        self._domain = world.domain
        self._journal = journal
        self._quotes: dict[bytes, structs.Quote] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: every message is answered, every error has its code."""
        try:
            async for message in frames(reader):
                async for reply in self._answer(message):
                    writer.write(INFER.encode(reply))
                await writer.drain()
        except (OpenLoraError, ConnectionError) as error:
            say("node", f"closes the stream: {error}")
        finally:
            writer.close()

    async def _answer(self, message: InferMessage) -> AsyncIterator[InferMessage]:
        try:
            match message:
                case messages.AskQuote():
                    yield messages.QuoteReply(id=message.id, quote=self._quote(message.payer).pack())
                case messages.Infer():
                    async for reply in self._infer(message):
                        yield reply
                case messages.Pay():
                    yield messages.Settled(id=message.id, cumulative_tokens=await self._take(message.voucher))
                case _:
                    yield messages.ErrorReply.of(OpenLoraError(ErrorCode.UNSUPPORTED), message.id)
        except OpenLoraError as error:
            yield messages.ErrorReply.of(error, message.id)

    def _quote(self, payer: bytes) -> Signed[structs.Quote]:
        quote = structs.Quote(
            payer=payer,
            node=self._world.node,
            pipeline_id=PIPELINE.id,
            input_rate=RATES.input_rate,
            output_rate=RATES.output_rate,
            royalties=tuple(
                structs.Royalty(
                    artifact=artifact, terms_version=version, rate=ROYALTY_RATES[artifact], owner=OWNERS[artifact]
                )
                for artifact, version in PARTS
            ),
            settlement_charge=SETTLEMENT_CHARGE,
            issued_at=now(),
            expires_at=now() + 3600,
        )
        self._quotes = {quote.digest(self._domain): quote}
        return quote.sign(self._domain, NODE_KEY)

    def _check(self, request: structs.Request, signer: Address, message: messages.Infer) -> bytes:
        """The door, as far as the demo has one. Returns the prompt."""
        quote = self._quotes.get(request.quote_digest)
        if signer != request.payer:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
        if quote is None or quote.payer != request.payer:
            raise OpenLoraError(ErrorCode.QUOTE_UNKNOWN)
        if request.expires_at < now():
            raise OpenLoraError(ErrorCode.REQUEST_EXPIRED)
        if request.body_hash != structs.body_hash(message.body):
            raise OpenLoraError(ErrorCode.BODY_MISMATCH)
        if request.pipeline_id != PIPELINE.id or message.pipeline != PIPELINE.pack():
            raise OpenLoraError(ErrorCode.BAD_PIPELINE)
        prompt = prompt_of(message.body)
        least = max_fee(SCHEDULE, RATES, len(prompt), request.max_tokens, SETTLEMENT_CHARGE)
        if request.max_fee < least:
            raise OpenLoraError(ErrorCode.MAX_FEE_TOO_LOW, f"raise maxFee to {least} wei")
        return prompt

    async def _infer(self, message: messages.Infer) -> AsyncIterator[InferMessage]:
        signed = Signed.unpack(structs.Request, message.request)
        request, signer = signed.value, signed.signer(self._domain)
        prompt = self._check(request, signer, message)
        opening = self._entry(message.voucher)
        before = (await self._journal.ledger(LedgerKey.of(request, signer))).tally
        first = charge(before, SCHEDULE, RATES, len(prompt), 0, SETTLEMENT_CHARGE)
        if first.after.owed(SCHEDULE, opening.voucher.value):
            raise OpenLoraError(ErrorCode.VOUCHER_TOO_LOW)
        escrow = EscrowSnapshot(await self._world.escrow(request.payer))
        admission = await self._journal.admit(signed, signer, escrow, opening=opening)
        if isinstance(admission, AlreadyRunning):
            raise OpenLoraError(ErrorCode.BUSY, retry_after_ms=100)
        if isinstance(admission, AlreadyDone):
            stored = admission.stored
        else:
            output = prompt[::-1][: request.max_tokens]
            yield messages.Accepted(id=message.id, prompt_tokens=len(prompt))
            for start in range(0, len(output), 16):
                part = output[start : start + 16]
                text = part.decode(errors="replace")
                yield messages.Tokens(id=message.id, start=start, token_ids=tuple(part), text=text)
            stored = await self._journal.commit_receipt(
                admission.digest, lambda slot: self._receipt(slot, len(prompt), output)
            )
        yield messages.Done(id=message.id, receipt=stored.receipt.pack(), finish_reason="stop", salt=stored.salt)

    def _receipt(self, slot: ReceiptSlot, prompt_tokens: int, output: bytes) -> ReceiptDraft:
        charged = charge(slot.before, SCHEDULE, RATES, prompt_tokens, len(output), SETTLEMENT_CHARGE)
        receipt = structs.Receipt(
            request_digest=slot.request_digest,
            payer=slot.request.value.payer,
            node=self._world.node,
            pipeline_id=PIPELINE.id,
            status=structs.ReceiptStatus.COMPLETE,
            engine_digest=keccak256(b"a stand-in for the engine"),
            prompt_tokens=prompt_tokens,
            completion_tokens=len(output),
            output_hash=structs.output_hash(tuple(output)),
            attribution_root=ZERO32,
            commitment_root=ZERO32,
            compute=charged.compute,
            royalties=charged.royalties,
            started_at=slot.request.value.issued_at,
            finished_at=max(now(), slot.request.value.issued_at),
            seq=slot.seq,
            previous=slot.previous,
        )
        return ReceiptDraft(receipt.sign(self._domain, NODE_KEY), secrets.token_bytes(32), charged.after)

    async def _take(self, packed: bytes) -> int:
        """Keep a voucher that does not run ahead of its ledger; returns the tokens that the newest covers."""
        entry = self._entry(packed)
        voucher = entry.voucher.value
        tally: Tally = (await self._journal.ledger(LedgerKey.of(voucher, entry.signer))).tally
        if voucher.cumulative_tokens > tally.tokens or voucher.cumulative_compute > tally.compute:
            raise OpenLoraError(ErrorCode.VOUCHER_CONFLICT, "the voucher runs ahead of what was served")
        newest = (await self._journal.advance_voucher(entry)).ledger.newest_voucher
        return newest.value.cumulative_tokens if newest else 0

    def _entry(self, packed: bytes) -> VoucherEntry:
        voucher = Signed.unpack(structs.Voucher, packed)
        signer = voucher.signer(self._domain)
        if signer != voucher.value.payer or voucher.value.pipeline_id != PIPELINE.id:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
        return VoucherEntry(voucher, signer, SCHEDULE.value(voucher.value))


def prompt_of(body: bytes) -> bytes:
    """The last message's content. Raises MALFORMED."""
    try:
        return str(json.loads(body)["messages"][-1]["content"]).encode()
    except (ValueError, KeyError, IndexError, TypeError):
        raise OpenLoraError(ErrorCode.MALFORMED, "the body is an OpenAI chat request") from None
