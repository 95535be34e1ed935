"""A third party pays for a response: js-libp2p and docs/protocol.md on one side, our serving on the other."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.journal import LedgerKey
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.inference_server import serve_session
from openlora_node.network.service import Network
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.messages import INFER
from support.interop_peer import CommandFailed, js_peer
from support.network_peers import QUICK, Registry, fresh_secret
from support.serving_world import DOMAIN, NODE, NODE_KEY, OPTIONS, ROYALTY, World

PATIENT = replace(OPTIONS, pay_s=30.0, closing_s=30.0, unpaid_tokens=8)


@asynccontextmanager
async def node(tmp_path: Path) -> AsyncIterator[tuple[World, str]]:
    """A node with a scripted engine, on real libp2p; its address."""
    registry = Registry({NODE_KEY.address: NODE})
    network = Network(
        b"\x91" * 32,
        QUICK,
        registry,
        adverts=AdvertOptions(DOMAIN, node=NODE, key=NODE_KEY),
        directory=DirectoryOptions(DOMAIN),
        serves=(INFER,),
    )
    async with World(tmp_path / "node.sqlite", PATIENT) as world:
        world.clock.now = int(time.time())
        await network.start()

        async def serve() -> None:
            async with asyncio.TaskGroup() as sessions:
                while True:
                    sessions.create_task(serve_session(await network.accept(), world.serving.handle))

        serving = asyncio.create_task(serve())
        try:
            (address, *_) = await network.addresses()
            yield world, address
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            await network.stop()


def asked(world: World, peer: str, secret: bytes, **changes: object) -> dict[str, object]:
    """What the payer is told beforehand: where, whom, what, and what the chain says."""
    pipeline = world.pipeline
    body = json.dumps({"messages": [{"role": "user", "content": "Why do herons stand on one leg?"}]})
    return {
        "domain": {"chainId": DOMAIN.chain_id, "verifyingContract": DOMAIN.verifying_contract.hex()},
        "node": NODE.hex(),
        "peer": peer,
        "secret": secret.hex(),
        "pipeline": {
            "base": pipeline.base.hex(),
            "baseTermsVersion": pipeline.base_terms_version,
            "adapters": [
                {"id": adapter.id.hex(), "termsVersion": adapter.terms_version, "weight": adapter.weight}
                for adapter in pipeline.adapters
            ],
            "method": int(pipeline.method),
        },
        "body": body,
        "promptTokens": world.prompt_of(body.encode()),
        "maxTokens": 40,
        "chainTerms": [{"rate": ROYALTY}, {"rate": ROYALTY}, {"rate": 0}],
    } | changes


async def test_js_pays_for_a_response_and_verifies_its_receipt(tmp_path: Path) -> None:
    secret = fresh_secret()
    async with node(tmp_path) as (world, address), js_peer(tmp_path, secret=fresh_secret().hex()) as (js, _about):
        peer = (await js.do("dial", address=address))["peer"]
        paid = await js.do("infer", **asked(world, peer, secret))
        assert paid["text"] == "".join(f"t{place} " for place in range(40))
        assert paid["tokens"] == list(range(40))
        assert paid["pipelineId"] == world.pipeline.id.hex()
        assert paid["pauses"] >= 4  # every 8 tokens beyond the newest voucher
        payer = LocalSigner(secret).address
        ledger = await world.journal.ledger(LedgerKey(payer, NODE, payer, world.pipeline.id))
        assert ledger.owed == 0
        assert ledger.voucher is not None
        assert ledger.voucher.hex() == paid["closing"]
        assert paid["leaves"] > 10
        assert ledger.fee == int(paid["compute"]) + int(paid["royalties"])
        assert ledger.reserved == 0
        await world.journal.check_integrity(deep=True)


@pytest.mark.parametrize(("changes", "code"), [
    ({"domain": {"chainId": 1, "verifyingContract": DOMAIN.verifying_contract.hex()}}, "another key"),
    ({"node": (b"\x12" * 32).hex()}, "something else"),
    ({"body": "{"}, "MALFORMED"),
    ({"chainTerms": [{"rate": ROYALTY - 1}]}, "royalties"),
    ({"promptTokens": 1}, "MAX_FEE_TOO_LOW|VOUCHER_TOO_LOW"),
])  # fmt: skip
async def test_what_does_not_fit_is_refused_on_the_side_that_sees_it(
    tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    secret = fresh_secret()
    async with node(tmp_path) as (world, address), js_peer(tmp_path, secret=fresh_secret().hex()) as (js, _about):
        peer = (await js.do("dial", address=address))["peer"]
        with pytest.raises(CommandFailed, match=code):
            await js.do("infer", **asked(world, peer, secret, **changes))
        assert world.engine.calls == 0
