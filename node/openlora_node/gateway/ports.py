"""What the gateway needs of the rooms around it, as small interfaces: the network, the chain, the directory of nodes.

The composition root fills them; tests fill them with scripted nodes and a chain of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..network.routing import Ask
from ..protocol.errors import OpenLoraError
from ..protocol.health import ServiceHealth
from ..protocol.messages import AskQuote, Cancel, Infer, InferMessage, Pay, VoucherMessage


class Exchange(Protocol):
    """One request's place on the long-lived stream to a node. The `id` of messages that are sent is filled in there."""

    async def send(self, message: AskQuote | Infer | Pay | Cancel) -> None:
        """Send a message under this request's id. Raises NODE_LOST."""
        ...

    async def receive(self) -> InferMessage:
        """The next message of this id. Raises the error of an `error` message, NODE_LOST when the stream died."""
        ...

    def cancel(self) -> None:
        """Ask the node to stop; its receipt over what was generated still comes. Never waits or raises."""
        ...

    async def aclose(self) -> None:
        """Give up the id; what still comes for it is dropped."""
        ...


class Inference(Protocol):
    """Opens exchanges with nodes."""

    async def open(self, node: bytes) -> Exchange:
        """A place on the stream to `node`, connected to if need be. Raises NODE_LOST, NOT_FOUND, WRONG_NODE, BUSY."""
        ...


class Conversation(Protocol):
    """A session of /openlora/voucher/1: one question, one answer."""

    async def send(self, message: VoucherMessage) -> None:
        """Ask. Raises NODE_LOST."""
        ...

    async def receive(self) -> VoucherMessage | None:
        """The answer; None after the last."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Accounts(Protocol):
    """Opens voucher sessions with nodes."""

    async def talk(self, node: bytes) -> Conversation:
        """A session with `node`. Raises NODE_LOST, NOT_FOUND, WRONG_NODE."""
        ...


@dataclass(frozen=True)
class Offered:
    """What a node advertises: rates in wei per 1,000,000 tokens, context in tokens."""

    node: bytes
    input_rate: int
    output_rate: int
    max_context: int


class Nodes(Protocol):
    """Which nodes there are, and which of them a request should go to."""

    async def follow(self, base: bytes) -> None:
        """Hear about the nodes of a base model from now on."""
        ...

    async def offers(self, base: bytes) -> Sequence[Offered]:
        """What live nodes of a base model advertise."""
        ...

    async def pick(self, base: bytes, ask: Ask, tried: Collection[bytes]) -> bytes | None:
        """The node to ask next, none of `tried`; None when nobody fits."""
        ...

    def report(self, node: bytes, error: OpenLoraError | None, base: bytes, ask: Ask) -> None:
        """What became of the pick for `base` and `ask`: None when the node did what it was asked to.

        Each pick wants one report.
        """
        ...

    async def health(self) -> ServiceHealth:
        """Whether the network is up and any node is known."""
        ...


class TermsLike(Protocol):
    """An artifact's terms on chain; version 0 and a zero owner while it is not registered."""

    @property
    def artifact(self) -> bytes: ...  # noqa: D102
    @property
    def kind(self) -> int: ...  # noqa: D102
    @property
    def owner(self) -> bytes: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> int: ...  # noqa: D102
    @property
    def components(self) -> tuple[tuple[bytes, int], ...]: ...  # noqa: D102


class EscrowLike(Protocol):
    """A payer's escrow with one node, in wei."""

    @property
    def balance(self) -> int: ...  # noqa: D102
    @property
    def thawing(self) -> int: ...  # noqa: D102


class Chain(Protocol):
    """What the gateway reads of the chain. Raises CHAIN_FAILED when nothing fresh enough is known."""

    def key_of(self, node: bytes) -> bytes | None:
        """The address of a node's current key; None for a node that is not registered."""
        ...

    async def terms(self, artifact: bytes) -> TermsLike:
        """An artifact's current terms."""
        ...

    async def terms_at(self, artifact: bytes, version: int) -> TermsLike | None:
        """One version of an artifact's terms; None if it does not exist."""
        ...

    async def has_access(self, artifact: bytes, subject: bytes) -> bool:
        """Whether the payer may use the artifact."""
        ...

    async def escrow(self, payer: bytes, node: bytes) -> EscrowLike:
        """The payer's escrow with a node."""
        ...

    async def redeemed(self, payer: bytes, signer: bytes, node: bytes, pipeline: bytes) -> tuple[int, int, int]:
        """(tokens, compute, debt): cumulative amounts that the chain has seen vouchers for, and wei still unpaid."""
        ...

    def health(self) -> ServiceHealth:
        """Whether the chain answers."""
        ...
