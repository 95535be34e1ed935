"""A node without its chain, its engine, its settings; its journal restored and upgraded; its units' commands."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from openlora_node.cli.exits import Exit
from openlora_node.daemon.templates import PROGRAM, render_unit
from openlora_node.journal import Reader
from support.chain_world import ChainWorld
from support.daemon_world import COMMAND, NodeHome, openlora, openlora_process, running_node

from .conftest import MakeHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def reserved_port() -> socket.socket:
    """A port that refuses connections until somebody listens on it: nobody else gets it meanwhile."""
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    place.bind(("127.0.0.1", 0))
    return place


@asynccontextmanager
async def relayed(place: socket.socket, url: str) -> AsyncIterator[None]:
    """The devnet at another port, for as long as the block lasts: what a chain that comes and goes looks like."""
    port = int(url.rpartition(":")[2])
    pipes: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = {asyncio.create_task(pipe(reader, behind_writer)), asyncio.create_task(pipe(behind_reader, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ways:
                task.cancel()
            for end in (writer, behind_writer):
                end.close()
                with suppress(ConnectionError):
                    await end.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running = asyncio.create_task(serve(reader, writer))
        pipes.add(running)
        running.add_done_callback(pipes.discard)

    server = await asyncio.start_server(begin, sock=place.dup())
    try:
        yield
    finally:
        server.close()
        running = list(pipes)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


async def test_a_chain_that_is_down_at_the_start_keeps_nobody_from_starting(
    make_home: MakeHome, world: ChainWorld, devnet: tuple[str, Path]
) -> None:
    with reserved_port() as place:
        home = await make_home(chain={"rpc_urls": [f"http://127.0.0.1:{place.getsockname()[1]}"]})
        await world.fund(home.wallet.address)
        home.node = await world.register_node(home.wallet)
        async with running_node(home) as node:
            told = await node.until(lambda line: "cannot be asked" in line)
            assert told.startswith("not serving: registration is initializing: which node this is cannot be asked")
            assert "READY=1" in node.heard
            async with relayed(place, devnet[0]):
                await node.until_serving()
                assert await node.stop() == 0
        # Now the journal knows which node this is: all but the chain comes up without it.
        async with running_node(home) as node:
            await node.until(lambda line: line.startswith("not serving: chain is initializing: "))
            status = await node.ask("/status")
            assert status["node"] == f"0x{home.node.hex()}"
            levels = node.services(status)
            assert (levels["registration"], levels["journal"]) == ("up", "up"), "remembered from before"
            async with relayed(place, devnet[0]):
                await node.until_serving()
            assert await node.stop() == 0


async def test_an_engine_killed_is_told_of_and_started_again(
    registered_home: MakeHome, model: Path, tmp_path: Path
) -> None:
    home = await registered_home(
        engine={"spawn": True, "socket": None, "host_cache": "16MiB"},
        api={"signed_listen": "127.0.0.1:0"},
    )
    async with running_node(home, OMP_NUM_THREADS="1") as node:
        await node.until_serving()
        engine = (await node.ask("/status"))["engine"]
        assert engine["starts"] == 1
        os.kill(engine["pid"], signal.SIGKILL)
        told = await node.until(lambda line: line.startswith("not serving: engine"))
        assert "killed" in told or "starts" in told
        await node.until_serving()
        again = (await node.ask("/status"))["engine"]
        assert again["starts"] == 2
        assert again["pid"] != engine["pid"]
        assert await node.stop(timeout_s=60) == 0
    assert not Path(f"/proc/{again['pid']}").exists(), "the engine goes with its node"
    assert "the engine was killed (signal 9" in (home.root / "log").read_text()


async def test_what_no_waiting_mends_ends_with_its_exit_code(make_home: MakeHome, tmp_path: Path) -> None:
    home = await make_home(engine={"model": str(tmp_path / "none")})
    home.settings["chain"]["deployment_file"] = str(tmp_path / "none.json")
    home.write()
    done = await openlora_process("run", "--config", str(home.config))
    assert done.returncode == Exit.CHAIN
    assert done.stderr == "openlora: DEPLOYMENT_UNSET: there is no deployment file none.json\n"


async def test_doctor_names_what_is_missing_and_then_nothing(
    make_home: MakeHome, world: ChainWorld, devnet: tuple[str, Path]
) -> None:
    home = await make_home(chain={"rpc_urls": ["http://127.0.0.1:1"]})
    config = str(home.config)

    async def verdicts() -> tuple[int, dict[str, tuple[str, str]]]:
        done = await openlora("doctor", "--config", config, "--json")
        return done.returncode, {check["name"]: (check["verdict"], check["fix"]) for check in done.json["checks"]}

    code, found = await verdicts()
    assert code == Exit.CHAIN
    assert found["rpc"] == ("fail", "start it, or correct chain.rpc_urls")
    assert found["key"][0] == "ok"
    home.settings["chain"]["rpc_urls"] = [devnet[0]]
    home.write()
    code, found = await verdicts()
    assert code == Exit.CHAIN
    assert found["contracts"][0] == "ok"
    assert found["gas"][0] == "fail"
    assert found["registered"] == ("fail", "openlora operator register")
    await world.fund(home.wallet.address)
    home.node = await world.register_node(home.wallet)
    code, found = await verdicts()
    assert code == 0, found
    assert {
        found[name][0] for name in ("rpc", "contracts", "clock", "gas", "registered", "key", "ports", "engine")
    } == {"ok"}
    text = (await openlora("doctor", "--config", config)).stdout
    assert re.search(r"^ok    registered  0x", text, re.MULTILINE)


async def test_a_backup_is_restored_and_an_older_journal_upgraded(registered_home: MakeHome) -> None:
    """As docs/operator.md says: stop, put the copy in the journal's place, start. An older schema is migrated then."""
    from openlora_node.journal.schema import bundled

    home = await registered_home()
    journal = home.state / "node.sqlite"
    async with running_node(home) as node:
        await node.until_serving()
        backup = Path((await node.order("/backup"))["backup"])
        assert await node.stop() == 0
    for rest in home.state.glob("node.sqlite*"):
        rest.unlink()
    shutil.copy(backup, journal)
    async with running_node(home) as node:
        await node.until_serving()
        assert await node.stop() == 0
    with Reader(journal) as reader:
        assert reader.binding.owner == home.node
        assert not reader.violations(deep=True)
    _take_back_to_the_first_schema(home, journal)
    copies = set((home.state / "backups").iterdir())
    async with running_node(home) as node:
        await node.until_serving()
        assert (await node.ask("/status"))["journal"]["schema"] == bundled()[-1].version
        assert await node.stop() == 0
    assert set((home.state / "backups").iterdir()) - copies, "a copy of before"


def _take_back_to_the_first_schema(home: NodeHome, journal: Path) -> None:
    """The same node's journal as the first version made it."""
    import sqlite3
    from contextlib import closing

    from openlora_node.journal.schema import APPLICATION_ID, bundled

    with closing(sqlite3.connect(journal)) as connection:
        row = connection.execute("SELECT * FROM meta").fetchone()
        names = [item[0] for item in connection.execute("SELECT * FROM meta").description]
    for rest in home.state.glob("node.sqlite*"):
        rest.unlink()
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        for statement in bundled()[0].statements():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        marks = ", ".join("?" for _ in names)
        connection.execute(f"INSERT INTO meta ({', '.join(names)}) VALUES ({marks})", row)
    journal.chmod(0o600)


async def test_the_units_commands_run_as_they_stand(registered_home: MakeHome, tmp_path: Path) -> None:
    """ExecStart of the node's unit, in the environment that the unit makes: credentials and a notify socket."""
    home = await registered_home()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    shutil.copy(home.root / "keys/node.json", credentials / "node-key")
    shutil.copy(home.root / "password", credentials / "node-password")
    for file in credentials.iterdir():
        file.chmod(0o440)  # what systemd's ACL shows as
    home.settings["keys"] = {}
    home.write()
    command = exec_start(render_unit("node", Path(PROGRAM)))
    assert command == [PROGRAM, "run", "--config", "/etc/openlora/node.yaml"]
    command[command.index("--config") + 1] = str(home.config)
    async with running_node(home, command=command[1:], CREDENTIALS_DIRECTORY=str(credentials)) as node:
        await node.until_serving()
        assert await node.stop() == 0


async def test_the_engines_command_runs_as_it_stands(model: Path, tmp_path: Path) -> None:
    unit = render_unit("engine", Path(PROGRAM))
    (tmp_path / "adapters").mkdir()
    socket_path = tmp_path / "engine.sock"
    places = {
        "/run/openlora-engine/engine.sock": str(socket_path),
        "/var/lib/openlora-artifacts": str(tmp_path / "adapters"),
    }
    variables = {"OPENLORA_MODEL": str(model), "OPENLORA_ENGINE_FLAGS": "--max-num-seqs=4 --host-cache=16MiB"}
    command = [places.get(word, word) for word in exec_start(unit, variables)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *command[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            while b"serving on" not in (line := await process.stdout.readline()):
                assert line, "it ended before it served"
        assert socket_path.is_socket()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            rest, code = await asyncio.gather(process.stdout.read(), process.wait())
        assert code == 0, rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def exec_start(unit: str, variables: dict[str, str] | None = None) -> list[str]:
    """The unit's command as systemd splits it: ${NAME} is one word, $NAME as many as it holds."""
    line = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert line is not None
    words: list[str] = []
    for word in shlex.split(line[1]):
        if (match := re.fullmatch(r"\$\{(\w+)\}", word)) is not None:
            words.append((variables or {})[match[1]])
        elif (match := re.fullmatch(r"\$(\w+)", word)) is not None:
            words += (variables or {})[match[1]].split()
        else:
            words.append(word)
    return words
