"""A server with a scripted engine behind it, on a port of its own, and the official client in front of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2
import pytest
from openai import AsyncOpenAI

from openlora_engine.server.options import ServerConfig
from openlora_engine.server.serve import serving
from support.engine_backend import FakeBackend
from support.engine_tokenizer import tiny_tokenizer


@dataclass
class Server:
    """A running server: what clients need to reach it, and the engine behind it."""

    address: str
    backend: FakeBackend
    openai: AsyncOpenAI
    http: httpx2.AsyncClient

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        return host, int(port)


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(port=0)


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    backend = FakeBackend(tiny_tokenizer())
    yield backend
    assert not [run.request for run in backend.runs if run.live], "requests that nobody reads still run"


@pytest.fixture
async def server(backend: FakeBackend, config: ServerConfig) -> AsyncIterator[Server]:
    async with (
        serving(backend, config) as address,
        # A context that loads no certificates: nothing here speaks TLS.
        httpx2.AsyncClient(base_url=address, timeout=30, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as http,
        AsyncOpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0, http_client=http) as openai,
    ):
        yield Server(address, backend, openai, http)
