"""Counts requests as they pass: outcomes, tokens, time to the first token. No prompt, no output, no payer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from ..protocol import messages
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.messages import AskQuote, Cancel, Infer, InferMessage, Pay
from ..protocol.structs import Receipt, ReceiptStatus
from ..serving import InboundLike
from ..serving.ports import PeerLike

PREFIX = "openlora_node"
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIGNATURES = frozenset({ErrorCode.BAD_SIGNATURE, ErrorCode.WRONG_CHAIN, ErrorCode.BODY_MISMATCH})

ADAPTER_LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Handle = Callable[[InboundLike], Awaitable[None]]


class Meters:
    """What a node has done since its start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by what became of them.", ("outcome",))
        self.quotes = self._counter("quotes", "Quotes given.")
        self.tokens = self._counter("tokens", "Tokens charged for, of prompts and generated.", ("kind",))
        self.replays = self._counter("replay_rejected", "Requests whose nonce belonged to another.")
        self.signatures = self._counter("signature_rejected", "Requests whose signature did not fit.", ("reason",))
        self.first_token = Histogram(
            f"{PREFIX}_ttft_seconds", "From a request's arrival to its first token.",
            buckets=FIRST_TOKEN_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.adapter_load = Histogram(
            f"{PREFIX}_adapter_load_seconds", "Until an engine knew an adapter that it did not.", ("engine",),
            buckets=ADAPTER_LOAD_BUCKETS, registry=self.registry,
        )  # fmt: skip

    def watch(self, handle: Handle) -> Handle:
        """The same handler, counted."""

        async def counted(inbound: InboundLike) -> None:
            watched = _Watched(inbound, self)
            try:
                await handle(watched)
            except OpenLoraError as error:
                self._refused(error.code)
                raise
            except Exception:
                self.requests.labels("INTERNAL").inc()
                raise

        return counted

    def done(self, packed: bytes) -> None:
        """A response ended with this receipt."""
        receipt = Signed.unpack(Receipt, packed).value
        self.requests.labels(ReceiptStatus(receipt.status).name.lower()).inc()
        self.tokens.labels("prompt").inc(receipt.prompt_tokens)
        self.tokens.labels("generated").inc(receipt.completion_tokens)

    def _refused(self, code: ErrorCode) -> None:
        self.requests.labels(code.value).inc()
        if code is ErrorCode.NONCE_REUSED:
            self.replays.inc()
        if code in SIGNATURES:
            self.signatures.labels(code.value).inc()

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self.registry)


class _Watched:
    """A request on its way through serving, seen from outside."""

    def __init__(self, inbound: InboundLike, meters: Meters) -> None:
        self._inbound = inbound
        self._meters = meters
        self._began = time.monotonic()
        self._first = True

    @property
    def peer(self) -> PeerLike:
        return self._inbound.peer

    @property
    def remote_ip(self) -> str | None:
        return self._inbound.remote_ip

    @property
    def first(self) -> AskQuote | Infer:
        return self._inbound.first

    async def receive(self) -> Pay | Cancel:
        return await self._inbound.receive()

    async def send(self, message: InferMessage) -> None:
        if isinstance(message, messages.Done):
            self._meters.done(message.receipt)
        elif isinstance(message, messages.QuoteReply):
            self._meters.quotes.inc()
        await self._inbound.send(message)

    async def tokens(self, choice: int, start: int, token_ids: Sequence[int], text: str, logprobs: bytes = b"") -> None:
        if self._first:
            self._first = False
            self._meters.first_token.observe(time.monotonic() - self._began)
        await self._inbound.tokens(choice, start, token_ids, text, logprobs)
