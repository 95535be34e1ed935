"""One HTTP request on its way through a route: its body, its id, and the parts of the server that routes use."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from aiohttp import web

from .backend import Backend
from .body import Bodies
from .decoding import decode
from .options import ServerConfig
from .prompts import Prompts
from .tokentext import TokenText

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Services:
    """What all routes share."""

    backend: Backend
    config: ServerConfig
    prompts: Prompts
    tokens: TokenText
    bodies: Bodies


@dataclass(frozen=True)
class Call:
    """One request. `id` goes back as X-Request-Id and is part of the response's own id."""

    request: web.BaseRequest
    services: Services
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def backend(self) -> Backend:
        """The engine."""
        return self.services.backend

    @asynccontextmanager
    async def body(self, kind: type[T]) -> AsyncIterator[T]:
        """The request's body as `kind`, held in memory until the block is left."""
        async with self.services.bodies.read(self.request) as raw:
            yield decode(raw, kind)

    @asynccontextmanager
    async def raw_body(self) -> AsyncIterator[bytes]:
        """The request's body as it came."""
        async with self.services.bodies.read(self.request) as raw:
            yield raw
