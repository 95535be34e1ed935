"""Artifacts on chain from the command line: register by commit and reveal, price, open and close doors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_chain.bindings import Calldata
from openlora_chain.deployment import load_deployment
from openlora_chain.rpc import Rpc
from openlora_node.protocol.ids import format_address, format_bytes
from support.artifacts_folders import adapter_folder, base_folder, dataset_folder, sample_line
from support.chain_cli import ChainCli
from support.chain_world import ETHER, ChainWorld, fresh_wallet, running_devnet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
USE, HOST = 0, 1


@pytest.fixture(scope="module")
def devnet_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running_devnet(tmp_path_factory.mktemp("devnet")) as running:
        yield running


async def test_register_price_grant_and_deny(devnet_at: tuple[str, Path], tmp_path: Path) -> None:
    url, file = devnet_at
    async with Rpc(url) as rpc:
        world, cli = ChainWorld(rpc, load_deployment(file)), ChainCli(tmp_path, url, file)
        owner, payer = fresh_wallet("artifact owner"), fresh_wallet("artifact payer")
        await world.fund(owner.address)
        key = await cli.key(owner, "owner")
        paying = ("--key", key, "--password-file", cli.password, "--yes")

        async def publish(*arguments: object) -> str:
            home = f"node.data_dir={cli.folder / 'home'}"
            done = await cli.json_alone("artifacts", "publish", *arguments, "--set", home)
            return str(done["artifact"])

        shares = tmp_path / "shares.json"
        shares.write_text(json.dumps([{"account": format_address(payer.address), "bps": 10_000}]))
        data = await publish(dataset_folder(tmp_path / "data"), "--shares", shares)
        base = await publish(base_folder(tmp_path / "base"))
        adapter = await publish(adapter_folder(tmp_path / "adapter"), "--base", base, "--dataset", data)
        ids = {name: bytes.fromhex(text[7:]) for name, text in (("data", data), ("adapter", adapter))}

        # A plan sends nothing and keeps its salt; the same commitment is made when it is carried out.
        asked = ("artifacts", "register", data, "--credits", "2500")
        plan = await cli.json(*asked, "--from", format_address(owner.address))
        assert plan["sent"] is False
        assert [step["step"] for step in plan["plan"]["steps"]] == [
            "commit to the registration",
            "register the artifact",
        ]
        assert not any((await world.artifacts.artifact_of(ids["data"])).owner)
        (salt,) = (tmp_path / "home").rglob("registrations/*")
        assert salt.stat().st_mode & 0o777 == 0o600
        # Interrupted after the commitment: only the registration is left to do.
        first = plan["plan"]["steps"][0]
        await world.send(owner, Calldata(bytes.fromhex(first["to"][2:]), bytes.fromhex(first["data"][2:])))
        done = await cli.json(*asked, *paying)
        assert [row["step"] for row in done["transactions"]] == ["register the artifact"]
        assert not list((tmp_path / "home").rglob("registrations/*"))
        entry = await world.artifacts.artifact_of(ids["data"])
        assert (entry.owner, entry.kind, entry.latest_version) == (owner.address, 3, 1)
        assert entry.shares_root != bytes(32)
        assert (await world.artifacts.terms_of(ids["data"], 1)).credits_bps == 2500

        component = f"{data}=1500"
        done = await cli.json(
            "artifacts", "register", adapter, "--rate", "0.05 OPEN", "--component", component, *paying
        )
        assert [row["step"] for row in done["transactions"]] == ["commit to the registration", "register the artifact"]
        terms = await world.artifacts.terms_of(ids["adapter"], 1)
        assert (terms.rate, terms.components) == (ETHER // 20, ((ids["data"], 1500),))
        again = await cli.json("artifacts", "register", adapter, *paying, status=5)
        assert "price" in again["error"]["message"]

        await cli.json("artifacts", "price", adapter, "0.1 OPEN", *paying)
        terms = await world.artifacts.terms_of(ids["adapter"], 2)
        assert (terms.rate, terms.components) == (ETHER // 10, ((ids["data"], 1500),)), "what is not named stays"
        stranger = format_address(payer.address)
        refused = await cli.json("artifacts", "price", adapter, "0.2 OPEN", "--from", stranger, status=5)
        assert format_address(owner.address) in refused["error"]["message"]

        subject = payer.address.rjust(32, b"\0")
        assert await world.artifacts.has_access(ids["adapter"], USE, subject)
        await cli.json("artifacts", "deny", adapter, "--everyone", *paying)
        assert not await world.artifacts.has_access(ids["adapter"], USE, subject)
        await cli.json("artifacts", "grant", adapter, stranger, *paying)
        assert await world.artifacts.has_access(ids["adapter"], USE, subject)
        await cli.json("artifacts", "deny", adapter, stranger, *paying)
        assert not await world.artifacts.has_access(ids["adapter"], USE, subject)
        node = b"\x0a" * 32
        await cli.json("artifacts", "deny", adapter, "--everyone", "--scope", "host", *paying)
        await cli.json("artifacts", "grant", adapter, format_bytes(node), "--scope", "host", *paying)
        assert await world.artifacts.has_access(ids["adapter"], HOST, node)
        assert not await world.artifacts.has_access(ids["adapter"], HOST, bytes(32)), "strangers may not hold it"
        await cli.json("artifacts", "grant", adapter, "--licence", "1 OPEN", "--lasts", "7d", *paying)
        await world.fund(payer.address, 3 * ETHER)
        buying = ("--key", await cli.key(payer, "payer"), "--password-file", cli.password)
        plan = await cli.json("artifacts", "buy", adapter, *buying)
        assert (plan["sent"], plan["value"]) == (False, str(ETHER))
        assert plan["plan"]["steps"][0]["gas"] > 21_000
        assert not await world.artifacts.has_access(ids["adapter"], USE, subject)
        await cli.json("artifacts", "buy", adapter, *buying, "--yes")
        assert await world.artifacts.has_access(ids["adapter"], USE, subject)
        assert await world.artifacts.claimable(owner.address) == ETHER, "the price is the owner's"
        until = await world.artifacts.licensed_until(ids["adapter"], USE, subject)
        plan = await cli.json("artifacts", "buy", adapter, *buying, "--most", "1 OPEN")
        assert plan["plan"]["steps"][0]["step"] == "prolong the licence"
        assert int(plan["plan"]["until"]) == until + 7 * 86_400
        await cli.json("artifacts", "grant", adapter, "--everyone", *paying)

        for wrong in (
            ("grant", adapter),
            ("grant", adapter, "--everyone", "--licence", "1 OPEN"),
            ("grant", adapter, format_bytes(node)),
            ("grant", adapter, stranger, "--scope", "sell"),
            ("deny", adapter),
            ("register", base, "--component", "nonsense"),
            ("register", base, "--metadata", "x" * 600),
        ):
            assert (await cli.run("artifacts", *wrong, *paying))[0] == 2, wrong
        missing = await cli.json("artifacts", "register", "sha256:" + "07" * 32, *paying, status=8)
        assert "publish" in missing["error"]["message"]
        calls = await cli.json("artifacts", "deny", adapter, stranger, "--calldata")
        assert len(calls["calls"]) == 1


async def test_registering_tells_what_others_had_first(devnet_at: tuple[str, Path], tmp_path: Path) -> None:
    url, file = devnet_at
    async with Rpc(url) as rpc:
        world, cli = ChainWorld(rpc, load_deployment(file)), ChainCli(tmp_path, url, file)
        owner, ann, bob = (fresh_wallet(f"originality {name}") for name in ("owner", "ann", "bob"))
        await world.fund(owner.address)
        paying = ("--key", await cli.key(owner, "owner"), "--password-file", cli.password, "--yes")
        said = " ".join(f"word{number}" for number in range(90))

        async def publish(name: str, *lines: tuple[bytes, str]) -> str:
            folder = tmp_path / name
            folder.mkdir()
            (folder / "data.jsonl").write_text("".join(sample_line(format_address(line[0]), line[1]) for line in lines))
            shares = tmp_path / f"{name}.json"
            shares.write_text(json.dumps([{"account": format_address(lines[0][0]), "bps": 10_000}]))
            home = f"node.data_dir={cli.folder / 'home'}"
            asked = ("artifacts", "publish", folder, "--kind", "dataset", "--shares", shares, "--set", home)
            return str((await cli.json_alone(*asked))["artifact"])

        first = await publish("first", (ann.address, said))
        await cli.json("artifacts", "register", first, *paying)
        mixed = await publish("mixed", (bob.address, f"{said[:600]} and more of his own"), (bob.address, "his own"))
        plan = await cli.json("artifacts", "register", mixed, "--from", format_address(owner.address))
        facts = plan["plan"]
        assert facts["othersHadFirst"] == "1 of 2 texts"
        assert (facts["creditGoesTo"], facts["lines"]) == (format_address(ann.address), "1")
        assert "nearly the same" in facts["why"] or "50 words" in facts["why"]

        copy = await publish("copy", (bob.address, said))
        refused = await cli.json("artifacts", "register", copy, *paying, status=8)
        assert "were registered before" in refused["error"]["message"]
        done = await cli.json("artifacts", "register", copy, "--copied", *paying)
        assert done["sent"] is not False
        # Elsewhere, without the first dataset, nothing can be said of it, and the plan says so.
        shutil.rmtree(next((tmp_path / "home").rglob(f"sha256/*/{first[7:]}")))
        later = await publish("later", (bob.address, said + " again"))
        plan = await cli.json("artifacts", "register", later, "--from", format_address(owner.address))
        assert f"{first} is not here" in plan["plan"]["notJudged"]
