"""Health: 200, 206 or 503 by what is essential, each service with its reason, for this machine alone."""

from __future__ import annotations

import aiohttp
import pytest

from openlora_node.api.health import health_app, readiness
from openlora_node.api.listeners import listen_tcp
from openlora_node.config.endpoints import HostPort
from openlora_node.protocol.health import Level, ServiceHealth

ESSENTIAL = frozenset({"engine", "chain"})


def services(engine: Level, chain: Level, reach: Level) -> list[ServiceHealth]:
    return [
        ServiceHealth("engine", engine, "it crashed" if engine is not Level.UP else "", 5),
        ServiceHealth("chain", chain, "", 6),
        ServiceHealth("reach", reach, "", 7),
    ]


@pytest.mark.parametrize(
    ("engine", "chain", "reach", "status"),
    [
        (Level.UP, Level.UP, Level.UP, 200),
        (Level.UP, Level.UP, Level.DOWN, 206),
        (Level.UP, Level.UP, Level.INITIALIZING, 206),
        (Level.UP, Level.DEGRADED, Level.UP, 206),
        (Level.DOWN, Level.UP, Level.UP, 503),
        (Level.UP, Level.INITIALIZING, Level.UP, 503),
        (Level.DEGRADED, Level.DOWN, Level.DOWN, 503),
    ],
)
def test_readiness(engine: Level, chain: Level, reach: Level, status: int) -> None:
    assert readiness(services(engine, chain, reach), ESSENTIAL) == status


def test_an_essential_service_that_does_not_report_is_not_ready() -> None:
    assert readiness(services(Level.UP, Level.UP, Level.UP)[1:], ESSENTIAL) == 503


async def test_the_doors_answer_with_every_service_and_only_to_local_names() -> None:
    state = services(Level.DOWN, Level.UP, Level.UP)
    listener = await listen_tcp(health_app(lambda: state, ESSENTIAL), HostPort("127.0.0.1", 0))
    async with aiohttp.ClientSession(listener.address) as session:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            body = await answer.json()
        assert body["ready"] is False
        assert body["services"][0] == {"name": "engine", "level": "down", "since": 5, "reason": "it crashed"}
        for foreign in ("evil.example:9470", "127.evil.example", "127.0.0.1.evil.example", "[::1].evil.example:1"):
            async with session.get("/readyz", headers={"Host": foreign}) as answer:
                assert answer.status == 403, foreign
        for local in ("localhost:1", "127.0.0.1", "[::1]:9470"):
            async with session.get("/readyz", headers={"Host": local}) as answer:
                assert answer.status == 503, local
    await listener.close()
