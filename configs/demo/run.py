"""The demo: one paid request from quote to settled voucher, between a node and a payer with real keys and journals.

`make run` starts the node, sends a request, prints each step, checks both journals and stays up; DEMO=once exits. The
two speak the real messages over a Unix socket. There is no engine or chain in it yet: a stand-in answers with the
prompt spelled backwards, one byte a token, and the payer's escrow is assumed.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console

from openlora_node.journal import AlreadyDone, Binding, EscrowSnapshot, Journal, LedgerKey, ReceiptDraft, VoucherEntry
from openlora_node.journal.values import ReceiptSlot
from openlora_node.protocol import messages, structs
from openlora_node.protocol.crypto import Address, LocalSigner, keccak256
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.ids import ZERO32, Digest, format_address, format_bytes
from openlora_node.protocol.messages import INFER, InferMessage
from openlora_node.protocol.pipeline import WEIGHT_ONE, Adapter, Pipeline
from openlora_node.protocol.pricing import Charge, ComputeRates, RoyaltySchedule, Tally, charge

DOMAIN = Domain(chain_id=31337, verifying_contract=Address(keccak256(b"no settlement contract yet")[:20]))
NODE_ID = keccak256(b"demo node")
BASE, POETRY, BREVITY = (keccak256(label) for label in (b"demo base", b"demo adapter 1", b"demo adapter 2"))
PIPELINE = Pipeline.of(
    BASE,
    Adapter(id=POETRY, terms_version=1, weight=7_000),
    Adapter(id=BREVITY, terms_version=1, weight=3_000),
    base_terms_version=1,
)
ROYALTY_RATES = {BASE: 10**13, POETRY: 5 * 10**13, BREVITY: 2 * 10**13}
RATES = ComputeRates(input_rate=2 * 10**14, output_rate=6 * 10**14)
SETTLEMENT_CHARGE = 10**9
ASSUMED_ESCROW = EscrowSnapshot(balance=10**17)
SCHEDULE = RoyaltySchedule.of(PIPELINE, ROYALTY_RATES[BASE], tuple(ROYALTY_RATES[a.id] for a in PIPELINE.adapters))

console = Console(highlight=False, soft_wrap=True)


def now() -> int:
    """Unix seconds."""
    return int(time.time())


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[InferMessage]:
    """Messages from a stream until it ends."""
    decoder = FrameDecoder(INFER.max_frame)
    while data := await reader.read(65_536):
        for payload in decoder.feed(data):
            yield INFER.decode(payload)
    decoder.finish()


class Node:
    """The serving side: quotes, admits, answers, signs receipts, keeps vouchers."""

    def __init__(self, key: LocalSigner, journal: Journal) -> None:
        self._key = key
        self._journal = journal

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: every message is answered, every error has its code."""
        try:
            async for message in frames(reader):
                async for reply in self._answer(message):
                    writer.write(INFER.encode(reply))
                await writer.drain()
        except (OpenLoraError, ConnectionError) as error:
            console.print(f"[red]node[/]  closes the stream: {error}")
        finally:
            writer.close()

    async def _answer(self, message: InferMessage) -> AsyncIterator[InferMessage]:
        try:
            match message:
                case messages.AskQuote():
                    quote = await self._quote(message.payer)
                    yield messages.QuoteReply(id=message.id, quote=quote.sign(DOMAIN, self._key).pack())
                case messages.Infer():
                    async for reply in self._infer(message):
                        yield reply
                case messages.Pay():
                    tokens = await self._take(Signed.unpack(structs.Voucher, message.voucher))
                    yield messages.Settled(id=message.id, cumulative_tokens=tokens)
                case _:
                    yield messages.ErrorReply.of(OpenLoraError(ErrorCode.UNSUPPORTED))
        except OpenLoraError as error:
            yield messages.ErrorReply.of(error, getattr(message, "id", 0))

    async def _quote(self, payer: bytes) -> structs.Quote:
        known = await self._journal.ledger(LedgerKey(payer, NODE_ID, payer, PIPELINE.id))
        versions = (PIPELINE.base_terms_version, *(adapter.terms_version for adapter in PIPELINE.adapters))
        return structs.Quote(
            payer=payer,
            node=NODE_ID,
            pipeline_id=PIPELINE.id,
            input_rate=RATES.input_rate,
            output_rate=RATES.output_rate,
            royalties=tuple(
                structs.Royalty(artifact=artifact, terms_version=version, rate=ROYALTY_RATES[artifact], owner=bytes(20))
                for artifact, version in zip((BASE, *(a.id for a in PIPELINE.adapters)), versions, strict=True)
            ),
            settlement_charge=0 if known.tally.tokens else SETTLEMENT_CHARGE,
            issued_at=now(),
            expires_at=now() + 3600,
        )

    async def _infer(self, message: messages.Infer) -> AsyncIterator[InferMessage]:
        signed = Signed.unpack(structs.Request, message.request)
        request = signed.value
        signer = signed.signer(DOMAIN)
        if signer != request.payer:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
        if request.body_hash != structs.body_hash(message.body):
            raise OpenLoraError(ErrorCode.BODY_MISMATCH)
        if Pipeline.unpack(message.pipeline).id != request.pipeline_id or request.pipeline_id != PIPELINE.id:
            raise OpenLoraError(ErrorCode.BAD_PIPELINE)
        opening = None
        if message.voucher:
            voucher = Signed.unpack(structs.Voucher, message.voucher)
            opening = VoucherEntry(voucher, voucher.signer(DOMAIN), worth(voucher.value))
        admission = await self._journal.admit(signed, signer, ASSUMED_ESCROW, opening=opening)
        digest = Digest(request.digest(DOMAIN))
        if isinstance(admission, AlreadyDone):
            stored = admission.stored
            yield messages.Done(id=message.id, receipt=stored.receipt.pack(), finish_reason="stop", salt=stored.salt)
            return
        started = now()
        prompt = json.loads(message.body)["messages"][-1]["content"].encode()
        output = prompt[::-1][: request.max_tokens]
        yield messages.Accepted(id=message.id, prompt_tokens=len(prompt))
        for start in range(0, len(output), 16):
            part = output[start : start + 16]
            yield messages.Tokens(id=message.id, start=start, token_ids=tuple(part), text=part.decode(errors="replace"))

        def build(slot: ReceiptSlot) -> ReceiptDraft:
            once = 0 if slot.before.tokens else SETTLEMENT_CHARGE
            charged = charge(slot.before, SCHEDULE, RATES, len(prompt), len(output), once)
            receipt = structs.Receipt(
                request_digest=digest,
                payer=request.payer,
                node=NODE_ID,
                pipeline_id=PIPELINE.id,
                status=structs.ReceiptStatus.COMPLETE,
                engine_digest=keccak256(b"a stand-in for the engine"),
                prompt_tokens=len(prompt),
                completion_tokens=len(output),
                output_hash=structs.output_hash(tuple(output)),
                attribution_root=ZERO32,
                commitment_root=ZERO32,
                compute=charged.compute,
                royalties=charged.royalties,
                started_at=started,
                finished_at=now(),
                seq=slot.seq,
                previous=slot.previous,
            )
            return ReceiptDraft(receipt.sign(DOMAIN, self._key), secrets.token_bytes(32), charged.after)

        stored = await self._journal.commit_receipt(digest, build)
        yield messages.Done(id=message.id, receipt=stored.receipt.pack(), finish_reason="stop", salt=stored.salt)

    async def _take(self, voucher: Signed[structs.Voucher]) -> int:
        entry = VoucherEntry(voucher, voucher.signer(DOMAIN), worth(voucher.value))
        if entry.signer != voucher.value.payer:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
        outcome = await self._journal.advance_voucher(entry)
        newest = outcome.ledger.newest_voucher
        return newest.value.cumulative_tokens if newest else 0


def worth(voucher: structs.Voucher) -> int:
    """A voucher's value in wei under the demo's rates."""
    return voucher.cumulative_compute + SCHEDULE.royalties(voucher.cumulative_tokens)


def schedule_of(quote: structs.Quote) -> RoyaltySchedule:
    """How royalties grow under a quote."""
    base, *adapters = (royalty.rate for royalty in quote.royalties)
    return RoyaltySchedule.of(PIPELINE, base, tuple(adapters))


class Payer:
    """The paying side: asks, signs, checks what came back, pays."""

    def __init__(self, key: LocalSigner, node_key: Address, journal: Journal) -> None:
        self._key = key
        self._node_key = node_key
        self._journal = journal

    async def ask(self, socket: Path, prompt: str) -> None:
        """One request, printed step by step."""
        reader, writer = await asyncio.open_unix_connection(str(socket))
        inbox = frames(reader)

        async def send(message: InferMessage) -> InferMessage:
            writer.write(INFER.encode(message))
            return await self._next(inbox)

        try:
            quoted = await send(messages.AskQuote(id=1, payer=self._key.address, pipeline=PIPELINE.pack()))
            assert isinstance(quoted, messages.QuoteReply)
            signed = Signed.unpack(structs.Quote, quoted.quote)
            if signed.signer(DOMAIN) != self._node_key:
                raise OpenLoraError(ErrorCode.BAD_SIGNATURE)
            quote = signed.value
            console.print(
                f"[cyan]quote[/]   {quote.input_rate:,} wei in, {quote.output_rate:,} wei out per million tokens;"
                f" {len(quote.royalties)} royalties; settlement charge {quote.settlement_charge:,} wei"
            )
            await self._run(quote, prompt, send, inbox)
        finally:
            writer.close()
            await writer.wait_closed()

    async def _next(self, inbox: AsyncIterator[InferMessage]) -> InferMessage:
        message = await anext(inbox)
        if isinstance(message, messages.ErrorReply):
            raise message.error()
        return message

    async def _run(self, quote: structs.Quote, prompt: str, send: object, inbox: AsyncIterator[InferMessage]) -> None:
        body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
        key = LedgerKey(self._key.address, NODE_ID, self._key.address, PIPELINE.id)
        before = (await self._journal.ledger(key)).tally
        most = self._charge(before, quote, len(prompt.encode()), 64)
        request = structs.Request(
            payer=self._key.address,
            node=NODE_ID,
            pipeline_id=PIPELINE.id,
            quote_digest=quote.digest(DOMAIN),
            body_hash=structs.body_hash(body),
            max_fee=most.fee,
            max_tokens=64,
            nonce=secrets.token_bytes(32),
            issued_at=now(),
            expires_at=now() + 120,
        )
        signed = request.sign(DOMAIN, self._key)
        opening = self._voucher(self._charge(before, quote, len(prompt.encode()), 0).after, request.digest(DOMAIN))
        await self._journal.admit(signed, self._key.address, ASSUMED_ESCROW)
        console.print(
            f"[cyan]request[/] signed, at most {most.fee:,} wei; opening voucher {worth(opening.value):,} wei"
        )
        infer = messages.Infer(id=1, request=signed.pack(), pipeline=PIPELINE.pack(), body=body, voucher=opening.pack())
        message = await send(infer)  # type: ignore[operator]
        tokens: list[int] = []
        while not isinstance(message, messages.Done):
            if isinstance(message, messages.Tokens):
                tokens += message.token_ids
                console.print(f"[cyan]tokens[/]  {message.text!r}")
            message = await self._next(inbox)
        receipt = Signed.unpack(structs.Receipt, message.receipt)
        charged = self._check(receipt, request, quote, before, len(prompt.encode()), tokens)
        await self._journal.accept_receipt(
            Digest(request.digest(DOMAIN)), ReceiptDraft(receipt, message.salt, charged.after)
        )
        console.print(
            f"[cyan]receipt[/] {receipt.value.prompt_tokens} + {receipt.value.completion_tokens} tokens, compute"
            f" {receipt.value.compute:,} + royalties {receipt.value.royalties:,} = {receipt.value.fee:,} wei"
        )
        names = ("base", *(f"adapter × {adapter.weight / WEIGHT_ONE}" for adapter in PIPELINE.adapters))
        for name, share in zip(names, schedule_of(quote).shares(receipt.value.royalties), strict=True):
            console.print(f"          {name:<14} earns {share:>14,} wei")
        closing = self._voucher(charged.after, receipt.value.digest(DOMAIN))
        await self._journal.advance_voucher(VoucherEntry(closing, self._key.address, worth(closing.value)))
        settled = await send(messages.Pay(id=1, voucher=closing.pack()))  # type: ignore[operator]
        assert isinstance(settled, messages.Settled)
        owed = await self._journal.owed(self._key.address, NODE_ID)
        console.print(f"[cyan]settled[/] {settled.cumulative_tokens} tokens covered by vouchers; owed: {owed} wei")

    def _charge(self, before: Tally, quote: structs.Quote, prompt: int, completion: int) -> Charge:
        rates = ComputeRates(quote.input_rate, quote.output_rate)
        return charge(before, schedule_of(quote), rates, prompt, completion, quote.settlement_charge)

    def _voucher(self, tally: Tally, reference: bytes) -> Signed[structs.Voucher]:
        return structs.Voucher(
            payer=self._key.address,
            node=NODE_ID,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=tally.tokens,
            cumulative_compute=tally.compute,
            reference_digest=reference,
        ).sign(DOMAIN, self._key)

    def _check(
        self,
        signed: Signed[structs.Receipt],
        request: structs.Request,
        quote: structs.Quote,
        before: Tally,
        prompt_tokens: int,
        tokens: list[int],
    ) -> Charge:
        """Recount: the payer pays what it saw, not what it is told."""
        receipt = signed.value
        charged = self._charge(before, quote, prompt_tokens, len(tokens))
        honest = (
            signed.signer(DOMAIN) == self._node_key
            and receipt.request_digest == request.digest(DOMAIN)
            and receipt.output_hash == structs.output_hash(tokens)
            and (receipt.prompt_tokens, receipt.completion_tokens) == (prompt_tokens, len(tokens))
            and (receipt.compute, receipt.royalties) == (charged.compute, charged.royalties)
        )
        if not honest:
            raise OpenLoraError(ErrorCode.RECEIPT_INVALID)
        return charged


async def main(once: bool) -> None:
    """Node and payer in a temporary directory; prompts from the command line, or two of our own."""
    with tempfile.TemporaryDirectory(prefix="openlora-demo-") as folder:
        home = Path(folder)
        node_key, payer_key = LocalSigner(secrets.token_bytes(32)), LocalSigner(secrets.token_bytes(32))
        node_journal = Journal.open(home / "node.sqlite", Binding.to_node(DOMAIN, NODE_ID), now)
        payer_journal = Journal.open(home / "payer.sqlite", Binding.to_payer(DOMAIN, payer_key.address), now)
        async with node_journal, payer_journal:
            node = Node(node_key, node_journal)
            server = await asyncio.start_unix_server(node.serve, path=str(home / "node.sock"))
            console.print(f"[bold]node[/]    {format_bytes(NODE_ID)}, key {format_address(node_key.address)}")
            console.print(f"[bold]payer[/]   {format_address(payer_key.address)}")
            payer = Payer(payer_key, node_key.address, payer_journal)
            for prompt in sys.argv[1:] or ["Was it a car or a cat I saw?", "Never odd or even"]:
                console.print(f"\n[bold]ask[/]     {prompt!r}")
                await payer.ask(home / "node.sock", prompt)
            for journal in (node_journal, payer_journal):
                await journal.check_integrity(deep=True)
            console.print("\nboth journals pass their integrity check (deep)")
            if not once:
                stop = asyncio.Event()
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, stop.set)
                console.print(f"the node stays up on {home / 'node.sock'}; Ctrl-C ends it")
                await stop.wait()
            server.close()


if __name__ == "__main__":
    asyncio.run(main(os.environ.get("DEMO") == "once"))
