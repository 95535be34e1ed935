"""The root of `openlora`: finds the noun, runs it, turns every outcome into an exit code and at most a few lines.

A noun is a file beside this one with a typer app named `app`, and a row in NOUNS. It is imported only when it is used:
`--help` and `--version` cost no more than typer, whatever the nouns import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version as distribution_version
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from ..protocol.errors import OpenLoraError
from .exits import Exit, exit_for
from .options import AsJson
from .output import OutputLostError, ReaderLeftError, print_error, print_fault, print_json, print_usage_error

USAGE_ERROR = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""click's UsageError, the base of all it says about a command line; typer exports only this subclass."""


OUTPUT_LOST = "openlora: standard output cannot be written: free disk space or name another file"


@dataclass(frozen=True)
class Noun:
    """A group of commands: its name is its file's, the summary stands in `openlora --help`."""

    name: str
    summary: str


NOUNS = (
    Noun("artifacts", "Publish, fetch and keep adapters, base models and datasets."),
    Noun("ask", "Ask one question and pay for the answer."),
    Noun("attribution", "Find which data a response came from, and what it earned."),
    Noun("config", "Show, check and explain the configuration."),
    Noun("contracts", "Deploy the contracts and check a deployment."),
    Noun("credits", "See and decide what datasets' contributors are credited by use."),
    Noun("db", "Check and back up the journal."),
    Noun("devnet", "Run a development chain on this machine."),
    Noun("doctor", "Check everything that a node needs, with the fix."),
    Noun("drain", "Have the running node take no more requests."),
    Noun("engine", "Serve LoRA adapters over one base model, without a node."),
    Noun("escrow", "Set money aside for nodes, and take it back."),
    Noun("gateway", "Pay for answers: an OpenAI endpoint on this machine."),
    Noun("init", "Make the configuration, the data directory and the node key."),
    Noun("keys", "Make, import, export and guard key files."),
    Noun("net", "See how others reach this node, and what to change."),
    Noun("operator", "Register the node and look after its entry on chain."),
    Noun("peers", "Look at connected peers and keep some out."),
    Noun("quote", "Ask nodes what a request would cost."),
    Noun("receipts", "Look at receipts, and prove them to others."),
    Noun("rewards", "See and claim what operators, owners and contributors earned."),
    Noun("run", "Run the node."),
    Noun("service", "Run the node and its engine under systemd."),
    Noun("spend", "See what the gateway spent."),
    Noun("stake", "Look after the node's stake."),
    Noun("status", "Tell whether the node serves, or why not."),
    Noun("tx", "Look at the chain transactions under way and steer them."),
)


class Root(TyperGroup):
    """The commands of this file and, lazily, the nouns."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in alphabetical order."""
        return sorted([*self.commands, *(noun.name for noun in NOUNS)])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, or a noun known by its summary alone: enough for help and for completion of its name."""
        noun = next((noun for noun in NOUNS if noun.name == cmd_name), None)
        return TyperGroup(name=noun.name, help=noun.summary) if noun else super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` name; a noun is imported here."""
        name, command, rest = super().resolve_command(ctx, args)
        if any(noun.name == name for noun in NOUNS):
            command = typer.main.get_command(import_module(f"{__package__}.{name}").app)
        return name, command, rest

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Run and exit. Nothing but SystemExit leaves, unless Python runs in development mode."""
        args = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        status: int = Exit.OK
        try:
            status, report = _outcome(lambda: super(Root, self).main(args, *arguments, **options), "--json" in args)
            report()
            sys.stdout.flush()
        except (ReaderLeftError, BrokenPipeError):
            # A reader that left has what it wanted (`| head`).
            _forget_output()
        except (OutputLostError, OSError):
            _forget_output()
            print(OUTPUT_LOST, file=sys.stderr)
            status = Exit.INTERNAL
        sys.exit(status)


def _forget_output() -> None:
    """Drop what is buffered: the interpreter's own flush at exit must not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _outcome(run: Callable[[], Any], as_json: bool) -> tuple[int, Callable[[], None]]:
    """Run a command: its exit code, and what remains to be printed."""
    try:
        status = run()
    except OpenLoraError as error:
        return exit_for(error.code), partial(print_error, error, as_json=as_json)
    except USAGE_ERROR as error:
        return Exit.USAGE, partial(_explain_usage, error, as_json)
    except (typer.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED, lambda: None
    except ReaderLeftError:
        return Exit.OK, _forget_output
    except OutputLostError:
        raise
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        return Exit.INTERNAL, partial(print_fault, type(error).__name__, as_json=as_json)
    return status if isinstance(status, int) else Exit.OK, lambda: None


def _explain_usage(error: Any, as_json: bool) -> None:
    """click's message and where to read on; a bare `openlora` or noun prints its help instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return
    path = error.ctx.command_path if error.ctx else "openlora"
    print_usage_error(" ".join(error.format_message().split()), f"See `{path} --help`.", as_json=as_json)


app = typer.Typer(
    name="openlora",
    cls=Root,
    help="Serve LoRA adapters, sign what was served, get paid for it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context, show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Serve LoRA adapters, sign what was served, get paid for it."""
    if show_version:
        version()
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        ctx.fail("Missing command.")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = distribution_version("openlora-node")
    if as_json:
        print_json({"version": number})
    else:
        print(f"openlora {number}")
