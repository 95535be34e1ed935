"""Whose data an answer repeats, from a node's index to its payer's page: real processes, a real chain, a model's words.

The dataset is what the tiny model says by itself, so that the second time it repeats it. Nothing is stubbed but the
table of surprisals, which is made for real tokenizers only.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from openlora_chain.deployment import load_deployment
from openlora_chain.rpc import Rpc
from openlora_node.artifacts import ArtifactStore
from openlora_node.attribution import surprisal
from openlora_node.cli.exits import Exit
from openlora_node.config import load
from openlora_node.gateway.app import Gateway, open_gateway
from openlora_node.journal import Reader
from openlora_node.network.identity import peer_id_of
from openlora_node.protocol.ids import format_address, format_artifact_id
from support.chain_world import BASE, DATASET, OWNER, PAYER, ChainWorld, artifact_id, running_devnet
from support.daemon_world import NodeHome, NodeProcess, Outcome, openlora, running_node, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
SAID_TOKENS = 24
"""At most what one match is long: then a word begins where it begins and ends where it ends."""
QUESTIONS = 24
CLOSED_S = 90.0
"""An epoch's ten seconds, and the minute that clocks may differ by."""
CONTRIBUTORS = (b"\xc1" * 20, b"\xc2" * 20)
ROYALTY, PART, ASSIGNED = 10**15, 4_000, 5_000
"""Wei per million tokens; basis points of it to the dataset, and of that to credits."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    with running_devnet(tmp_path / "chain") as running:
        yield running


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of the tiny tokenizer is as unlikely as one of 256."""
    monkeypatch.setattr(surprisal, "surprisal_table", lambda _: np.full(512, 8_000, np.int32))


@dataclass
class Scene:
    """A node that serves a registered base with a dataset behind it, and a gateway that keeps text."""

    node: NodeProcess
    gateway: Gateway
    model: Path
    payer: Path
    """The gateway's configuration."""
    chain: tuple[str, Path]

    @property
    def gateway_state(self) -> Path:
        return self.payer.parent / "data/devnet"

    async def ask(self, question: str) -> tuple[str, dict[str, Any]]:
        """The receipt of an answer, and its kept text."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": SAID_TOKENS,
                "temperature": 0, "ignore_eos": True, "logit_bias": words(self.model)}  # fmt: skip
        headers = {"Authorization": f"Bearer {self.gateway.token}"}
        url = f"{self.gateway.url}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
            told = await answer.json()
            assert answer.status == 200, told
        receipt = told["openlora"]["receipt"]
        return receipt, json.loads((self.gateway_state / f"gateway/texts/{receipt[2:]}.json").read_text())

    async def command(self, *arguments: object) -> Outcome:
        """A command of the payer's."""
        return await openlora(*map(str, arguments), "--config", str(self.payer), "--json")

    async def told(self, *arguments: object) -> Any:
        """What one that succeeds prints."""
        outcome = await self.command(*arguments)
        assert outcome.returncode == 0, outcome
        return outcome.json


@asynccontextmanager
async def scene(chain: tuple[str, Path], folder: Path) -> AsyncIterator[Scene]:
    url, deployment = chain
    model = tiny_model(folder / "tiny", rope_theta=30_000.0)
    store = ArtifactStore.open(folder / "store", 1 << 30, keep_free=0)
    base = await store.add_folder(model, "base")
    store.close()
    dataset = artifact_id("traced dataset")
    home = await NodeHome.make(
        folder / "node", f"traced {os.getpid()}", url, deployment,
        engine={"spawn": True, "model": str(model), "device": "cpu", "kv_memory": "16MiB", "host_cache": "16MiB",
                "args": ["--num-threads=1", "--max-num-seqs=8"], "grace": "20s",
                "socket": f"/tmp/ol-traced-{os.getpid()}.sock"},
        network={"listen": ["/ip4/127.0.0.1/tcp/0"], "relay": "off", "advert_interval": "5s"},
        settlement={"epoch": "10s", "redeem_gas_multiple": 1},
    )  # fmt: skip
    async with Rpc([url]) as rpc:
        world = ChainWorld(rpc, load_deployment(deployment))
        await world.fund(home.wallet.address)
        home.node = await world.register_node(home.wallet)  # before the chain's clock is put forward
        await world.register_artifact(OWNER, dataset, DATASET, shares_root=b"\x05" * 32, credits_bps=ASSIGNED)
        await world.register_artifact(OWNER, base, BASE, ROYALTY, components=[(dataset, PART)])
    async with running_node(home, OMP_NUM_THREADS="1") as node:
        await node.until_serving()
        (address,) = (await node.ask("/net/addrs"))["listen"]
        payer = folder / "payer/gateway.yaml"
        payer.parent.mkdir()
        names = payer.with_name("names.yaml")
        names.write_text(yaml.safe_dump({"bases": {"tiny": {"id": format_artifact_id(base), "folder": str(model)}}}))
        payer.write_text(
            yaml.safe_dump(
                {
                    "node": {"data_dir": str(payer.parent / "data")},
                    "chain": home.settings["chain"],
                    "network": {"bootstrap": [f"{address}/p2p/{peer_id_of(home.wallet.reveal())}"], "relay": "off"},
                    "gateway": {"listen": "127.0.0.1:0", "names_file": str(names), "keep_text": True,
                                "escrow_per_node": "1 OPEN", "spend_per_request": "0.5 OPEN"},
                }
            )
        )  # fmt: skip
        async with open_gateway(load(payer).config, wallet=PAYER) as running:
            yield Scene(node, running, model, payer, chain)
        assert await node.stop() == Exit.OK


def tokenizer_of(model: Path) -> Tokenizer:
    """The tiny model's."""
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@cache
def words(model: Path) -> dict[str, int]:
    """A bias to tokens that are a word each: a text of them has the same tokens when it stands in a dataset."""
    tokenizer = tokenizer_of(model)
    alone = {
        token: tokenizer.decode([token])
        for name, token in tokenizer.get_vocab().items()
        if name.startswith("\u0120") and name.isprintable()
    }
    return {
        str(token): 100
        for token, text in sorted(alone.items())
        if text.strip().isalpha() and text.isascii() and tokenizer.encode(text, add_special_tokens=False).ids == [token]
    }


async def what_it_says(town: Scene) -> tuple[str, str]:
    """A question, and its answer."""
    for number in range(QUESTIONS):
        question = f"Question {number}: what do you say?"
        _, kept = await town.ask(question)
        (ids,), (said,) = kept["tokenIds"], kept["outputs"]
        if tokenizer_of(town.model).encode(said, add_special_tokens=False).ids == ids and len(set(ids)) > 5:
            return question, said
    raise AssertionError(f"all of {QUESTIONS} answers go round in circles")


def sample(text: str, contributor: bytes) -> str:
    entry = {"contributor": format_address(contributor), "licence": "CC0-1.0", "sample": {"text": text}}
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


async def indexed(town: Scene, said: str, folder: Path) -> Path:
    """The dataset's index, made by the payer and put where the node looks."""
    data = folder / "data.jsonl"
    data.write_text(sample(said, CONTRIBUTORS[0]) + sample("Something else that nobody says.", CONTRIBUTORS[1]))
    dataset = format_artifact_id(artifact_id("traced dataset"))
    made = await town.told("attribution", "index", data, "--dataset", dataset, "--tokenizer", town.model)
    index = Path(made["folder"])
    assert index.parent == town.gateway_state / "indexes"
    there = town.node.home.state / "indexes"
    there.mkdir(exist_ok=True)
    shutil.copytree(index, there / f".{index.name}")
    (there / f".{index.name}").rename(there / index.name)
    return index


async def test_an_answer_is_traced_paid_proven_and_explained(
    chain: tuple[str, Path], tmp_path: Path, table: None
) -> None:
    async with scene(chain, tmp_path) as town:
        question, said = await what_it_says(town)
        index = await indexed(town, said, tmp_path)
        receipt, kept = await town.ask(question)
        assert kept["outputs"] == [said]

        # The node traced it, the gateway held the leaves against quote and chain before it paid, and keeps them.
        shown = await town.told("receipts", "show", receipt)
        leaves = shown["attribution"]
        inner = "base/dataset/0"
        assert leaves[inner] == format_artifact_id(artifact_id("traced dataset"))
        assert (leaves[f"{inner}/bps"], leaves[f"{inner}/assigned"]) == (str(PART), str(ASSIGNED))
        assert int(leaves[f"{inner}/coverage"]) > 500_000
        assert leaves[f"{inner}/credit/0"] == f"1000000 of 1,000,000 to {format_address(CONTRIBUTORS[0])}"
        listed = await town.told("receipts", "list")
        assert listed[0]["digest"] == receipt
        assert {row["node"] for row in listed} == {f"0x{town.node.home.node.hex()}"}
        await town.gateway.requests.idle()
        with Reader(town.node.home.state / "node.sqlite") as theirs:
            (stored,) = theirs.find_receipts(bytes.fromhex(receipt[2:]), 2)
            assert theirs.account(PAYER.address, town.node.home.node).owed == 0
        assert stored.digest.hex() == receipt[2:]

        # Whoever has the text finds the same with what this machine keeps, by the receipt's name alone.
        replayed = await town.told("attribution", "replay", "--receipt", receipt)
        assert replayed["ok"]
        assert replayed["datasets"][0]["coverage"] == int(leaves[f"{inner}/coverage"])
        page = tmp_path / "page.html"
        (told,) = (await town.told("receipts", "explain", receipt, "--html", page))["datasets"]
        assert told["asTheReceiptSays"]
        assert [row["contributor"] for row in told["earned"]] == [format_address(CONTRIBUTORS[0])]
        assert format_address(CONTRIBUTORS[0]) in page.read_text()

        await nothing_tampered_replays(town, receipt, kept, index, tmp_path)
        await the_chain_proves_it(town, receipt, tmp_path)


async def nothing_tampered_replays(town: Scene, receipt: str, kept: dict[str, Any], index: Path, folder: Path) -> None:
    """Another answer, another question, another index: exit code 8 each."""
    for number, (change, code) in enumerate(
        (
            ({"tokenIds": [[*kept["tokenIds"][0][:-1], kept["tokenIds"][0][-1] ^ 1]]}, "RECEIPT_INVALID"),
            ({"prompt": {"messages": [{"role": "user", "content": kept["outputs"][0]}]}}, None),
        )
    ):
        text = folder / f"text-{number}.json"
        text.write_text(json.dumps(kept | change))
        refused = await town.command("attribution", "replay", "--receipt", receipt, "--text", text)
        assert refused.returncode == Exit.REFUSED, refused
        if code is None:  # an echo of the question is nobody's
            (row,) = refused.json["datasets"]
            assert (row["coverage"], refused.json["ok"]) == (0, False)
        else:
            assert refused.json["error"]["code"] == code
    damaged = folder / "damaged"
    shutil.copytree(index, damaged)
    with (damaged / "order").open("r+b") as file:
        file.write(b"\x01\x01")
    refused = await town.command("attribution", "replay", "--receipt", receipt, "--index", damaged)
    assert (refused.returncode, refused.json["error"]["code"]) == (Exit.REFUSED, "MALFORMED")
    away = index.with_name(".away")
    index.rename(away)
    for command in (("attribution", "replay", "--receipt", receipt), ("receipts", "explain", receipt)):
        refused = await town.command(*command)
        assert (refused.returncode, refused.json["error"]["code"]) == (Exit.REFUSED, "NOT_FOUND")
        assert "--index" in refused.json["error"]["message"]
    away.rename(index)


async def the_chain_proves_it(town: Scene, receipt: str, folder: Path) -> None:
    """Once its epoch is over: exported from the payer's journal, verified by the chain, then without it."""
    bundle = folder / "receipt.json"
    end = time.monotonic() + CLOSED_S
    while (exported := await town.command("receipts", "export", receipt, "--out", bundle)).returncode:
        assert exported.json["error"]["code"] == "NOT_FOUND", exported
        assert time.monotonic() < end, town.node.log[-4000:]
        await asyncio.sleep(2)
    told = exported.json
    url, deployment = town.chain
    at = ("--rpc", url, "--deployment", deployment)
    verify = ("receipts", "verify", bundle, "--epoch", told["epoch"], *at)
    while (proven := await town.command(*verify)).returncode:
        assert proven.json["error"]["code"] == "NOT_FOUND", proven
        assert time.monotonic() < end + 60, town.node.log[-4000:]
        await asyncio.sleep(1)
    assert (proven.json["digest"], proven.json["root"]) == (receipt, told["root"])
    assert told["key"] == format_address(town.node.home.wallet.address)
    other = await town.command("receipts", "verify", bundle, "--epoch", told["epoch"] + 100_000, *at)
    assert (other.returncode, other.json["error"]["code"]) == (Exit.REFUSED, "NOT_FOUND")
    offline = (
        "--root",
        told["root"],
        "--key",
        told["key"],
        "--chain-id",
        told["chainId"],
        "--contract",
        told["contract"],
    )
    assert (await town.told("receipts", "verify", bundle, *offline))["ok"]
    again = folder / "again.json"
    anchored = await town.told("receipts", "export", receipt, "--out", again)
    assert anchored["anchored"]
    assert again.read_bytes() == bundle.read_bytes()
    explained = await town.told("receipts", "explain", bundle)
    assert explained["datasets"][0]["asTheReceiptSays"]
    bundle.write_bytes(bundle.read_bytes().replace(b'"status":"0"', b'"status":"1"'))
    forged = await town.command(*verify)
    assert forged.json["error"]["code"] in {"BAD_SIGNATURE", "RECEIPT_INVALID"}
