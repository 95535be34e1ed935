"""`openlora artifacts`: publish, look, pull from another process, keep and delete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openlora_node.artifacts import ArtifactStore
from openlora_node.cli.app import app
from openlora_node.config import loader
from support.artifacts_folders import BASE_ID, adapter_folder, chunks, dataset_folder

pytestmark = pytest.mark.timeout(60)
OPENLORA = [sys.executable, "-W", "ignore", "-c", "from openlora_node.cli import main; main()"]
BASE = "sha256:" + BASE_ID.hex()


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OPENLORA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(loader, "SYSTEM_FILE", tmp_path / "no-such-system-file.yaml")


def run(home: Path, *arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["artifacts", *arguments, "--set", f"node.data_dir={home}"])
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.output


def data(home: Path, *arguments: str) -> Any:
    return json.loads(run(home, *arguments, "--json"))


def test_publish_look_keep_and_delete(tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = adapter_folder(tmp_path / "in", chunks(2))
    assert "names the base" in run(home, "publish", str(source), status=8)
    published = data(home, "publish", str(source), "--base", BASE, "--licence", "Apache-2.0")
    artifact = published["artifact"]
    assert published["kind"] == "adapter"
    assert published["left_out"] == ["optimizer.pt"]
    shares = tmp_path / "shares.json"
    shares.write_text(json.dumps([{"account": "0x" + "01" * 20, "bps": 10_000}]))
    dataset = data(home, "publish", str(dataset_folder(tmp_path / "data")), "--shares", str(shares))
    assert "shares.json" in dataset["files"]
    listed = data(home, "list")
    assert {(row["artifact"], row["kind"], row["pinned"]) for row in listed["artifacts"]} == {
        (artifact, "adapter", True),
        (dataset["artifact"], "dataset", True),
    }
    assert artifact in run(home, "list", "--kind", "adapter")
    shown = data(home, "show", artifact)
    assert "adapter_model.safetensors" in run(home, "show", artifact)
    assert shown["manifest"]["config"]["licence"] == "Apache-2.0"
    assert Path(shown["folder"], "adapter_model.safetensors").is_file()
    assert "unpin" in run(home, "rm", artifact, status=8)
    assert data(home, "unpin", artifact) == {"artifact": artifact, "unpinned": True}
    weights = Path(shown["folder"], "adapter_model.safetensors")
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    damaged = json.loads(run(home, "verify", "--json", status=8))
    assert damaged["damaged"] == {artifact: ["adapter_model.safetensors"]}
    assert [row["artifact"] for row in data(home, "list")["artifacts"]] == [dataset["artifact"]]
    assert run(home, "verify") == "1 verified, none damaged\n"
    run(home, "unpin", dataset["artifact"])
    run(home, "rm", dataset["artifact"])
    assert data(home, "list")["artifacts"] == []
    assert set(data(home, "gc")) == {"bytes_freed", "evicted", "downloads", "broken"}
    assert "is not in this store" in run(home, "show", artifact, status=8)
    assert "sha256:" in run(home, "pin", "nonsense", status=8)
    assert "NOT_FOUND" in run(home, "publish", str(tmp_path / "nowhere"), "--json", status=8)


@pytest.mark.slow
def test_seed_and_pull_between_two_machines_stores(tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "in", chunks(20))
    arguments = ["publish", str(source), "--base", BASE, "--seed", "--set", f"node.data_dir={tmp_path / 'one'}"]
    with subprocess.Popen([*OPENLORA, "artifacts", *arguments], stdout=subprocess.PIPE, text=True) as seeding:
        assert seeding.stdout is not None
        artifact = seeding.stdout.readline().strip()
        lines = [seeding.stdout.readline() for _ in range(3)]
        (address,) = [line.removeprefix("seeding at ").strip() for line in lines if line.startswith("seeding at")]
        address = address.replace("/0.0.0.0/", "/127.0.0.1/")
        home = tmp_path / "two"
        pulled = data(home, "pull", artifact, "--peer", address, "--pin")
        assert (
            Path(pulled["folder"], "adapter_model.safetensors").read_bytes()
            == (source / "adapter_model.safetensors").read_bytes()
        )
        assert data(home, "list")["artifacts"][0]["pinned"]
        assert data(home, "pull", artifact) == pulled, "what is here needs no network"
        other = tmp_path / "three"
        bootstrap = ("--set", f"network.bootstrap=[{address}]")
        assert Path(data(other, "pull", artifact, *bootstrap)["folder"]).is_dir(), "found among the peers that it meets"
        missing = "sha256:" + "07" * 32
        assert (
            json.loads(run(home, "pull", missing, "--peer", address, "--json", status=8))["error"]["code"]
            == "NOT_FOUND"
        )
        assert "peer id" in run(home, "pull", missing, "--peer", "/ip4/127.0.0.1/tcp/1", status=8)
        seeding.send_signal(signal.SIGINT)
        assert seeding.wait(timeout=20) == 130


def test_beside_a_running_node_one_can_add_and_not_delete(tmp_path: Path) -> None:
    home = tmp_path / "home"
    artifact = data(home, "publish", str(adapter_folder(tmp_path / "in")), "--base", BASE, "--no-pin")["artifact"]
    (root,) = [path.parent for path in home.rglob("sha256") if path.is_dir()]
    with ArtifactStore.open(root, 1 << 30, keep_free=0) as store:
        other = data(home, "publish", str(adapter_folder(tmp_path / "more", seed=1)), "--base", BASE)["artifact"]
        assert {f"sha256:{one.hex()}" for one in store.ids()} == {artifact, other}
        assert "another process" in run(home, "rm", artifact, status=3)
        assert "another process" in run(home, "gc", status=3)
        assert run(home, "verify", artifact) == "1 verified, none damaged\n"
