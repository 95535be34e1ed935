"""What a node refuses at its signed door, each with its code, and that none of it costs the payer anything."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openlora_node.chainview import Scope
from openlora_node.journal import Reader
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.ids import format_artifact_id, parse_artifact_id
from openlora_node.protocol.structs import Request
from support.chain_cli import ChainCli
from support.chain_world import BASE, OWNER, PAYER, ChainWorld, fresh_wallet
from support.daemon_payer import Asked, HttpPayer
from support.daemon_world import NodeProcess, running_node

from .conftest import MakeHome
from .test_life import DOORS, payer_of, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PUBLIC, LICENCE = 0, 2


async def refusal(payer: HttpPayer, asked: Asked, **fields: Any) -> tuple[int, str]:
    """HTTP status and code of the answer to a request that must not run; `fields` go over those of its JSON."""
    body = asked.as_json(payer.pipeline)
    body.update(fields)
    status, answer = await payer.post("/v1/signed", body)
    return status, answer["error"]["code"]


def again(payer: HttpPayer, asked: Asked, domain: Domain | None = None, **fields: Any) -> Asked:
    """The same request with other fields or for another domain, signed by the payer anew."""
    value: Request = msgspec.structs.replace(asked.request.value, **{"nonce": secrets.token_bytes(32), **fields})
    return replace(asked, request=value.sign(domain or payer.domain, payer.wallet))


async def test_each_bad_request_has_its_code_and_costs_nothing(
    registered_home: MakeHome, world: ChainWorld, prompt_tokens: int
) -> None:
    home = await registered_home(**DOORS)
    async with running_node(home) as node:
        await node.until_serving()
        async with await payer_of(node, world, prompt_tokens) as payer:
            await run(payer, first := await payer.ask(4))
            paid = payer.tally
            good = await payer.ask(4)
            now = int(time.time())

            # Replayed: with its own body the receipt comes again and nothing runs, with another it is refused.
            replayed = await run_again(payer, first)
            assert replayed[-1]["t"] in ("done", "settled")
            other_body = replace(first, body=first.body.replace("max_tokens", "max_tokens "))
            assert await refusal(payer, other_body) == (400, "BODY_MISMATCH")
            reused = again(payer, good, nonce=first.request.value.nonce)
            assert await refusal(payer, reused) == (409, "NONCE_REUSED")

            # Forged: a stranger's signature, a bit of ours turned, a voucher of somebody else's.
            stranger = fresh_wallet("refused stranger")
            forged = replace(good, request=good.request.value.sign(payer.domain, stranger))
            assert await refusal(payer, forged) == (401, "BAD_SIGNATURE")
            signature = good.request.to_json()
            turned = signature["signature"][:-6] + ("0" if signature["signature"][-6] != "0" else "1")
            turned += signature["signature"][-5:]
            assert (await refusal(payer, good, request={**signature, "signature": turned}))[1] in (
                "BAD_SIGNATURE",
                "MALFORMED",
            )
            strangers = replace(good, voucher=good.voucher.value.sign(payer.domain, stranger))
            assert await refusal(payer, strangers) == (401, "BAD_SIGNATURE")

            # Expired, and ahead of its time.
            late = again(payer, good, issued_at=now - 500, expires_at=now - 300)
            assert await refusal(payer, late) == (400, "REQUEST_EXPIRED")
            early = again(payer, good, issued_at=now + 120, expires_at=now + 200)
            assert await refusal(payer, early) == (400, "NOT_YET_VALID")

            # For another chain, another contract, another node.
            elsewhere = Domain(chain_id=1612, verifying_contract=payer.domain.verifying_contract)
            assert await refusal(payer, again(payer, good, elsewhere)) == (400, "WRONG_CHAIN")
            assert await refusal(payer, again(payer, good, node=secrets.token_bytes(32))) == (421, "WRONG_NODE")

            # Over budget: its own limit, and its escrow.
            assert await refusal(payer, again(payer, good, max_fee=1)) == (402, "MAX_FEE_TOO_LOW")
            assert await refusal(payer, again(payer, good, max_fee=2 * 10**18)) == (402, "ESCROW_TOO_LOW")
            await nothing_was_charged(node, payer, paid)

            await access_is_taken_and_given_back(node, world, payer, good)
            await run(payer, again(payer, await payer.ask(4)))  # and honest requests go on
        assert await node.stop() == 0


async def run_again(payer: HttpPayer, asked: Asked) -> list[dict[str, Any]]:
    """The lines of a request that was sent before; nothing is paid for them."""
    async with payer.send(asked) as answer:
        assert answer.status == 200, await answer.text()
        return [line async for line in payer.lines(answer)]


async def nothing_was_charged(node: NodeProcess, payer: HttpPayer, paid: Any) -> None:
    """The payer's only receipt is that of the one request that ran."""
    with Reader(node.home.state / "node.sqlite") as journal:
        assert journal.summary().receipts == 1
        (ledger,) = journal.ledgers(PAYER.address, node.home.node, 8)
        assert (ledger.tally.tokens, ledger.tally.compute) == (paid.tokens, paid.compute)
        assert not ledger.owed


async def access_is_taken_and_given_back(node: NodeProcess, world: ChainWorld, payer: HttpPayer, good: Asked) -> None:
    """The base's owner sells licences: the payer is refused once the node has heard of it, until it has bought one."""
    base = bytes(parse_artifact_id((await node.ask("/status"))["base"]))
    if not any((await world.artifacts.artifact_of(base)).owner):
        await world.register_artifact(OWNER, base, BASE)
    await world.send(OWNER, world.artifacts.set_policy(base, Scope.USE, LICENCE, 10**15, 3_600))
    try:
        await until_refused_with("ACCESS_DENIED", payer, good)
        assert await refusal(payer, again(payer, good)) == (403, "ACCESS_DENIED")
        chain = node.home.settings["chain"]
        (folder := node.home.root / "payer").mkdir()
        cli = ChainCli(folder, chain["rpc_urls"][0], Path(chain["deployment_file"]))
        paying = ("--key", await cli.key(PAYER, "payer"), "--password-file", cli.password, "--yes")
        await cli.json("artifacts", "buy", format_artifact_id(base), *paying)
        await until_refused_with("ESCROW_TOO_LOW", payer, good)
    finally:
        await world.send(OWNER, world.artifacts.set_policy(base, Scope.USE, PUBLIC, 0, 0))
    await until_refused_with("ESCROW_TOO_LOW", payer, good)


async def until_refused_with(code: str, payer: HttpPayer, good: Asked) -> None:
    """Wait until the node has heard of the policy. What is asked for is over the escrow, if nothing else is wrong."""
    deadline = time.monotonic() + 30
    while (found := await refusal(payer, again(payer, good, max_fee=2 * 10**18)))[1] != code:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.3)
