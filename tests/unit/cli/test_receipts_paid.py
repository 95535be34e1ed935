"""`openlora receipts` on a payer's journal, and against a chain: the same nouns as on a node's."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from openlora_chain import bindings
from openlora_node.cli.anchored import anchored
from openlora_node.cli.app import app
from openlora_node.gateway import client
from openlora_node.gateway.proofs import Proofs
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import format_address
from support.gateway_world import DOMAIN, EPOCH_S, NOW, PAYER_KEY, ScriptedNode, world

GATEWAY = "devnet/gateway/payer.sqlite"


@dataclass
class Paid:
    """A data directory as a gateway left it, and what its nodes would say."""

    folder: Path
    bundles: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    nodes: list[ScriptedNode] = field(default_factory=list)


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Paid:
    """Three requests, paid."""
    made = Paid(tmp_path_factory.mktemp("paid"))

    async def none(node: bytes, epoch: int) -> bytes:
        return bytes(32)

    async def fill() -> None:
        folder = made.folder / "world"
        folder.mkdir()
        async with world(folder) as w:
            for number in range(3):
                w.clock.now += 1
                _, answer = await w.ask(text=f"question {number}", model="tiny+poet")
                assert answer.finished is not None
                digest = answer.finished.stored.digest
                made.bundles[digest] = (await Proofs(w.purse, w.street, none).fetch(digest)).to_json()
            await w.settle_down()
            made.nodes = w.nodes

    asyncio.run(fill())
    (made.folder / GATEWAY).parent.mkdir(parents=True)
    shutil.copy(made.folder / "world/payer.sqlite", made.folder / GATEWAY)
    return made


@pytest.fixture
def link(paid: Paid, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway here answers from what its nodes said."""

    async def proof(digest: bytes) -> dict[str, Any]:
        return paid.bundles[digest]

    @asynccontextmanager
    async def reach(_: object) -> AsyncIterator[object]:
        yield SimpleNamespace(proof=proof)

    monkeypatch.setattr(client, "reach_gateway", reach)


def run(paid: Paid, *arguments: object) -> Result:
    settings = ("--set", f"node.data_dir={paid.folder}")
    return CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, ["receipts", *map(str, arguments), *settings])


def run_json(paid: Paid, *arguments: object) -> Any:
    result = run(paid, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def code_of(result: Result) -> str:
    return str(json.loads(result.stdout)["error"]["code"])


def test_a_gateways_journal_is_found_where_there_is_no_nodes(paid: Paid) -> None:
    rows = run_json(paid, "list")
    assert [row["digest"] for row in rows] == [f"0x{digest.hex()}" for digest in reversed(paid.bundles)]
    assert {row["payer"] for row in rows} == {format_address(PAYER_KEY.address)}
    assert {row["epoch"] for row in rows} == {None}
    assert rows == run_json(paid, "list", "--journal", paid.folder / GATEWAY)
    assert rows[:2] == run_json(paid, "list", "--limit", 2)
    text = run(paid, "list").output
    assert rows[0]["node"][:20] in text
    assert str(rows[0]["seq"]) in text


def test_beside_a_node_it_is_asked_for_by_name(paid: Paid) -> None:
    theirs = paid.folder / "devnet/node.sqlite"
    shutil.copy(paid.folder / "world/node1.sqlite", theirs)
    try:
        assert {row["epoch"] for row in run_json(paid, "list")} == {(NOW + 1) // 3600}
        assert {row["epoch"] for row in run_json(paid, "list", "--gateway")} == {None}
    finally:
        theirs.unlink()


def test_a_receipt_is_shown_with_its_leaves_by_whatever_names_it(paid: Paid) -> None:
    row = run_json(paid, "list")[0]
    for identity in (row["digest"], row["digest"][2:9], row["seq"]):
        shown = run_json(paid, "show", identity)
        assert shown["digest"] == row["digest"]
    assert run_json(paid, "show", shown["request"])["digest"] == row["digest"]
    assert shown["attribution"]["adapter/0/weight"] == "10000"
    assert int(shown["commitment"]["choice/0/tokens"]) == row["completionTokens"]
    assert "epoch" not in run(paid, "show", row["digest"]).output
    missing = run(paid, "show", "ffffffffffff", "--json")
    assert (missing.exit_code, code_of(missing)) == (8, "NOT_FOUND")


@pytest.mark.usefixtures("link")
def test_what_a_payer_exports_anyone_verifies_offline(paid: Paid, tmp_path: Path) -> None:
    row = run_json(paid, "list")[1]
    file = tmp_path / "receipt.json"
    told = run_json(paid, "export", row["digest"][:14], "--out", file)
    assert (told["epoch"], told["anchored"]) == (row["finishedAt"] // EPOCH_S, False)
    trusted = (
        "--root", told["root"], "--key", told["key"], "--chain-id", told["chainId"], "--contract", told["contract"],
    )  # fmt: skip
    assert told["key"] == format_address(paid.nodes[0].key.address)
    proven = run_json(paid, "verify", file, *trusted)
    assert (proven["digest"], proven["fee"]) == (row["digest"], row["fee"])
    again = run(paid, "export", row["digest"], "--out", file, "--json")
    assert (again.exit_code, code_of(again)) == (8, "STORAGE_FAILED")
    file.write_bytes(file.read_bytes().replace(b'"status":"0"', b'"status":"1"'))
    assert run(paid, "verify", file, *trusted).exit_code == 4


def test_without_root_and_key_a_deployment_is_needed(paid: Paid, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(next(iter(paid.bundles.values()))["bundle"])
    for half in ((), ("--root", f"0x{'11' * 32}"), ("--key", format_address(b"\x01" * 20))):
        result = run(paid, "verify", file, *half, "--json")
        assert code_of(result) == "CHAIN_FAILED"
        assert "--deployment" in json.loads(result.stdout)["error"]["message"]


def test_an_audit_wants_a_nodes_journal(paid: Paid) -> None:
    arguments = ["attribution", "audit", "--epoch", "1", "--journal", str(paid.folder / GATEWAY), "--json"]
    result = CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, arguments)
    assert code_of(result) == "JOURNAL_MISMATCH"


def test_what_was_not_traced_needs_no_text(paid: Paid) -> None:
    row = run_json(paid, "list")[0]
    assert run_json(paid, "explain", row["digest"])["datasets"] == []
    assert "static shares" in run(paid, "explain", row["digest"]).output


# against a chain


@pytest.mark.parametrize(
    ("life", "root", "code"),
    [
        ({}, b"\x01" * 32, None),
        ({"valid_until": NOW + 1}, b"\x01" * 32, None),
        ({"valid_from": NOW + 60}, b"\x01" * 32, None),
        ({"valid_from": NOW + 3_600}, b"\x01" * 32, ErrorCode.BAD_SIGNATURE),
        ({"valid_until": NOW - 3_600}, b"\x01" * 32, ErrorCode.BAD_SIGNATURE),
        ({"node": b"\x77" * 32}, b"\x01" * 32, ErrorCode.BAD_SIGNATURE),
        ({"node": bytes(32)}, b"\x01" * 32, ErrorCode.BAD_SIGNATURE),
        ({}, bytes(32), ErrorCode.NOT_FOUND),
    ],
    ids=["current", "retired-since", "a-minute-ahead", "later", "retired", "another-nodes", "unknown", "not-anchored"],
)
async def test_the_key_must_have_been_the_nodes_then(
    paid: Paid, monkeypatch: pytest.MonkeyPatch, life: dict[str, Any], root: bytes, code: ErrorCode | None
) -> None:
    from openlora_node.attribution import Bundle

    receipt = Bundle.decode(next(iter(paid.bundles.values()))["bundle"].encode()).receipt
    known = SimpleNamespace(**({"node": receipt.value.node, "valid_from": 1, "valid_until": 0} | life))
    asked: list[int] = []

    async def key_of(key: bytes) -> object:
        assert key == paid.nodes[0].key.address
        return known

    async def root_of(node: bytes, epoch: int) -> bytes:
        asked.append(epoch)
        return root

    monkeypatch.setattr(bindings, "ReceiptAnchor", lambda *_: SimpleNamespace(root_of=root_of))
    epochs = SimpleNamespace(settlement=SimpleNamespace(epoch=SimpleNamespace(total_seconds=lambda: 60.0)))
    desk: Any = SimpleNamespace(
        domain=DOMAIN, config=epochs, rpc=None, deployment=None, nodes=SimpleNamespace(key_of=key_of)
    )
    if code is not None:
        with pytest.raises(OpenLoraError) as caught:
            await anchored(desk, receipt, None)
        assert caught.value.code is code
        return
    found = await anchored(desk, receipt, None)
    assert (found.root, found.key) == (root, paid.nodes[0].key.address)
    assert asked == [found.epoch] == [receipt.value.finished_at // 60]
    assert (await anchored(desk, receipt, 5)).epoch == 5
