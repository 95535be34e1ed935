"""What serving needs of the rooms around it, as small interfaces, and its own settings. The daemon fills them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..attribution import Output, Part
from ..chainview.values import EscrowState, Scope, Terms
from ..config.schema import Config
from ..config.units import Rate
from ..engineclient.values import Chunk, EngineInfo, EngineLoad, Mix
from ..network.buckets import Allowance
from ..openai import Body
from ..protocol.eip712 import Domain
from ..protocol.manifest import AnyManifest
from ..protocol.messages import AskQuote, Cancel, Infer, InferMessage, Pay
from ..protocol.pipeline import Pipeline


class ChainLike(Protocol):
    """The chain view. Every method may raise CHAIN_FAILED; answers are cached, so that asking often costs nothing."""

    @property
    def domain(self) -> Domain: ...  # noqa: D102

    async def terms(self, artifact: bytes) -> Terms:
        """An artifact's current terms; version 0 while it is not registered."""
        ...

    async def terms_at(self, artifact: bytes, version: int) -> Terms | None:
        """One version of its terms; None where there is none."""
        ...

    async def accepted_until(self, artifact: bytes, version: int) -> int:
        """Unix seconds until which this version is honoured."""
        ...

    async def has_access(self, artifact: bytes, scope: Scope | int, subject: bytes) -> bool:
        """Whether a payer may use it, or a node hold it."""
        ...

    async def may_sign(self, payer: bytes, signer: bytes) -> bool:
        """Whether a signer signs for a payer."""
        ...

    async def escrow(self, payer: bytes, node: bytes) -> EscrowState:
        """A payer's escrow with a node."""
        ...


class EngineLike(Protocol):
    """One engine with one base. Raises BUSY, ENGINE_UNAVAILABLE, ENGINE_FAILED, and what is wrong with a body."""

    async def info(self) -> EngineInfo:
        """What it serves and runs as."""
        ...

    async def count(self, body: Body, mix: Mix) -> int:
        """Prompt tokens as the engine will count them."""
        ...

    def generate(
        self, body: Body, mix: Mix, *, max_tokens: int, tenant: str, request_id: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Run. `max_tokens` bounds each choice; leaving the context early cancels in the engine."""
        ...

    async def ensure(self, artifact: bytes, folder: Path) -> None:
        """Have an adapter loaded from its folder."""
        ...

    async def load(self) -> EngineLoad:
        """How busy it is."""
        ...


EngineChoice = Callable[[Pipeline], EngineLike]
"""The engine that runs a pipeline of one base, chosen anew for each request where several serve it."""


class ArtifactsLike(Protocol):
    """The artifact store, with the network behind it for what is not there yet."""

    async def ensure(self, artifact: bytes) -> Path:
        """The artifact's folder, fetched if this node may. Raises ADAPTER_NOT_FOUND, ACCESS_DENIED, STORAGE_*."""
        ...

    def manifest(self, artifact: bytes) -> AnyManifest | None:
        """Its manifest, if the artifact is here."""
        ...


class PeerLike(Protocol):
    """Who sent a request."""

    @property
    def id(self) -> str: ...  # noqa: D102


class InboundLike(Protocol):
    """One request on a stream, as `network.inference.Inbound` gives it; also what the signed HTTP route makes."""

    @property
    def peer(self) -> PeerLike: ...  # noqa: D102
    @property
    def remote_ip(self) -> str | None: ...  # noqa: D102
    @property
    def first(self) -> AskQuote | Infer: ...  # noqa: D102

    async def receive(self) -> Pay | Cancel:
        """The payer's next message. Raises NODE_LOST when it is gone."""
        ...

    async def send(self, message: InferMessage) -> None:
        """Answer. Raises NODE_LOST."""
        ...

    async def tokens(self, choice: int, start: int, token_ids: Sequence[int], text: str, logprobs: bytes = b"") -> None:
        """Send generated tokens; waits for a peer that lags."""
        ...


@dataclass(frozen=True)
class Prices:
    """What this node asks: wei per 1,000,000 tokens, and wei once a ledger."""

    input_rate: int
    output_rate: int
    settlement_charge: int


Alternatives = Callable[[Pipeline], tuple[bytes, ...]]
"""Up to 8 node ids that may serve a pipeline instead."""


def no_alternatives(_: Pipeline) -> tuple[bytes, ...]:
    """Nobody else is known."""
    return ()


Tracing = Callable[[tuple[Part, ...], Mapping[str, Any], Output], Awaitable[tuple[Part, ...]]]
"""Adds to the parts of a response what their datasets have in it; takes the body's fields and what was generated.

Runs after the last token. Bounded in time, raises nothing.
"""


async def only_declared(parts: tuple[Part, ...], _: Mapping[str, Any], __: Output) -> tuple[Part, ...]:
    """There is no index here: datasets stay declared."""
    return parts


@dataclass(frozen=True)
class ServingOptions:
    """Bounds and times of serving. Seconds, tokens and bytes."""

    max_body_bytes: int = 1 << 20
    peer: Allowance = field(default_factory=lambda: Allowance(2.0, 120))
    ip: Allowance = field(default_factory=lambda: Allowance(5.0, 300))
    signer: Allowance = field(default_factory=lambda: Allowance(1.0, 60))
    queue: int = 64
    """Admitted requests without a first token."""
    in_flight_per_payer: int = 4
    """Requests of one payer that wait, run, or await their closing voucher."""
    unpaid_tokens: int = 1_024
    """Tokens of one ledger past its newest voucher before its output pauses."""
    epoch_s: int = 3_600
    """Length of an epoch of receipts, in seconds."""
    lead_tokens: int = 4_096
    """Tokens that a response may be ahead of its fastest reader before it pauses."""
    quote_s: int = 180
    max_quotes: int = 16_384
    max_quotes_per_peer: int = 256
    pay_s: float = 30.0
    """How long paused output waits for a voucher before the response ends as cancelled."""
    closing_s: float = 30.0
    """How long a closing voucher is awaited before the receipt's fee counts as debt."""
    answer_s: float = 2.0
    """How long a closing voucher is awaited whose receipt is paid for already, before `settled`."""
    orphan_s: float = 30.0
    """How long a response whose reader is gone goes on before it ends as cancelled."""
    stall_s: float = 120.0
    """How long output waits for a reader that lags by `lead_tokens` before the response ends as cancelled."""
    recent_s: int = 300
    recent_bytes: int = 64 << 20
    recent_count: int = 1_024
    """Finished responses kept in memory for retries."""
    max_ledgers: int = 4_096
    """Ledgers without a running request that are kept in memory."""
    other_chains: tuple[int, ...] = (1612, 161201)
    """Chain ids for which a wrong signature is told as WRONG_CHAIN."""

    @classmethod
    def of(cls, config: Config) -> ServingOptions:
        """As the configuration says."""
        limits = config.limits
        return cls(
            max_body_bytes=min(limits.max_body, 1 << 20),
            peer=_allowance(limits.peer_rate),
            ip=_allowance(limits.ip_rate),
            signer=_allowance(limits.signer_rate),
            queue=limits.queue,
            in_flight_per_payer=limits.in_flight_per_payer,
            unpaid_tokens=limits.unpaid_tokens,
            epoch_s=int(config.settlement.epoch.total_seconds()),
        )


def _allowance(rate: Rate) -> Allowance:
    return Allowance(rate.per_second, float(max(1, rate.count)))


@dataclass(frozen=True)
class ServingLoad:
    """How busy serving is now. `queue` waits for its first token, `running` generates, `closing` awaits a voucher."""

    queue: int
    running: int
    closing: int
    tokens_per_second: float
    draining: bool
    responses: int
    """Receipts since the start."""
    refused: int
    """Requests refused or failed since the start."""
