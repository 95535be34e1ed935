"""`openlora keys`: make, import, export and guard key files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.ids import format_address
from .chain_errors import run, translated
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from openlora_chain.password import Password
    from openlora_chain.wallet import Wallet

app = typer.Typer(help="Make, import, export and guard key files.", no_args_is_help=True, **NOUN)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Keystore v3 file, mode 0600.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="File of mode 0600. Default: ask.")
]
NewPasswordFile = Annotated[
    Path | None, typer.Option("--new-password-file", metavar="FILE", help="File of mode 0600. Default: ask.")
]


@app.command()
def new(file: File, password_file: PasswordFile = None, as_json: AsJson = False) -> None:
    """Make a random key."""
    from openlora_chain import keystore

    _report("created", file, run(keystore.create(file, _password(password_file, confirm=True))), as_json)


@app.command("import")
def import_(file: File, password_file: PasswordFile = None, as_json: AsJson = False) -> None:
    """Store a private key given as hex on standard input; never as an argument, which others can see."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    try:
        secret = keystore.parse_secret(sys.stdin.readline(200))
    except ChainError as error:
        raise translated(error) from None
    _report("imported", file, run(keystore.store(file, secret, _password(password_file, confirm=True))), as_json)


@app.command()
def export(
    file: File,
    target: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the bare key, mode 0600.")],
    yes: Annotated[bool, typer.Option("--yes", help="The bare key opens everything: say that you want it.")] = False,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the bare private key to a new file. It is never printed."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    if not yes:
        raise typer.BadParameter("whoever reads the file owns the key; add --yes if you want that")
    wallet = run(keystore.load(file, _password(password_file)))
    try:
        keystore.write_secret(target, wallet)
    except ChainError as error:
        raise translated(error) from None
    _report("exported", target, wallet, as_json)


@app.command()
def passwd(
    file: File, password_file: PasswordFile = None, new_password_file: NewPasswordFile = None, as_json: AsJson = False
) -> None:
    """Change a key file's password."""
    from openlora_chain import keystore

    old = _password(password_file)
    wallet = run(keystore.change_password(file, old, _password(new_password_file, confirm=True, prompt="New password")))
    _report("changed", file, wallet, as_json)


@app.command()
def backup(
    file: File,
    target: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the copy, mode 0600.")],
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy a key file, and prove that the password opens the copy."""
    from openlora_chain import keystore

    _report("backed up", target, run(keystore.back_up(file, target, _password(password_file))), as_json)


@app.command()
def show(file: File, as_json: AsJson = False) -> None:
    """Print the address that a key file names; asks no password."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    try:
        address = format_address(keystore.address_of(file))
    except ChainError as error:
        raise translated(error) from None
    print_json({"address": address}) if as_json else print(address)


@app.command("list")
def list_(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """List the key files of this machine: of the configuration and the data directory. Asks no password.

    A keystore's address is what the file claims; only its password proves it.
    """
    from .keyring import key_files

    found = key_files(load_config(config, sets).config)
    rows = [
        {
            "address": None if file.address is None else format_address(file.address),
            "kind": file.kind,
            "encrypted": file.encrypted,
            "file": str(file.path),
            "problem": file.problem,
        }
        for file in found
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        print_text("no key files: `openlora init` makes a node's, `openlora keys new FILE` any other")
    else:
        sealed = {True: "yes", False: "no", None: "-"}
        cells = [
            (str(row["address"] or "-"), str(row["kind"]), sealed[file.encrypted], str(row["file"]), file.problem)
            for row, file in zip(rows, found, strict=True)
        ]
        print_table(("address", "kind", "encrypted", "file", "problem"), cells)


def _password(file: Path | None, *, confirm: bool = False, prompt: str = "Password") -> Password:
    from openlora_chain import password
    from openlora_chain.errors import ChainError

    try:
        return password.from_file(file) if file else password.from_prompt(prompt, confirm=confirm)
    except ChainError as error:
        raise translated(error) from None


def _report(done: str, file: Path, wallet: Wallet, as_json: bool) -> None:
    address = format_address(wallet.address)
    if as_json:
        print_json({"address": address, "file": str(file)})
    else:
        print(f"{done}: {address} in {file}")
