"""Requests find their node over libp2p, and leave one that does not keep its word."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from openlora_node.network.candidates import Candidates
from openlora_node.network.inference import Inbound, InferClient
from openlora_node.network.rendezvous import adapter_key, node_key, order
from openlora_node.network.routing import Ask
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.network_adverts import BASE, ONLINE, adapter
from support.network_infer import ask_around, infer, scripted, token_count, world


def home_of(node: bytes, nodes: list[bytes], without: bytes = b"") -> bytes:
    """An adapter whose order of the nodes begins with this one."""
    keys = [(node_key(each), each) for each in nodes]
    found = (adapter(index) for index in range(10_000))
    return next(each for each in found if each != without and order(adapter_key(BASE, [each]), keys)[0] == node)


async def test_a_node_that_lies_about_its_adapters_loses_its_standing_and_the_request_falls_to_another() -> None:
    refused = 0

    async def liar(inbound: Inbound) -> None:
        nonlocal refused
        refused += 1
        raise OpenLoraError(ErrorCode.ADAPTER_NOT_FOUND)

    async with world(liar, scripted, scripted) as w:
        lying, honest, bare = w.nodes
        every = [node.node for node in w.nodes]
        promised = home_of(lying.node, every)
        only_liars = home_of(lying.node, every, without=promised)
        for node, adapters in ((lying, {promised, only_liars}), (honest, {promised}), (bare, set())):
            speed = 400 if node is lying else 10
            node.network.advertise(replace(ONLINE, adapters=frozenset(adapters), tokens_per_second=speed))
        await w.payer.follow(BASE)
        for node in w.nodes:
            await w.payer.connect_node(node.node)
        client, candidates = InferClient(w.payer), Candidates(w.payer)
        while len(await candidates.live(BASE)) < 3 or len(candidates._filters) < 3:
            await asyncio.sleep(0.02)
        ask = Ask(adapters=frozenset({promised}), max_tokens=20)
        for attempt in range(12):
            attempts = await ask_around(client, candidates, BASE, ask, lambda _: infer(b"3"))
            assert attempts.error is None
            assert token_count(attempts.messages) == 3
            assert attempts.nodes == ([honest.node] if attempt else [lying.node, honest.node])
        assert refused == 1, "it said so itself: the adapter is not looked for there again"
        assert candidates.standing.success(lying.node, candidates._clock()) < 0.5
        assert candidates.standing.success(honest.node, candidates._clock()) == 1.0
        # the second broken promise: from now on it is asked when nobody else is left
        ask = Ask(adapters=frozenset({only_liars}), max_tokens=20)
        attempts = await ask_around(client, candidates, BASE, ask, lambda _: infer(b"3"))
        assert attempts.error is None
        assert attempts.nodes[0] == lying.node
        base_only = Ask(max_tokens=20)
        asked = {
            (await ask_around(client, candidates, BASE, base_only, lambda _: infer(b"1"))).nodes[0] for _ in range(12)
        }
        assert lying.node not in asked
        await candidates.close()
        await client.close()
