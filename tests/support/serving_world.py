"""A world for serving, in memory: chain, artifacts, scripted engine, a payer with keys, exchanges; and a real journal.

Everything is deterministic: an engine plays the script it is given and can be held at any token, a payer signs what a
test tells it to sign.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from openlora_node.chainview.values import FOREVER, EscrowState, Kind, Terms
from openlora_node.engineclient.values import Chunk, EngineInfo, EngineLoad, Mix
from openlora_node.journal import Binding, Journal
from openlora_node.network.buckets import Allowance
from openlora_node.openai import Body
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.manifest import AnyManifest
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge, max_fee
from openlora_node.protocol.structs import AccountQuery, Quote, Receipt, Request, Voucher, body_hash
from openlora_node.serving import Prices, Serving, ServingOptions

DOMAIN = Domain(chain_id=31337, verifying_contract=b"\x5e" * 20)
NODE = b"\x11" * 32
NODE_KEY = LocalSigner(b"\x91" * 32)
OWNER = LocalSigner(b"\x92" * 32)
NOW = 1_750_000_000
BASE = b"\xb0" * 32
ADAPTERS = (b"\xa1" * 32, b"\xa2" * 32)
DATASET = b"\xd0" * 32
PRICES = Prices(200_000_000_000, 600_000_000_000, 1_000)
"""0.2 and 0.6 · 10⁻⁶ OPEN a token: 200,000 and 600,000 wei."""
ROYALTY = 50_000_000_000
OPEN_DOOR = Allowance(1e9, 1e9)
OPTIONS = ServingOptions(peer=OPEN_DOOR, ip=OPEN_DOOR, signer=OPEN_DOOR, answer_s=0.05)
"""Doors wide open, times long: each test narrows what it is about."""


@dataclass
class Clock:
    """Unix seconds, and seconds that only grow, as far as the test moves them."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now

    def instant(self) -> float:
        """The same, for allowances."""
        return float(self.now)


@dataclass
class FakeChain:
    """Terms, doors and escrows that a test sets."""

    domain: Domain = DOMAIN
    registered: dict[tuple[bytes, int], Terms] = field(default_factory=dict)
    closed: set[tuple[bytes, bytes]] = field(default_factory=set)
    accepted: dict[tuple[bytes, int], int] = field(default_factory=dict)
    escrows: dict[bytes, EscrowState] = field(default_factory=dict)
    signers: set[tuple[bytes, bytes]] = field(default_factory=set)
    default_escrow: EscrowState = field(default_factory=lambda: EscrowState(10**24))
    down: bool = False
    gate: asyncio.Event | None = None
    """When set, escrow reads wait for it."""

    def register(self, artifact: bytes, kind: Kind, rate: int, components: tuple[tuple[bytes, int], ...] = ()) -> None:
        """Version 1 of an artifact's terms."""
        self.registered[(artifact, 1)] = Terms(artifact, kind, OWNER.address, 1, rate, components=components)

    async def terms(self, artifact: bytes) -> Terms:
        self._check()
        versions = [terms for (one, _), terms in self.registered.items() if one == artifact]
        return max(versions, key=lambda terms: terms.version, default=Terms(artifact))

    async def terms_at(self, artifact: bytes, version: int) -> Terms | None:
        self._check()
        return self.registered.get((artifact, version)) or (Terms(artifact) if version == 0 else None)

    async def accepted_until(self, artifact: bytes, version: int) -> int:
        self._check()
        return self.accepted.get((artifact, version), FOREVER)

    async def has_access(self, artifact: bytes, scope: int, subject: bytes) -> bool:
        self._check()
        assert scope == 0
        return (artifact, subject) not in self.closed

    async def may_sign(self, payer: bytes, signer: bytes) -> bool:
        self._check()
        return (payer, signer) in self.signers

    async def escrow(self, payer: bytes, node: bytes) -> EscrowState:
        self._check()
        if self.gate is not None:
            await self.gate.wait()
        return self.escrows.get(payer, self.default_escrow)

    def _check(self) -> None:
        if self.down:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED)


@dataclass
class FakeArtifacts:
    """Adapters that are here, and how often each was asked for."""

    manifests: dict[bytes, AnyManifest] = field(default_factory=dict)
    missing: set[bytes] = field(default_factory=set)
    asked: list[bytes] = field(default_factory=list)

    async def ensure(self, artifact: bytes) -> Path:
        self.asked.append(artifact)
        if artifact in self.missing:
            raise OpenLoraError(ErrorCode.ADAPTER_NOT_FOUND)
        return Path("/adapters") / artifact.hex()

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        return self.manifests.get(artifact)


@dataclass
class FakeEngine:
    """Plays `script`, or one token a chunk up to max_tokens. `hold` stops it before its n-th chunk until `release`."""

    script: list[Chunk] | None = None
    first_id: int = 0
    """The id that stands for the token `t0 `."""
    fail_at: int | None = None
    error: OpenLoraError = field(default_factory=lambda: OpenLoraError(ErrorCode.ENGINE_FAILED))
    hold: int | None = None
    context: int = 100_000
    calls: int = 0
    left: int = 0
    """Contexts that were left."""
    yielded: int = 0
    loaded: list[bytes] = field(default_factory=list)
    seen: list[tuple[Mix, int, str]] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    async def info(self) -> EngineInfo:
        return EngineInfo("toy", "", self.context, "1", b"\xe1" * 32)

    async def count(self, body: Body, mix: Mix) -> int:
        return len(json.dumps(body.raw.get("messages") or body.raw.get("prompt"))) // 4

    @asynccontextmanager
    async def generate(
        self, body: Body, mix: Mix, *, max_tokens: int, tenant: str, request_id: str
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        self.calls += 1
        self.seen.append((mix, max_tokens, request_id))
        try:
            yield self._chunks(body, max_tokens)
        finally:
            self.left += 1
            self.exited.set()

    async def _chunks(self, body: Body, max_tokens: int) -> AsyncIterator[Chunk]:
        script = self.script if self.script is not None else tokens(max_tokens, body.choices, self.first_id)
        for index, chunk in enumerate(script):
            if index == self.hold:
                self.held.set()
                await self.release.wait()
            if index == self.fail_at:
                raise self.error
            self.yielded += 1
            yield chunk

    async def ensure(self, artifact: bytes, folder: Path) -> None:
        assert folder.name == artifact.hex()
        self.loaded.append(artifact)

    async def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0.0)


def tokens(each: int, choices: int = 1, first: int = 0) -> list[Chunk]:
    """One token a chunk from id `first` on, choice after choice in turn; the last of each says `length`."""
    return [
        Chunk(
            choice,
            (first + 1000 * choice + place,),
            f"t{place} ",
            finish_reason="length" if place == each - 1 else None,
        )
        for place in range(each)
        for choice in range(choices)
    ]


@dataclass(frozen=True)
class FakePeer:
    """An authenticated peer."""

    id: str = "16Uiu2HAmTest"


class FakeInbound:
    """A request's two ends: serving's is the Inbound, the test's are `sent`, `pay`, `cancel` and `lose`."""

    def __init__(
        self,
        first: messages.AskQuote | messages.Infer,
        peer: str = "16Uiu2HAmTest",
        remote_ip: str | None = "192.0.2.1",
    ) -> None:
        self.first = first
        self.peer = FakePeer(peer)
        self.remote_ip = remote_ip
        self.sent: list[messages.InferMessage] = []
        self.arrived = asyncio.Event()
        self.can_send = asyncio.Event()
        self.can_send.set()
        self._inbox: asyncio.Queue[messages.Pay | messages.Cancel | OpenLoraError] = asyncio.Queue()

    async def receive(self) -> messages.Pay | messages.Cancel:
        message = await self._inbox.get()
        if isinstance(message, OpenLoraError):
            raise message
        return message

    async def send(self, message: messages.InferMessage) -> None:
        await self.can_send.wait()
        messages.INFER.encode(message)
        self.sent.append(message)
        self.arrived.set()

    async def tokens(self, choice: int, start: int, token_ids: Sequence[int], text: str, logprobs: bytes = b"") -> None:
        await self.send(
            messages.Tokens(
                id=self.first.id, choice=choice, start=start, token_ids=tuple(token_ids), text=text, logprobs=logprobs
            )
        )

    def pay(self, voucher: bytes) -> None:
        """The payer sends a voucher."""
        self._inbox.put_nowait(messages.Pay(id=self.first.id, voucher=voucher))

    def cancel(self) -> None:
        """The payer wants no more."""
        self._inbox.put_nowait(messages.Cancel(id=self.first.id))

    def lose(self) -> None:
        """The payer's connection breaks."""
        self._inbox.put_nowait(OpenLoraError(ErrorCode.NODE_LOST))

    def of(self, kind: type) -> list:
        """Messages of one kind that came so far."""
        return [message for message in self.sent if isinstance(message, kind)]

    async def until(self, kind: type, number: int = 1) -> messages.InferMessage:
        """The `number`-th message of a kind."""
        while len(self.of(kind)) < number:
            self.arrived.clear()
            await self.arrived.wait()
        return self.of(kind)[number - 1]

    async def until_tokens(self, number: int) -> None:
        """So many tokens came."""
        while sum(len(message.token_ids) for message in self.of(messages.Tokens)) < number:
            self.arrived.clear()
            await self.arrived.wait()


@dataclass
class Payer:
    """A wallet, and what it knows of its ledger with the node."""

    key: LocalSigner = field(default_factory=lambda: LocalSigner(b"\x71" * 32))
    signs_with: LocalSigner | None = None

    @property
    def address(self) -> bytes:
        return self.key.address

    @property
    def signer(self) -> LocalSigner:
        return self.signs_with or self.key

    def voucher(
        self,
        pipeline: bytes,
        cumulative: int,
        compute: int,
        *,
        node: bytes = NODE,
        domain: Domain = DOMAIN,
        answers: bytes = ZERO32,
    ) -> bytes:
        """A packed, signed voucher."""
        return (
            Voucher(
                payer=self.address,
                node=node,
                pipeline_id=pipeline,
                cumulative_tokens=cumulative,
                cumulative_compute=compute,
                reference_digest=answers,
            )
            .sign(domain, self.signer)
            .pack()
        )

    def query(self, now: int = NOW, node: bytes = NODE) -> bytes:
        """A packed, signed account query."""
        return AccountQuery(payer=self.address, node=node, issued_at=now).sign(DOMAIN, self.signer).pack()


class World:
    """A node's serving and everything around it. `async with World(path)`."""

    def __init__(self, path: Path, options: ServingOptions = OPTIONS, **journal_options: object) -> None:
        self.clock = Clock()
        self.chain = FakeChain()
        self.chain.register(BASE, Kind.BASE, ROYALTY)
        self.chain.register(ADAPTERS[0], Kind.ADAPTER, ROYALTY, ((DATASET, 4_000),))
        self.chain.register(DATASET, Kind.DATASET, 0)
        self.artifacts = FakeArtifacts()
        self.engine = FakeEngine()
        self.path = path
        self.options = options
        self.prices = PRICES
        self.others: tuple[bytes, ...] = (b"\x77" * 32,)
        self.payer = Payer()
        self.pipeline = Pipeline.of(
            BASE,
            Adapter(id=ADAPTERS[0], terms_version=1, weight=7_000),
            Adapter(id=ADAPTERS[1], terms_version=0, weight=3_000),
            base_terms_version=1,
        )
        self._journal_options = journal_options
        self._nonces = count(1)
        self._ids = count(1)
        self.handlers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        self.journal = Journal.open(self.path, Binding.to_node(DOMAIN, NODE), self.clock, **self._journal_options)  # type: ignore[arg-type]
        self.serving = Serving(
            node=NODE,
            key=NODE_KEY,
            chain=self.chain,
            journal=self.journal,
            engines={BASE: lambda _: self.engine},
            artifacts=self.artifacts,
            prices=lambda: self.prices,
            options=self.options,
            clock=self.clock,
            instant=self.clock.instant,
            alternatives=lambda _: self.others,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.serving.drain(0)
        for handler in self.handlers:
            handler.cancel()
        await asyncio.gather(*self.handlers, return_exceptions=True)
        await self.journal.close()

    @property
    def schedule(self) -> RoyaltySchedule:
        """Of `pipeline`."""
        return RoyaltySchedule.of(self.pipeline, ROYALTY, (ROYALTY, 0))

    @property
    def rates(self) -> ComputeRates:
        """The node's price."""
        return ComputeRates(self.prices.input_rate, self.prices.output_rate)

    async def quote(self, payer: Payer | None = None, pipeline: Pipeline | None = None, **peer: str) -> Signed[Quote]:
        """Ask for a quote."""
        ask = messages.AskQuote(
            id=next(self._ids),
            payer=(payer or self.payer).address,
            pipeline=(pipeline or self.pipeline).pack(),
        )
        inbound = FakeInbound(ask, **peer)
        await self.serving.handle(inbound)
        (reply,) = inbound.sent
        assert isinstance(reply, messages.QuoteReply)
        return Signed.unpack(Quote, reply.quote)

    def body(self, text: str = "What is a LoRA?", **fields: object) -> bytes:
        """A chat body."""
        return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()

    def request(self, quote: Quote, body: bytes, payer: Payer | None = None, **changes: object) -> Signed[Request]:
        """A signed request that fits, but for `changes`; `domain` is what it is signed under."""
        payer = payer or self.payer
        domain = changes.pop("domain", DOMAIN)
        key = changes.pop("key", payer.signer)
        fields: dict = {
            "payer": payer.address,
            "node": NODE,
            "pipeline_id": self.pipeline.id,
            "quote_digest": quote.digest(DOMAIN),
            "body_hash": body_hash(body),
            "max_fee": 10**12,
            "max_tokens": 20,
            "nonce": next(self._nonces).to_bytes(32, "big"),
            "issued_at": self.clock.now,
            "expires_at": self.clock.now + 300,
        }
        return Request(**(fields | changes)).sign(domain, key)

    def infer(self, signed: Signed[Request], body: bytes, voucher: bytes = b"", **parts: bytes) -> messages.Infer:
        """The message that carries it."""
        fields: dict = {
            "request": signed.pack(),
            "pipeline": self.pipeline.pack(),
            "body": body,
            "voucher": voucher,
        }
        return messages.Infer(id=next(self._ids), **(fields | parts))

    async def tally(self, payer: Payer | None = None) -> Tally:
        """The committed tally of the payer's ledger."""
        return (await self.ledger(payer)).tally

    async def ledger(self, payer: Payer | None = None):
        """The payer's ledger in the journal."""
        from openlora_node.journal import LedgerKey

        payer = payer or self.payer
        return await self.journal.ledger(LedgerKey(payer.address, NODE, payer.signer.address, self.pipeline.id))

    def due(self, before: Tally, prompt: int, generated: int) -> Tally:
        """The ledger after one more response."""
        return charge(before, self.schedule, self.rates, prompt, generated, self.prices.settlement_charge).after

    def opening(self, before: Tally, prompt: int, generated: int = 0, payer: Payer | None = None) -> bytes:
        """A voucher that covers the ledger after one more response of this size."""
        after = self.due(before, prompt, generated)
        return (payer or self.payer).voucher(self.pipeline.id, after.tokens, after.compute)

    def prompt_of(self, body: bytes) -> int:
        """Prompt tokens as the engine counts them."""
        fields = json.loads(body)
        return len(json.dumps(fields.get("messages") or fields.get("prompt"))) // 4

    def handle(self, first: messages.Infer | messages.AskQuote, **peer: str | None) -> FakeInbound:
        """Give serving a request; the handler's task is `inbound.task`."""
        inbound = FakeInbound(first, **peer)  # type: ignore[arg-type]
        inbound.task = asyncio.create_task(self.serving.handle(inbound))  # type: ignore[attr-defined]
        self.handlers.append(inbound.task)  # type: ignore[attr-defined]
        return inbound

    async def ask(self, payer: Payer | None = None, body: bytes | None = None, **changes: object) -> FakeInbound:
        """Quote, sign, send: a request that is opened for its prompt."""
        body = body or self.body()
        quote = (await self.quote(payer)).value
        voucher = changes.pop("voucher", None)
        signed = self.request(quote, body, payer, **changes)
        if voucher is None:
            voucher = self.opening(await self.tally(payer), self.prompt_of(body), payer=payer)
        return self.handle(self.infer(signed, body, voucher))

    async def paid(self, payer: Payer | None = None, body: bytes | None = None, **changes: object) -> FakeInbound:
        """`ask`, then pay what the receipt says."""
        inbound = await self.ask(payer, body, **changes)
        await inbound.until(messages.Done)
        await self.settle(inbound, payer)
        return inbound

    async def settle(self, inbound: FakeInbound, payer: Payer | None = None) -> None:
        """Send the closing voucher and wait for the end."""
        tally = await self.tally(payer)
        answers = receipt_of(inbound).digest(DOMAIN)
        inbound.pay((payer or self.payer).voucher(self.pipeline.id, tally.tokens, tally.compute, answers=answers))
        await inbound.task  # type: ignore[attr-defined]

    def least_fee(self, prompt: int, most: int) -> int:
        """The least maxFee that the door takes."""
        return max_fee(self.schedule, self.rates, prompt, most, self.prices.settlement_charge)


def receipt_of(inbound: FakeInbound) -> Receipt:
    """The receipt that came, its signature checked."""
    (done,) = inbound.of(messages.Done)
    signed = Signed.unpack(Receipt, done.receipt)
    assert signed.signer(DOMAIN) == NODE_KEY.address
    return signed.value


async def refused(inbound: FakeInbound) -> OpenLoraError:
    """The error that ends a request."""
    try:
        await inbound.task  # type: ignore[attr-defined]
    except OpenLoraError as error:
        return error
    raise AssertionError("it was not refused")
