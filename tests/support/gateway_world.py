"""A payer among scripted nodes: real signatures, real journals on both sides, a chain of dictionaries, nodes that lie.

A node here follows docs/protocol.md strictly (its vouchers are judged by `admission.vouchers`) but for what its script
says. Exchanges are queues in memory; nothing sleeps.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from openlora_chain.store import NewIntent
from openlora_node.admission.values import Refusal
from openlora_node.admission.vouchers import LedgerState, OpenRun, accept, opens
from openlora_node.attribution import Behind, Evidence, Output, Part, Sampling, leaves
from openlora_node.chainview import EscrowState, Terms
from openlora_node.gateway.answer import Answer
from openlora_node.gateway.escrow import EscrowRules, Escrows
from openlora_node.gateway.names import AdapterName, BaseName, Names
from openlora_node.gateway.payer import Payer
from openlora_node.gateway.ports import Offered
from openlora_node.gateway.purse import Caps, Purse
from openlora_node.gateway.quotes import Quotes
from openlora_node.gateway.recovery import Recovery
from openlora_node.gateway.tasks import Tasks
from openlora_node.gateway.tokenizers import NamedFolders, Tokenizers
from openlora_node.journal import (
    AlreadyDone,
    Binding,
    EscrowSnapshot,
    Journal,
    LedgerKey,
    Reader,
    ReceiptDraft,
    ReceiptSlot,
    StoredReceipt,
    VoucherEntry,
)
from openlora_node.network.routing import Ask
from openlora_node.openai import Body, parse_body
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth
from openlora_node.protocol.merkle import NamedLeaf, named_root
from openlora_node.protocol.messages import InferMessage, VoucherMessage
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, charge, max_fee
from openlora_node.protocol.structs import (
    AccountQuery,
    Quote,
    Receipt,
    ReceiptStatus,
    Request,
    Royalty,
    Voucher,
    body_hash,
    output_hash,
)
from openlora_node.serving.sampler import sampler_hash, seed_of

DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x5e" * 20)
PAYER_KEY = LocalSigner(b"\x01" * 32)
STRANGER = LocalSigner(b"\x99" * 32)
BASE, POET, BREVITY = b"\xba" * 32, b"\xa1" * 32, b"\xa2" * 32
OWNERS = {BASE: b"\x0b" * 20, POET: b"\x0a" * 20, BREVITY: b"\x0c" * 20}
ROYALTY_RATES = {BASE: 3 * 10**9, POET: 7 * 10**9, BREVITY: 2 * 10**9}
RATES = ComputeRates(200 * 10**9, 600 * 10**9)
CHARGE = 1_000_000_000
NOW = 1_750_000_000
RICH = 10**18
EPOCH_S = 60
WORDS = 280
"""The id of the token `t0 `, the first of a thousand."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer() -> Tokenizer:
    """Byte-level, no merges to speak of: a token is about a byte."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["the quick brown fox asks the node", "and the node answers"] * 4, trainer)
    made.add_tokens([AddedToken(f"t{number} ", normalized=False) for number in range(1_000)])
    return made


def write_base(folder: Path) -> Path:
    """A base's folder as far as the gateway reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    save_file({"weight": numpy.zeros(4, numpy.float32)}, folder / "model.safetensors")
    return folder


@dataclass
class Clock:
    """Unix seconds, as far as the test moves them."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now


class FakeChain:
    """The chain as dictionaries."""

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.rates = dict(ROYALTY_RATES)
        self.versions: Counter[bytes] = Counter(dict.fromkeys(ROYALTY_RATES, 1))
        self.kinds = {BASE: 1, POET: 2, BREVITY: 2}
        self.components: dict[bytes, tuple[tuple[bytes, int], ...]] = {}
        self.denied: set[bytes] = set()
        self.escrows: dict[bytes, EscrowState] = {}
        self.channels: dict[tuple[bytes, bytes], tuple[int, int, int]] = {}
        self.down = False

    def key_of(self, node: bytes) -> bytes | None:
        return self.keys.get(node)

    async def terms(self, artifact: bytes) -> Terms:
        if self.down:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED)
        if artifact not in self.rates:
            return Terms(artifact)
        return Terms(
            artifact,
            self.kinds.get(artifact, 0),
            OWNERS[artifact],  # type: ignore[arg-type]
            self.versions[artifact],
            self.rates[artifact],
            components=self.components.get(artifact, ()),
        )

    async def terms_at(self, artifact: bytes, version: int) -> Terms | None:
        found = await self.terms(artifact)
        return found if found.version == version else None

    async def has_access(self, artifact: bytes, subject: bytes) -> bool:
        return artifact not in self.denied

    async def escrow(self, payer: bytes, node: bytes) -> EscrowState:
        if self.down:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED)
        return self.escrows.get(node, EscrowState(0))

    async def redeemed(self, payer: bytes, signer: bytes, node: bytes, pipeline: bytes) -> tuple[int, int, int]:
        return self.channels.get((node, pipeline), (0, 0, 0))

    def health(self) -> ServiceHealth:
        return ServiceHealth("chain", Level.DEGRADED if self.down else Level.UP, "down" if self.down else "")


Tamper = Callable[[Receipt], Receipt]


@dataclass
class Script:
    """What a node does other than its duty."""

    output: Sequence[int] = tuple(range(WORDS + 100, WORDS + 112))
    """Generated token ids of each choice."""
    refuse: OpenLoraError | None = None
    """What it answers to `infer` instead of taking it."""
    refuse_times: int = 1_000_000
    rates: ComputeRates = RATES
    charge: int = CHARGE
    quote: Callable[[Quote], Quote] = lambda quote: quote
    quote_key: LocalSigner | None = None
    prompt_error: int = 0
    """Added to its count of the prompt."""
    receipt: Tamper = lambda receipt: receipt
    receipt_key: LocalSigner | None = None
    resend_receipt: bool = False
    """Send the receipt of the first request again."""
    vanish_after: int | None = None
    """The stream dies after so many tokens."""
    error_after: tuple[int, OpenLoraError] | None = None
    unpaid_tokens: int = 1_024
    demand: int = 0
    """Tokens that a pause asks for beyond what was sent."""
    silent_quote: bool = False
    fail: bool = False
    """The receipt says that the run failed."""
    hold: asyncio.Event | None = None
    """Tokens come once this is set."""
    per_message: int = 4
    text: Callable[[str], str] = lambda text: text
    """What it says its tokens stand for."""
    lose_done: bool = False
    """Commit the receipt, then let the stream die before it is sent."""
    behind: dict[bytes, tuple[Behind, ...]] = field(default_factory=dict)
    """What its receipts say of the artifacts behind others."""
    leaves: Callable[[str, dict[str, bytes]], dict[str, bytes]] = lambda group, facts: facts
    """The leaves that it signs for, by group."""
    evidence: Callable[[bytes], bytes] = lambda packed: packed
    """The leaves that it sends, packed."""
    proof: Callable[[messages.Proof], VoucherMessage] = lambda proof: proof
    """What it answers to `proof?`."""


class ScriptedNode:
    """One node: a registered key, a journal, a script."""

    def __init__(self, index: int, folder: Path, clock: Clock, script: Script | None = None) -> None:
        self.node = bytes([index]) * 32
        self.key = LocalSigner(bytes([index, 7]) * 16)
        self.script = script or Script()
        self.clock = clock
        self.journal = Journal.open(folder / f"node{index}.sqlite", Binding.to_node(DOMAIN, self.node), clock)
        self.requests: list[Signed[Request]] = []
        self.vouchers: list[Signed[Voucher]] = []
        self.bodies: list[bytes] = []
        self.cancelled = 0
        self.quoted = 0
        self.open: dict[bytes, tuple[LedgerKey, OpenRun]] = {}
        self.sent = asyncio.Event()
        """Set when tokens have been sent."""
        self.closing: dict[LocalExchange, int] = {}
        """Fees of receipts whose closing vouchers are awaited: no debt yet."""
        self._first_done: messages.Done | None = None
        self._schedules: dict[bytes, RoyaltySchedule] = {}
        self._pipelines: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return f"ScriptedNode({self.node[:1].hex()})"

    def _quote(self, payer: bytes, pipeline: Pipeline) -> Signed[Quote]:
        parts = [(pipeline.base, pipeline.base_terms_version)]
        parts += [(adapter.id, adapter.terms_version) for adapter in pipeline.adapters]
        self.quoted += 1
        quote = Quote(
            payer=payer,
            node=self.node,
            pipeline_id=pipeline.id,
            input_rate=self.script.rates.input_rate,
            output_rate=self.script.rates.output_rate,
            royalties=tuple(
                Royalty(artifact=artifact, terms_version=version, rate=ROYALTY_RATES[artifact], owner=OWNERS[artifact])
                for artifact, version in parts
            ),
            settlement_charge=self.script.charge,
            issued_at=self.clock(),
            expires_at=self.clock() + 180,
        )
        quote = self.script.quote(quote)
        self._schedules[pipeline.id] = (
            RoyaltySchedule.quoted(pipeline, quote) if quote.pipeline_id == pipeline.id else (RoyaltySchedule((0,)))
        )
        self._pipelines[pipeline.id] = pipeline.pack()
        return quote.sign(DOMAIN, self.script.quote_key or self.key)

    async def serve(self, link: LocalExchange) -> None:
        """One exchange, from quote to settled voucher."""
        try:
            while (message := await link.next()) is not None:
                match message:
                    case messages.AskQuote():
                        if self.script.silent_quote:
                            link.die()
                            return
                        quote = self._quote(message.payer, Pipeline.unpack(message.pipeline))
                        link.put(messages.QuoteReply(id=1, quote=quote.pack()))
                    case messages.Infer():
                        await self._infer(message, link)
                    case messages.Pay():
                        settled = await self._take(message.voucher)
                        self.closing.pop(link, None)
                        link.put(messages.Settled(id=1, cumulative_tokens=settled))
                    case messages.Cancel():
                        self.cancelled += 1
        except OpenLoraError as error:
            link.put(messages.ErrorReply.of(error, 1))
        finally:
            self.closing.pop(link, None)

    async def _infer(self, message: messages.Infer, link: LocalExchange) -> None:
        script = self.script
        if script.refuse is not None and script.refuse_times > 0:
            script.refuse_times -= 1
            raise script.refuse
        signed = Signed.unpack(Request, message.request)
        request, pipeline = signed.value, Pipeline.unpack(message.pipeline)
        assert signed.signer(DOMAIN) == request.payer
        assert request.node == self.node
        assert request.pipeline_id == pipeline.id
        assert request.body_hash == body_hash(message.body)
        self.requests.append(signed)
        self.bodies.append(message.body)
        body = parse_body(message.body, 1 << 20)
        prompt = count(body)
        schedule = self._schedules[pipeline.id]
        assert request.max_fee >= max_fee(schedule, script.rates, prompt, request.max_tokens, script.charge)
        key = LedgerKey.of(request, signed.signer(DOMAIN))
        run = OpenRun(script.rates, script.charge, prompt, request.max_tokens)
        state = (await self._state(key)).with_run(run)
        opening = Signed.unpack(Voucher, message.voucher)
        self.vouchers.append(opening)
        if refusal := opens(state, opening.value, sum(self.closing.values())):
            raise refusal.error()
        entry = VoucherEntry(opening, opening.signer(DOMAIN), schedule.value(opening.value))
        admission = await self.journal.admit(signed, entry.signer, EscrowSnapshot(RICH), opening=entry)
        assert not isinstance(admission, AlreadyDone)
        self.open[admission.digest] = key, run
        link.put(messages.Accepted(id=1, prompt_tokens=prompt + script.prompt_error))
        if script.hold is not None:
            await script.hold.wait()
        await self._generate(link, signed, admission.digest, key, run, body)

    async def _generate(
        self, link: LocalExchange, signed: Signed[Request], digest: bytes, key: LedgerKey, run: OpenRun, body: Body
    ) -> None:
        script, sent, stopped = self.script, 0, False
        choices = body.choices
        each = min(len(script.output), signed.value.max_tokens // choices)
        ids: list[list[int]] = [[] for _ in range(choices)]
        said = [""] * choices
        for choice in range(choices):
            for start in range(0, each, script.per_message):
                if link.cancelled:
                    stopped = True
                    break
                if script.vanish_after is not None and sent >= script.vanish_after:
                    link.die()
                    return
                if script.error_after is not None and sent >= script.error_after[0]:
                    await self.journal.interrupt(digest)  # type: ignore[arg-type]
                    self.open.pop(digest, None)
                    raise script.error_after[1]
                part = tuple(script.output[start : min(start + script.per_message, each)])
                ids[choice].extend(part)
                sent += len(part)
                run = replace(run, generated=sent)
                self.open[digest] = key, run
                words = tokenizer().decode(ids[choice], skip_special_tokens=True)
                text = script.text(words[len(said[choice]) :])
                said[choice] = words
                link.put(messages.Tokens(id=1, choice=choice, start=start, token_ids=part, text=text))
                self.sent.set()
                await asyncio.sleep(0)
                if not await self._paid(link, key):
                    stopped = True
                    break
        if script.vanish_after is not None:
            link.die()
            return
        status = ReceiptStatus.CANCELLED if stopped else ReceiptStatus.COMPLETE
        stored = await self.journal.commit_receipt(
            digest,  # type: ignore[arg-type]
            lambda slot: self._receipt(slot, run.prompt_tokens, ids, status, key.pipeline, body),
        )
        self.open.pop(digest, None)
        if script.lose_done:
            link.die()
            return
        self.closing[link] = stored.receipt.value.fee
        reason = "length" if each == signed.value.max_tokens // choices else "stop"
        packed = stored.receipt.pack()
        tampered = script.receipt(stored.receipt.value)
        if tampered != stored.receipt.value or script.receipt_key is not None:
            packed = tampered.sign(DOMAIN, script.receipt_key or self.key).pack()
        sent_leaves = script.evidence(self._evidence(stored))
        done = messages.Done(id=1, receipt=packed, finish_reason=reason, salt=stored.salt, evidence=sent_leaves)
        if script.resend_receipt and self._first_done is not None:
            done = self._first_done
        self._first_done = self._first_done or done
        link.put(done)

    async def _paid(self, link: LocalExchange, key: LedgerKey) -> bool:
        """Pause until the next voucher while too much is unpaid. False when the payer went away instead."""
        while (state := await self._state(key)).unpaid_tokens() > self.script.unpaid_tokens:
            used = state.used()
            link.put(
                messages.Paused(
                    id=1,
                    cumulative_tokens=used.tokens + self.script.demand,
                    cumulative_compute=used.compute.to_bytes(16, "big"),
                )
            )
            message = await link.next()
            if not isinstance(message, messages.Pay):
                return False
            settled = await self._take(message.voucher)
            link.put(messages.Settled(id=1, cumulative_tokens=settled))
        return True

    def _receipt(
        self,
        slot: ReceiptSlot,
        prompt: int,
        choices: list[list[int]],
        status: ReceiptStatus,
        pipeline: bytes,
        body: Body,
    ) -> ReceiptDraft:
        script, schedule, salt = self.script, self._schedules[pipeline], secrets.token_bytes(32)
        output = Output(tuple(map(tuple, choices)))
        ids = list(output.token_ids)
        charged = charge(slot.before, schedule, script.rates, prompt, len(ids), script.charge)
        failed = script.fail
        signer = PAYER_KEY.address
        if failed:
            groups = leaves.signer_alone(signer, salt), ()
        else:
            groups = (
                leaves.attribution(self._parts(pipeline), schedule, slot.before, charged, signer, salt),
                leaves.commitment(Sampling(sampler_hash(body), seed_of(body)), output, salt),
            )
        evidence = Evidence(
            *(
                tuple(
                    NamedLeaf(name, value, leaves.salt_of(salt, name))
                    for name, value in sorted(script.leaves(group, {leaf.name: leaf.value for leaf in found}).items())
                )
                for group, found in zip(("attribution", "commitment"), groups, strict=True)
            )
        )
        receipt = Receipt(
            request_digest=slot.request_digest,
            payer=slot.request.value.payer,
            node=self.node,
            pipeline_id=pipeline,
            status=ReceiptStatus.FAILED if failed else status,
            engine_digest=b"\x55" * 32,
            prompt_tokens=0 if failed else prompt,
            completion_tokens=0 if failed else len(ids),
            output_hash=output_hash([] if failed else ids),
            attribution_root=named_root(evidence.attribution),
            commitment_root=named_root(evidence.commitment),
            compute=0 if failed else charged.compute,
            royalties=0 if failed else charged.royalties,
            started_at=self.clock(),
            finished_at=self.clock(),
            seq=slot.seq,
            previous=slot.previous,
        )
        after = slot.before if failed else charged.after
        return ReceiptDraft(receipt.sign(DOMAIN, self.key), salt, after, evidence.pack())

    def _parts(self, packed_id: bytes) -> tuple[Part, ...]:
        """Who a response is made with, as its receipt names them."""
        pipeline = Pipeline.unpack(self._pipelines[packed_id])
        parts = (
            (pipeline.base, pipeline.base_terms_version, 10_000),
            *((adapter.id, adapter.terms_version, adapter.weight) for adapter in pipeline.adapters),
        )
        return tuple(
            Part(artifact, version, weight, OWNERS[artifact], self.script.behind.get(artifact, ()))
            for artifact, version, weight in parts
        )

    def _evidence(self, stored: StoredReceipt) -> bytes:
        with Reader(self.journal.path) as reader:
            return reader.evidence(self.node, stored.receipt.value.seq)

    def prove(self, digest: bytes) -> VoucherMessage:
        """What /openlora/voucher/1 shows of a receipt: alone in its epoch, which is over."""
        with Reader(self.journal.path) as reader:
            (stored,) = reader.find_receipts(digest, 2)
        epoch = stored.receipt.value.finished_at // EPOCH_S
        proof = messages.Proof(
            salt=stored.salt, evidence=self.script.evidence(self._evidence(stored)), epoch=epoch, closed=True
        )
        return self.script.proof(proof)

    async def _take(self, packed: bytes) -> int:
        voucher = Signed.unpack(Voucher, packed)
        self.vouchers.append(voucher)
        key = LedgerKey.of(voucher.value, voucher.signer(DOMAIN))
        accepted = accept(await self._state(key), voucher.value)
        if isinstance(accepted, Refusal):
            raise accepted.error()
        schedule = self._schedules[key.pipeline]
        await self.journal.advance_voucher(VoucherEntry(voucher, voucher.signer(DOMAIN), schedule.value(voucher.value)))
        return accepted.cumulative_tokens

    async def _state(self, key: LedgerKey) -> LedgerState:
        ledger = await self.journal.ledger(key)
        held = ledger.newest_voucher
        running = tuple(run for where, run in self.open.values() if where == key)
        return LedgerState(self._schedules[key.pipeline], ledger.tally, held.value if held else None, running)

    async def owed(self) -> int:
        """What the payer owes here."""
        return await self.journal.owed(PAYER_KEY.address, self.node)

    async def ledger(self, pipeline: bytes) -> Any:
        """The payer's ledger here."""
        return await self.journal.ledger(LedgerKey(PAYER_KEY.address, self.node, PAYER_KEY.address, pipeline))

    async def account(self) -> messages.Account:
        """What /openlora/voucher/1 shows of the payer."""
        ledgers, receipts = [], []
        for pipeline, packed in self._pipelines.items():
            ledger = await self.ledger(pipeline)
            ledgers.append(
                messages.Ledger(
                    signer=PAYER_KEY.address,
                    pipeline=packed,
                    voucher=ledger.voucher or b"",
                    tokens=ledger.tally.tokens,
                    compute_micro_wei=ledger.tally.compute_micro_wei.to_bytes(20, "big"),
                )
            )
            with Reader(self.journal.path) as reader:
                key = LedgerKey(PAYER_KEY.address, self.node, PAYER_KEY.address, pipeline)
                receipts += [stored.receipt.pack() for stored in reader.open_receipts(key, 256)]
        return messages.Account(ledgers=tuple(ledgers), open_receipts=tuple(receipts))


def count(body: Body) -> int:
    """A prompt's tokens as the node counts them, written apart from the gateway's own code."""
    made = tokenizer()
    if body.kind == "chat":
        text = "".join(
            f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in body.raw["messages"]
        )
        return len(made.encode(text + "<|im_start|>assistant\n", add_special_tokens=False).ids)
    prompts = body.raw["prompt"] if isinstance(body.raw["prompt"], list) else [body.raw["prompt"]]
    return sum(len(made.encode(prompt).ids) for prompt in prompts)


class LocalExchange:
    """Both ends of one exchange, in memory."""

    def __init__(self) -> None:
        self._to_payer: asyncio.Queue[InferMessage | OpenLoraError] = asyncio.Queue()
        self._to_node: asyncio.Queue[InferMessage | None] = asyncio.Queue()
        self.cancelled = False
        self.closed = False
        self.dead = False

    # the payer's end

    async def send(self, message: InferMessage) -> None:
        if self.dead:
            raise OpenLoraError(ErrorCode.NODE_LOST, "the stream died")
        messages.INFER.encode(message)  # bounds hold
        self._to_node.put_nowait(message)

    async def receive(self) -> InferMessage:
        message = await self._to_payer.get()
        if isinstance(message, OpenLoraError):
            self._to_payer.put_nowait(message)
            raise message
        if isinstance(message, messages.ErrorReply):
            raise message.error()
        return message

    def cancel(self) -> None:
        if not self.cancelled and not self.dead:
            self.cancelled = True
            self._to_node.put_nowait(messages.Cancel(id=1))

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self._to_node.put_nowait(None)

    # the node's end

    async def next(self) -> InferMessage | None:
        return await self._to_node.get()

    def put(self, message: InferMessage) -> None:
        messages.INFER.encode(message)
        self._to_payer.put_nowait(msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=InferMessage))

    def die(self) -> None:
        self.dead = True
        self._to_payer.put_nowait(OpenLoraError(ErrorCode.NODE_LOST, "the stream died"))


class Street:
    """All nodes: the inference client, the candidates and the voucher sessions of a gateway, in one."""

    def __init__(self, nodes: Sequence[ScriptedNode]) -> None:
        self.nodes = {node.node: node for node in nodes}
        self.order = [node.node for node in nodes]
        self.reports: list[tuple[bytes, ErrorCode | None]] = []
        self.opened: Counter[bytes] = Counter()
        self.unreachable: set[bytes] = set()
        self.exchanges: list[LocalExchange] = []
        self.tasks = Tasks()
        self.asks: list[Ask] = []

    async def open(self, node: bytes) -> LocalExchange:
        if node in self.unreachable:
            raise OpenLoraError(ErrorCode.NODE_LOST, "no way to it")
        self.opened[node] += 1
        exchange = LocalExchange()
        self.exchanges.append(exchange)
        self.tasks.spawn(self.nodes[node].serve(exchange), f"node {node[:1].hex()}")
        return exchange

    async def follow(self, base: bytes) -> None:
        return None

    async def offers(self, base: bytes) -> list[Offered]:
        if base != BASE:
            return []
        rates = {node: self.nodes[node].script.rates for node in self.order}
        return [Offered(node, rate.input_rate, rate.output_rate, 4_096) for node, rate in rates.items()]

    async def pick(self, base: bytes, ask: Ask, tried: Collection[bytes]) -> bytes | None:
        self.asks.append(ask)
        return next((node for node in self.order if node not in tried), None) if base == BASE else None

    def report(self, node: bytes, error: OpenLoraError | None, base: bytes, ask: Ask) -> None:
        assert (base, ask.max_fee > 0) == (BASE, True)
        self.reports.append((node, None if error is None else error.code))

    async def health(self) -> ServiceHealth:
        return ServiceHealth("network", Level.UP)

    async def talk(self, node: bytes) -> AccountTalk:
        if node in self.unreachable:
            raise OpenLoraError(ErrorCode.NODE_LOST, "no way to it")
        return AccountTalk(self.nodes[node])


class AccountTalk:
    """A voucher session with a scripted node."""

    def __init__(self, node: ScriptedNode) -> None:
        self._node = node
        self._replies: list[VoucherMessage] = []

    async def send(self, message: VoucherMessage) -> None:
        messages.VOUCHER.encode(message)
        match message:
            case messages.GetAccount():
                query = Signed.unpack(AccountQuery, message.query)
                assert query.signer(DOMAIN) == PAYER_KEY.address
                assert query.value.node == self._node.node
                self._replies.append(await self._node.account())
            case messages.GetProof():
                query = Signed.unpack(AccountQuery, message.query)
                assert query.signer(DOMAIN) == PAYER_KEY.address
                self._replies.append(self._node.prove(message.receipt))
            case messages.PutVoucher():
                try:
                    await self._node._take(message.voucher)
                except OpenLoraError as error:
                    self._replies.append(messages.ErrorReply.of(error))
                    return
                value = Signed.unpack(Voucher, message.voucher).value
                held = (await self._node.ledger(value.pipeline_id)).voucher
                self._replies.append(messages.VoucherReply(voucher=held))

    async def receive(self) -> VoucherMessage | None:
        return self._replies.pop(0) if self._replies else None

    async def close(self) -> None:
        return None


class FakeSender:
    """The outbox of the escrows: carries deposits out at once, onto the fake chain."""

    def __init__(self, chain: FakeChain) -> None:
        self.chain = chain
        self.blocked: str | None = None
        self.journal: Journal | None = None
        self.woken = asyncio.Event()
        self.carries = True

    def wake(self) -> None:
        self.woken.set()

    async def carry_out(self) -> list[int]:
        """Mine what is queued."""
        from openlora_chain.store import IntentState
        from openlora_node.journal.outbox import close as close_intent
        from openlora_node.journal.outbox import open_intents

        assert self.journal is not None
        done: list[int] = []
        for intent in await self.journal.transact(lambda tx: open_intents(tx, PAYER_KEY.address, DOMAIN.chain_id)):
            node = intent.request.subject[:32]
            held = self.chain.escrows.get(node, EscrowState(0))
            self.chain.escrows[node] = EscrowState(held.balance + intent.request.value, held.thawing)
            await self.journal.transact(
                lambda tx, intent=intent: close_intent(tx, intent.id, IntentState.CANCELLED, None, NOW)  # type: ignore[misc]
            )
            done.append(intent.request.value)
        return done


def deposit_intent(node: bytes, wei: int) -> NewIntent:
    """A deposit's transaction."""
    return NewIntent("deposit", node, DOMAIN.chain_id, PAYER_KEY.address, b"\x5e" * 20, b"", wei)


@dataclass
class World:
    """A payer, its nodes and its chain."""

    payer: Payer
    purse: Purse
    chain: FakeChain
    street: Street
    nodes: list[ScriptedNode]
    recovery: Recovery
    requests: Tasks
    clock: Clock
    sender: FakeSender
    names: Names
    escrows: Escrows
    folder: Path = field(default_factory=Path)

    async def ask(self, body: bytes | None = None, **fields: Any) -> tuple[str, Answer]:
        """One request to its end: the text of choice 0, and the answer."""
        answer = self.payer.start(await self.prepare(body, **fields))
        text = ""
        async for piece in answer:
            if piece.choice == 0:
                text += piece.text
        return text, answer

    async def prepare(self, body: bytes | None = None, **fields: Any) -> Any:
        """A prepared request."""
        return await self.payer.prepare(parse_body(body or chat(**fields), 1 << 20))

    async def settle_down(self) -> None:
        """Wait until nothing of ours runs."""
        await self.requests.idle()


def chat(text: str = "the quick brown fox", model: str = "tiny", **fields: Any) -> bytes:
    """A chat body."""
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": text}], **fields})


@asynccontextmanager
async def world(
    folder: Path,
    *scripts: Script,
    caps: Caps | None = None,
    rules: EscrowRules | None = None,
    funded: bool = True,
    clock: Clock | None = None,
    nodes: list[ScriptedNode] | None = None,
    chain: FakeChain | None = None,
) -> AsyncIterator[World]:
    """A payer among nodes with these scripts. Nodes may be handed in, to outlive a payer."""
    clock = clock or (nodes[0].clock if nodes else Clock())
    chain = chain or FakeChain()
    own = nodes is None
    made = nodes or [
        ScriptedNode(index + 1, folder, clock, script) for index, script in enumerate(scripts or (Script(),))
    ]
    for node in made:
        chain.keys[node.node] = node.key.address
        if funded:
            chain.escrows.setdefault(node.node, EscrowState(RICH))
    base = write_base(folder / "base")
    names = Names(
        {"tiny": BaseName("tiny", BASE, base)},
        {"poet": AdapterName("poet", POET, BASE), "brevity": AdapterName("brevity", BREVITY, BASE)},
    )
    street = Street(made)
    journal = Journal.open(folder / "payer.sqlite", Binding.to_payer(DOMAIN, PAYER_KEY.address), clock)
    purse = Purse(journal, PAYER_KEY.address, PAYER_KEY, caps or Caps(10**15, 10**16), clock)
    sender = FakeSender(chain)
    sender.journal = journal

    async def look(_: float) -> None:
        if sender.carries:
            await sender.carry_out()
        await asyncio.sleep(0)

    rules = rules or EscrowRules(4, 10**16, 10**17)
    escrows = Escrows(journal, chain, PAYER_KEY.address, rules, deposit_intent, sender, clock, sleep=look, timeout_s=5)
    recovery = Recovery(purse, chain, street)
    requests = Tasks()
    payer = Payer(
        purse=purse,
        chain=chain,
        nodes=street,
        inference=street,
        escrows=escrows,
        tokenizers=Tokenizers(NamedFolders(names)),
        names=names,
        held=Quotes(purse, chain),
        recover=recovery.try_look,
        spawn=requests.spawn,
    )
    try:
        yield World(payer, purse, chain, street, made, recovery, requests, clock, sender, names, escrows, folder)
    finally:
        await requests.close(5)
        await street.tasks.close(0)
        await journal.close()
        if own:
            for node in made:
                await node.journal.close()
