"""How the command line reaches a gateway: the one that runs here, over its port, or one opened for a single call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import aiohttp

from ..config import Config
from ..openai import parse_body
from ..protocol.errors import ErrorCode, OpenLoraError
from . import history
from .app import URL_FILE, Gateway, open_gateway
from .door import read_text
from .endpoint import quote_facts
from .guard import TOKEN_FILE, read_token

CONNECT_TIMEOUT_S = 3.0
MAX_EVENT_BYTES = 1 << 20


class Link(Protocol):
    """What the command line asks a gateway."""

    def ask(self, body: bytes) -> AsyncIterator[str | dict[str, Any]]:
        """Stream a chat: texts, then the `openlora` field as the last item. Raises what the gateway answers."""
        ...

    async def quote(self, body: bytes) -> dict[str, Any]:
        """What a body would cost at most."""
        ...

    async def proof(self, digest: bytes) -> dict[str, Any]:
        """A receipt that was paid from here, proven: as proofs.Proven.to_json has it."""
        ...


class RemoteGateway:
    """A gateway that runs here."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(self, body: bytes) -> AsyncIterator[str | dict[str, Any]]:
        """As Link says."""
        facts: dict[str, Any] = {}
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", data=body) as answer:
                if answer.status != 200:
                    raise error_of(await answer.json(content_type=None))
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise error_of(event)
                    facts = event.get("openlora", facts)
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise OpenLoraError(ErrorCode.NODE_LOST, "the gateway here ended before the answer did") from None
        yield facts

    async def quote(self, body: bytes) -> dict[str, Any]:
        """As Link says."""
        try:
            async with self._session.post(f"{self._url}/v1/quote", data=body) as answer:
                told = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise OpenLoraError(ErrorCode.NODE_LOST, "the gateway here does not answer") from None
        if answer.status != 200:
            raise error_of(told)
        return dict(told)

    async def proof(self, digest: bytes) -> dict[str, Any]:
        """As Link says."""
        try:
            async with self._session.get(f"{self._url}/receipts/0x{digest.hex()}/proof") as answer:
                told = await answer.json(content_type=None)
                if answer.status != 200:
                    raise error_of(told)
                return dict(told)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise OpenLoraError(ErrorCode.NODE_LOST, "the gateway here does not answer") from None


class OwnGateway:
    """A gateway opened for one call."""

    def __init__(self, gateway: Gateway, max_body: int) -> None:
        self._gateway = gateway
        self._max_body = max_body

    async def ask(self, body: bytes) -> AsyncIterator[str | dict[str, Any]]:
        """As Link says."""
        payer = self._gateway.payer
        answer = payer.start(await payer.prepare(parse_body(body, self._max_body, "chat")))
        try:
            async for piece in answer:
                yield piece.text
        finally:
            answer.hang_up()
        finished = answer.finished
        if finished is None:
            raise OpenLoraError(ErrorCode.CANCELLED)
        yield history.receipt_facts(finished.stored.digest, finished.receipt, finished.offer)

    async def quote(self, body: bytes) -> dict[str, Any]:
        """As Link says."""
        payer = self._gateway.payer
        prepared = await payer.prepare(parse_body(body, self._max_body))
        return quote_facts(prepared, await payer.quotes(prepared))

    async def proof(self, digest: bytes) -> dict[str, Any]:
        """As Link says."""
        return (await self._gateway.proofs.fetch(digest)).to_json()


@asynccontextmanager
async def reach_gateway(config: Config) -> AsyncIterator[Link]:
    """The gateway that runs under this configuration, else one for the length of the block."""
    async with AsyncExitStack() as stack:
        remote = await _running(config, stack)
        if remote is not None:
            yield remote
            return
        gateway = await stack.enter_async_context(open_gateway(config, serve=False))
        yield OwnGateway(gateway, config.limits.max_body)


async def _running(config: Config, stack: AsyncExitStack) -> RemoteGateway | None:
    """The running gateway, by the address and token that it left in its directory."""
    url = read_text(config.gateway_dir / URL_FILE)
    if url is None:
        return None
    try:
        token = read_token(config.gateway_dir / TOKEN_FILE)
    except OpenLoraError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return None
        raise
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
            read_bufsize=MAX_EVENT_BYTES,
        )
    )
    try:
        async with session.get(f"{url}/healthz", timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S)):
            return RemoteGateway(session, url)
    except (aiohttp.ClientError, TimeoutError):
        return None


def error_of(body: object) -> OpenLoraError:
    """The error that a gateway's answer carries."""
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return OpenLoraError(ErrorCode.INTERNAL, "the gateway answered with something else than an error of its own")
    name = str(found.get("code"))
    code = ErrorCode[name] if name in ErrorCode.__members__ else ErrorCode.INTERNAL
    return OpenLoraError(code, str(found.get("message")))
