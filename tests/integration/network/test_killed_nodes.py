"""A third of the nodes dies at once, by kill -9, under two hundred requests: each ends in a result or a clear error."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from openlora_node.network import inference_client
from openlora_node.network.candidates import Candidates
from openlora_node.network.inference import InferClient
from openlora_node.network.routing import Ask
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.messages import Accepted, Infer, InferMessage, Tokens
from support.network_adverts import BASE
from support.network_fleet import TOKENS, Worker, fleet
from support.network_infer import Attempts, ask_around, make_network, token_count
from support.network_peers import CALM, Registry, secret

NODES, KILLED, REQUESTS = 10, 3, 200


def nonce_of(request: int, attempt: int) -> bytes:
    return request.to_bytes(4, "big") + attempt.to_bytes(4, "big")


@pytest.mark.slow
@pytest.mark.timeout(360)
async def test_a_third_of_the_nodes_dies_under_two_hundred_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_client, "OPEN_TIMEOUT_S", 60.0)
    with fleet(NODES, tmp_path) as workers:
        registry = Registry()
        for index in range(NODES):
            registry.register(secret(index))
        payer, _ = make_network(registry, CALM, payer=True)
        await payer.start()
        where = {worker.node: worker for worker in workers}

        async def connect_node(node: bytes) -> object:
            return await payer.connect(where[node].peer, [where[node].address])

        payer.connect_node = connect_node  # type: ignore[method-assign, assignment]
        client, candidates = InferClient(payer), Candidates(payer)
        try:
            async with asyncio.timeout(300):
                await payer.follow(BASE)
                await asyncio.gather(*(payer.connect_node(worker.node) for worker in workers))
                while len(await candidates.live(BASE)) < NODES:
                    await asyncio.sleep(0.05)
                results = await under_fire(client, candidates, workers)
        finally:
            await candidates.close()
            await client.close()
            await payer.stop()
        judge(results, workers)


async def under_fire(client: InferClient, candidates: Candidates, workers: list[Worker]) -> list[Attempts]:
    """Begin all requests, half of them with a first token; kill; let the living finish."""

    def make(request: int, attempt: int) -> Infer:
        body = b"early" if request % 2 else b"late"
        return Infer(id=1, request=nonce_of(request, attempt), pipeline=b"p", body=body)

    heard: Counter[type[InferMessage]] = Counter()
    all_there = asyncio.Event()

    def hear(message: InferMessage) -> None:
        heard[type(message)] += 1
        if heard[Accepted] == REQUESTS and heard[Tokens] == REQUESTS // 2:
            all_there.set()

    async def one(request: int) -> Attempts:
        return await ask_around(client, candidates, BASE, Ask(max_tokens=TOKENS), lambda n: make(request, n), hear)

    running = [asyncio.create_task(one(request)) for request in range(REQUESTS)]
    await all_there.wait()
    assert not any(task.done() for task in running), "all are in flight"
    for worker in workers[:KILLED]:
        os.kill(worker.pid, signal.SIGKILL)
    for worker in workers[KILLED:]:
        os.kill(worker.pid, signal.SIGUSR1)
    return await asyncio.gather(*running)


def judge(results: list[Attempts], workers: list[Worker]) -> None:
    """No request without an end, none answered twice, none taken elsewhere after its first token."""
    dead = {worker.node for worker in workers[:KILLED]}
    hit = sum(len(worker.entries()) for worker in workers[:KILLED])
    assert hit > REQUESTS // 10, "the killed nodes had work"
    finished = [attempts for attempts in results if attempts.error is None]
    broken = [attempts for attempts in results if attempts.error is not None]
    assert len(finished) + len(broken) == REQUESTS
    for attempts in finished:
        assert token_count(attempts.messages) == TOKENS
        assert attempts.nodes[-1] not in dead
        assert not any(attempts.tokens), "another node is asked before the first token only"
    for attempts in broken:
        assert attempts.error is not None
        assert attempts.error.code is ErrorCode.NODE_LOST
        assert attempts.tokens[-1] > 0, "without a token another node would have been asked"
        assert attempts.nodes[-1] in dead
    assert broken
    assert any(len(attempts.nodes) > 1 for attempts in finished)
    entries = Counter(entry for worker in workers for entry in worker.entries())
    assert max(entries.values()) == 1, "no request was accepted, completed or paid twice"
    paid = Counter(nonce[:4] for what, nonce in entries if what == "P")
    assert not paid or max(paid.values()) == 1, "whatever the attempts, one node was paid"
    assert set(paid) == {request.to_bytes(4, "big") for request, each in enumerate(results) if each.error is None}
