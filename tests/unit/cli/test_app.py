"""The root: nouns load lazily, every outcome is an exit code and at most a few lines."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import openlora_node.cli
from openlora_node.cli import app as root
from openlora_node.cli.app import NOUNS, app
from openlora_node.cli.exits import Exit, exit_for
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

runner = CliRunner()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`openlora version` raises what the test puts into this list."""
    errors: list[BaseException] = []

    def fail(*_: object) -> str:
        raise errors[0]

    monkeypatch.setattr(root, "distribution_version", fail)
    return errors


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for noun in NOUNS:
        assert f"  {noun.name} " in result.stdout
        assert noun.summary in result.stdout


def test_every_noun_is_a_file_with_an_app_and_help() -> None:
    for noun in NOUNS:
        module = import_module(f"openlora_node.cli.{noun.name}")
        assert isinstance(module.app, typer.Typer)
        result = runner.invoke(app, [noun.name, "--help"])
        assert result.exit_code == 0
        assert noun.summary in result.stdout


def test_every_command_takes_json() -> None:
    for noun in NOUNS:
        group = typer.main.get_command(import_module(f"openlora_node.cli.{noun.name}").app)
        for line in commands_of(group):
            assert "--json" in runner.invoke(app, [noun.name, *line, "--help"]).stdout, f"{noun.name} {line}"
    assert "--json" in runner.invoke(app, ["version", "--help"]).stdout


def commands_of(group: Any) -> Iterator[list[str]]:
    """The words after the noun, of every command below it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ([name, *rest] for rest in commands_of(command))
        else:
            yield [name]


def test_no_file_of_the_folder_is_a_forgotten_noun() -> None:
    files = Path(openlora_node.cli.__file__).parent.glob("*.py")
    nouns = {path.stem for path in files if "\napp = typer.Typer(" in path.read_text("utf-8")} - {"app"}
    assert nouns == {noun.name for noun in NOUNS}


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_version(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("openlora 0.")
    as_json = json.loads(runner.invoke(app, ["version", "--json"]).stdout)
    assert result.stdout == f"openlora {as_json['version']}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["confg"], "No such command 'confg'"),
        (["config", "chek"], "No such command 'chek'"),
        (["version", "--bogus"], "No such option: --bogus"),
        (["version", "extra"], "unexpected extra argument"),
        (["config", "show", "--set"], "requires an argument"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "--help`." in result.stderr
    if arguments[-1] != "--set":
        result = runner.invoke(app, [*arguments, "--json"])
        assert result.exit_code == Exit.USAGE
        assert result.stderr == ""
        error = json.loads(result.stdout)["error"]
        assert error["code"] == "USAGE"
        assert message in error["message"]


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_a_bare_noun_prints_its_help_and_exits_2(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert "Commands:" in result.stderr


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_of_ours_has_an_exit_code_and_a_line(failing: list[BaseException], code: ErrorCode) -> None:
    failing.append(OpenLoraError(code, "do this instead"))
    result = runner.invoke(app, ["version"])
    assert result.exit_code == exit_for(code) not in (Exit.OK, Exit.USAGE)
    assert (result.stdout, result.stderr) == ("", "openlora: do this instead\n")
    result = runner.invoke(app, ["version", "--json"])
    assert result.exit_code == exit_for(code)
    assert json.loads(result.stdout) == {"error": {"code": code.value, "message": "do this instead"}}
    assert result.stderr == ""


def test_exit_codes_are_those_that_scripts_know() -> None:
    assert {member.name: member.value for member in Exit} == {
        "OK": 0, "INTERNAL": 1, "USAGE": 2, "CONFIG": 3, "KEY": 4, "CHAIN": 5, "NETWORK": 6, "GPU": 7, "REFUSED": 8,
        "INTERRUPTED": 130,
    }  # fmt: skip
    assert exit_for(ErrorCode.CONFIG_SECRET) == Exit.CONFIG
    assert exit_for(ErrorCode.WRONG_CHAIN) == Exit.CHAIN
    assert exit_for(ErrorCode.NO_NODE) == Exit.NETWORK
    assert exit_for(ErrorCode.ENGINE_FAILED) == Exit.GPU
    assert exit_for(ErrorCode.ESCROW_TOO_LOW) == Exit.REFUSED


def test_a_fault_of_ours_shows_its_class_alone(failing: list[BaseException]) -> None:
    failing.append(RuntimeError("hunter22"))
    result = runner.invoke(app, ["version"])
    assert result.exit_code == Exit.INTERNAL
    assert result.stderr.startswith("openlora: RuntimeError: a fault of ours")
    assert result.stderr.count("\n") == 1
    assert "hunter22" not in result.output
    failing[0] = ValueError("hunter22")
    error = json.loads(runner.invoke(app, ["version", "--json"]).stdout)["error"]
    assert error["code"] == "INTERNAL"
    assert "hunter22" not in error["message"]


def test_an_interrupted_command_exits_130_in_silence(failing: list[BaseException]) -> None:
    for error in (KeyboardInterrupt(), typer.Abort()):
        failing[:] = [error]
        result = runner.invoke(app, ["version"])
        assert result.exit_code == Exit.INTERRUPTED
        assert result.stdout == result.stderr == ""


def test_a_commands_number_is_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    noun = typer.Typer(no_args_is_help=True)

    @noun.callback()
    def _group() -> None: ...

    @noun.command()
    def seven() -> int:
        return 7

    monkeypatch.setattr(root, "import_module", lambda _: type("Module", (), {"app": noun}))
    assert runner.invoke(app, ["config", "seven"]).exit_code == 7


def test_main_takes_the_processs_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["openlora", "--version"])
    with pytest.raises(SystemExit) as caught:
        openlora_node.cli.main()
    assert caught.value.code == Exit.OK
    assert capsys.readouterr().out.startswith("openlora 0.")
