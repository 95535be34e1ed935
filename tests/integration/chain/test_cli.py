"""The chain's nouns on the command line: real key files, a real journal, a real devnet process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openlora_chain.store import Order
from openlora_node.cli import contracts, keys, tx
from openlora_node.journal.outbox import JournalOutbox
from openlora_node.protocol.errors import OpenLoraError
from support.anvil import payment
from support.journal import open_journal

pytestmark = pytest.mark.slow
SECRET = "0x" + "4c" * 32
DEVNET = "from openlora_node.cli.devnet import app; app(prog_name='devnet')"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    return path


def call(app, *arguments: object, stdin: str | None = None) -> str:  # type: ignore[no-untyped-def]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_keys_from_import_to_backup(tmp_path: Path, password: Path) -> None:
    file, copy, bare = tmp_path / "hot.json", tmp_path / "copy.json", tmp_path / "bare"
    imported = json.loads(call(keys.app, "import", file, "--password-file", password, "--json", stdin=SECRET))
    shown = json.loads(call(keys.app, "show", file, "--json"))
    assert shown["address"] == imported["address"]
    here = ("--set", f"keys.keystore_file={file}", "--set", f"node.data_dir={tmp_path}")
    (listed,) = json.loads(call(keys.app, "list", *here, "--json"))
    assert (listed["address"], listed["encrypted"], listed["problem"]) == (imported["address"], True, "")
    output = call(keys.app, "backup", file, "--to", copy, "--password-file", password)
    output += call(keys.app, "export", file, "--to", bare, "--yes", "--password-file", password)
    assert bare.read_text().strip() == SECRET
    assert bare.stat().st_mode & 0o777 == copy.stat().st_mode & 0o777 == 0o600
    assert SECRET[2:] not in output
    with pytest.raises(OpenLoraError, match="KEY_EXISTS"):
        call(keys.app, "new", file, "--password-file", password)
    file.chmod(0o644)
    with pytest.raises(OpenLoraError, match="KEY_UNSAFE"):
        call(keys.app, "backup", file, "--to", tmp_path / "other", "--password-file", password)


async def test_tx_shows_and_orders_while_the_journal_is_open(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    async with open_journal(path) as journal:
        store = JournalOutbox(journal)
        intent = await store.submit(payment(0), 1_000)
        listed = json.loads(await asyncio.to_thread(call, tx.app, "list", "--journal", path, "--json"))
        assert [row["id"] for row in listed] == ["0x" + intent.id.hex()]
        assert "queued" in await asyncio.to_thread(call, tx.app, "show", intent.id.hex()[:8], "--journal", path)
        await asyncio.to_thread(call, tx.app, "cancel", intent.id.hex()[:8], "--journal", path)
        (ordered,) = await store.open_intents(payment(0).sender, payment(0).chain_id)
        assert ordered.order is Order.CANCEL
        with pytest.raises(OpenLoraError, match="INTENT_STATE"):
            await asyncio.to_thread(call, tx.app, "bump", intent.id.hex(), "--journal", path)
        with pytest.raises(OpenLoraError, match="NOT_FOUND"):
            await asyncio.to_thread(call, tx.app, "show", "ffff", "--journal", path)
    with pytest.raises(OpenLoraError, match="NOT_FOUND"):
        call(tx.app, "list", "--journal", tmp_path / "none.sqlite")


def test_public_networks_name_what_is_missing() -> None:
    for network in ("openledger", "openledger-testnet"):
        with pytest.raises(OpenLoraError, match="DEPLOYMENT_UNSET"):
            call(contracts.app, "show", network)


async def test_devnet_runs_until_interrupted_and_its_contracts_check(tmp_path: Path, password: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEVNET, "--dir", tmp_path / "chain", "--port", "0", "--engine", "embedded", "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        text = (await process.stdout.readuntil(b"\n}\n")).decode()
    running = json.loads(text)
    file = Path(running["deploymentFile"])
    assert await asyncio.to_thread(call, contracts.app, "check", file, "--rpc", running["url"])
    key, out = tmp_path / "deployer.json", tmp_path / "mine.json"
    from eth_utils.crypto import keccak

    secret = keccak(text="openlora devnet only, not a secret: owner").hex()
    await asyncio.to_thread(call, keys.app, "import", key, "--password-file", password, stdin=secret)
    people = [option for name in ("treasury", "guardian", "governor") for option in (f"--{name}", "0x" + "11" * 20)]
    arguments = ["deploy", "--network", "mine", "--key", key, "--out", out, *people, "--rpc", running["url"]]
    arguments += ["--password-file", password]
    plan = await asyncio.to_thread(call, contracts.app, *arguments)
    assert "--yes" in plan
    assert not out.exists()
    await asyncio.to_thread(call, contracts.app, *arguments, "--yes")
    assert await asyncio.to_thread(call, contracts.app, "check", out, "--rpc", running["url"])
    with pytest.raises(OpenLoraError, match="1612"):
        await asyncio.to_thread(call, contracts.app, *["openledger" if a == "mine" else a for a in arguments])
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
