"""Inference streams for tests: networks that serve them, a handler that follows a script, messages with no meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.candidates import Candidates
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.host import HostOptions
from openlora_node.network.inference import Inbound, InferClient, serve_session
from openlora_node.network.routing import Ask, may_retry
from openlora_node.network.service import Network
from openlora_node.network.standing import Outcome, outcome_of
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import (
    INFER,
    Accepted,
    AskQuote,
    Cancel,
    Done,
    Infer,
    InferMessage,
    Pay,
    QuoteReply,
    Settled,
    Tokens,
)
from support.network_adverts import DOMAIN
from support.network_peers import QUICK, Registry, fresh_secret

Handler = Callable[[Inbound], Awaitable[None]]
ASK = AskQuote(id=1, payer=bytes(20), pipeline=b"pipeline")
PAY = Pay(id=1, voucher=b"voucher")
DONE = Done(id=1, receipt=b"receipt", finish_reason="stop", salt=bytes(32))


def infer(body: bytes) -> Infer:
    """A request whose body is the script of `scripted`."""
    return Infer(id=1, request=b"request", pipeline=b"pipeline", body=body)


@dataclass
class Attempts:
    """What became of one request: the nodes asked, and its messages or its error."""

    nodes: list[bytes] = field(default_factory=list)
    messages: list[InferMessage] = field(default_factory=list)
    errors: list[OpenLoraError] = field(default_factory=list)
    """One for each attempt that failed."""
    tokens: list[int] = field(default_factory=list)
    """How many came, for each of those."""

    @property
    def error(self) -> OpenLoraError | None:
        """How it ended, if not with a receipt."""
        return None if self.messages and isinstance(self.messages[-1], Done) else self.errors[-1]


async def ask_around(
    client: InferClient,
    candidates: Candidates,
    base: bytes,
    ask: Ask,
    make: Callable[[int], Infer],
    heard: Callable[[InferMessage], object] = lambda _: None,
) -> Attempts:
    """One request as a payer sends it: made anew for another node while no token came and the error allows it."""
    attempts = Attempts()
    while True:
        node = await candidates.pick(base, ask, attempts.nodes)
        if node is None:
            attempts.errors.append(OpenLoraError(ErrorCode.NO_NODE))
            return attempts
        attempts.nodes.append(node)
        attempts.messages = []
        try:
            async with await client.open(node) as exchange:
                await exchange.send(make(len(attempts.nodes)))
                while not (attempts.messages and isinstance(attempts.messages[-1], Done)):
                    attempts.messages.append(await exchange.receive())
                    heard(attempts.messages[-1])
                await exchange.send(PAY)
                await exchange.receive()
        except OpenLoraError as error:
            if isinstance(attempts.messages[-1] if attempts.messages else None, Done):
                candidates.report(node, Outcome.COMPLETED)  # its receipt is held: the voucher can follow by itself
                return attempts
            attempts.errors.append(error)
            attempts.tokens.append(token_count(attempts.messages))
            candidates.report(node, outcome_of(error), base=base, ask=ask)
            elsewhere = error.code.retryable or error.code is ErrorCode.ADAPTER_NOT_FOUND
            if not may_retry(len(attempts.nodes), attempts.tokens[-1], elsewhere):
                return attempts
        else:
            candidates.report(node, Outcome.COMPLETED, base=base, ask=ask)
            return attempts


async def scripted(inbound: Inbound) -> None:
    """Answers `ask` with a quote, and `infer` with as many tokens as its body says; settles what is paid."""
    if isinstance(inbound.first, AskQuote):
        await inbound.send(QuoteReply(id=1, quote=b"quote"))
        return
    await inbound.send(Accepted(id=1, prompt_tokens=1))
    for place in range(int(inbound.first.body)):
        await inbound.tokens(0, place, (place,), "x")
    await inbound.send(DONE)
    if isinstance(await inbound.receive(), Pay):
        await inbound.send(Settled(id=1, cumulative_tokens=1))


@dataclass
class ServingNode:
    """A network that serves inference streams with one handler."""

    network: Network
    node: bytes
    handler: Handler
    max_open: int = 256
    streams: int = 0
    """Streams that payers opened so far."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self) -> None:
        """Until cancelled: accept streams and serve each."""
        try:
            while True:
                session = await self.network.accept()
                self.streams += 1
                task = asyncio.create_task(serve_session(session, self.handler, max_open=self.max_open))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass
class World:
    """A payer's network connected to nodes that serve."""

    payer: Network
    nodes: list[ServingNode]
    registry: Registry


def make_network(
    registry: Registry, options: HostOptions = QUICK, *, payer: bool = False, key: bytes | None = None
) -> tuple[Network, bytes]:
    """A network and its node id; a payer's is nobody's node."""
    secret = key or fresh_secret()
    node = b"" if payer else registry.register(secret)
    ours = AdvertOptions(DOMAIN, node=node, key=LocalSigner(secret), debounce=0.05)
    network = Network(
        secret,
        options,
        registry,
        adverts=AdvertOptions(DOMAIN, reconcile=0.5) if payer else ours,
        directory=DirectoryOptions(DOMAIN),
        serves=() if payer else (INFER,),
    )
    return network, node


@asynccontextmanager
async def world(*handlers: Handler, max_open: int = 256, seconds: float = 40.0) -> AsyncIterator[World]:
    """A payer connected to one node for each handler. The payer's `connect_node` finds them without adverts."""
    registry = Registry()
    payer, _ = make_network(registry, payer=True)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(payer.stop)
        await payer.start()
        nodes = []
        for handler in handlers or (scripted,):
            network, node = make_network(registry)
            stack.push_async_callback(network.stop)
            await network.start()
            serving = ServingNode(network, node, handler, max_open)
            task = asyncio.create_task(serving.serve())
            stack.push_async_callback(_cancel, task)
            nodes.append(serving)
        where = {each.node: (await each.network.peer_id(), await each.network.addresses()) for each in nodes}

        async def connect_node(node: bytes) -> object:
            peer, addresses = where[node]
            return await payer.connect(peer, addresses)

        payer.connect_node = connect_node  # type: ignore[method-assign, assignment]
        async with asyncio.timeout(seconds):
            yield World(payer, nodes, registry)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def texts(messages: list[InferMessage]) -> str:
    """The kinds of messages, for short."""
    return " ".join(type(message).__name__ for message in messages)


def token_count(messages: list[InferMessage]) -> int:
    """Tokens in all of them."""
    return sum(len(message.token_ids) for message in messages if isinstance(message, Tokens))


__all__ = [
    "ASK",
    "DONE",
    "PAY",
    "Attempts",
    "Cancel",
    "Handler",
    "ServingNode",
    "World",
    "ask_around",
    "infer",
    "make_network",
    "scripted",
    "texts",
    "token_count",
    "world",
]
