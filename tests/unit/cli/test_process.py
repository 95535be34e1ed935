"""`openlora` as a shell starts it: exit codes, single lines, pipes, what it imports and how soon it answers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

OPENLORA = [sys.executable, "-c", "from openlora_node.cli import main; main()"]
HEAVY = ("torch", "transformers", "web3", "libp2p", "trio", "aiohttp", "eth_account", "openlora_engine")


def run(
    *arguments: str, env: dict[str, str] | None = None, command: list[str] = OPENLORA
) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENLORA_")}
    return subprocess.run([*command, *arguments], capture_output=True, env=clean | (env or {}), check=False, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "node.yaml"
    path.write_text("log: {level: debug}\n")
    return str(path)


def test_the_installed_command() -> None:
    result = run("--version", command=[str(Path(sys.executable).parent / "openlora")])
    assert result.returncode == 0
    assert result.stdout.startswith(b"openlora 0.")


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["config", "check", "--config", "/no/such.yaml"], 3, b"openlora: /no/such.yaml: there is no such file"),
        (["config", "chek"], 2, b"openlora: No such command 'chek'"),
    ],
)
def test_a_failure_is_a_number_and_one_line(arguments: list[str], status: int, line: bytes) -> None:
    result = run(*arguments)
    assert result.returncode == status
    assert result.stdout == b""
    assert result.stderr.startswith(line)
    assert result.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_odd_bytes_in_the_environment_are_an_error_of_one_line(file: str) -> None:
    for name, value in ((b"OPENLORA_LOG__LEVEL", b"\xff\n\x1b[2J"), (b"OPENLORA_\xff", b"x")):
        environment = {os.fsencode(key): os.fsencode(text) for key, text in os.environ.items()} | {name: value}
        for extra in ([], ["--json"]):
            command = [*OPENLORA, "config", "check", "--config", file, *extra]
            result = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)
            assert result.returncode == 3
            assert b"\x1b" not in result.stdout + result.stderr
            if extra:
                assert json.loads(result.stdout)["error"]["code"] == "CONFIG_INVALID"
            else:
                assert result.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(file: str) -> None:
    for arguments, status in ((["show"], 0), (["show", "--json"], 0), (["check", "--set", "x", "--json"], 3)):
        read, written = os.pipe()
        os.close(read)
        command = [*OPENLORA, "config", *arguments, "--config", file]
        with os.fdopen(written, "wb") as output:
            result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False, timeout=60)
        assert (result.returncode, result.stderr) == (status, b"")


def test_a_full_disk_is_said(file: str) -> None:
    with Path("/dev/full").open("wb") as output:
        command = [*OPENLORA, "config", "show", "--config", file]
        result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr == b"openlora: standard output cannot be written: free disk space or name another file\n"


def terminal_output(*arguments: str, env: dict[str, str]) -> bytes:
    """What the command writes to a terminal of 80 columns."""
    import pty

    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"} | env
    process = subprocess.Popen([*OPENLORA, *arguments], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while True:
        try:
            chunk = os.read(controller, 65_536)
        except OSError:  # Linux reports EIO once the last writer has closed its end
            break
        if not chunk:
            break
        output += chunk
    os.close(controller)
    assert process.wait(60) == 0
    return output


@pytest.mark.slow
def test_colour_needs_a_terminal_and_no_no_color(file: str) -> None:
    arguments = ("config", "show", "--config", file)
    assert b"\x1b[" in terminal_output(*arguments, env={})
    plain = terminal_output(*arguments, env={"NO_COLOR": "1"})
    # NO_COLOR forbids colour, not bold: no code from 30 to 49 or 90 to 107 may appear.
    assert b"node.data_dir" in plain
    assert not any(f"\x1b[{code}m".encode() in plain for code in (*range(30, 50), *range(90, 108)))
    assert b"\x1b" not in run(*arguments).stdout


def test_a_pipe_gets_every_value_whole(tmp_path: Path) -> None:
    listen = ", ".join(f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 17))
    file = tmp_path / "node.yaml"
    file.write_text(f"network: {{listen: [{listen}]}}\n")
    assert f"[{listen}]".encode() in run("config", "show", "--config", str(file)).stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config", "show", "--config", "FILE"]])
def test_only_what_is_needed_is_imported(arguments: list[str], file: str) -> None:
    code = (
        "import sys\n"
        "from openlora_node.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {(*HEAVY, 'openlora_node.config')} if name in sys.modules], file=sys.stderr)"
    )
    arguments = [file if argument == "FILE" else argument for argument in arguments]
    result = run(*arguments, command=[sys.executable, "-c", code])
    assert result.returncode == 0
    assert result.stderr.strip() == (b"['openlora_node.config']" if "show" in arguments else b"[]")


@pytest.mark.slow
def test_help_answers_soon() -> None:
    """Half a second of processor time at most, in the best of three: the machine may be busy with other things."""

    def seconds() -> float:
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    started = time.monotonic()
    assert min(seconds() for _ in range(3)) < 0.5
    assert time.monotonic() - started < 30
