"""What a response is traced again with: kept text, the indexes of its datasets, its base's tokenizer; found here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id, format_bytes

if TYPE_CHECKING:
    from ..config import Config
    from ..protocol.eip712 import Domain
    from .books import Told

TextFile = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="The response's text. Default: as the gateway here kept it."),
]
IndexFolders = Annotated[
    list[Path] | None,
    typer.Option("--index", metavar="DIR", help="A dataset's index; repeatable. Default: those made here."),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", metavar="FOLDER", help="With the base's tokenizer.json. Default: as the gateway has it."
    ),
]
MAX_DESCRIPTION = 1 << 20


@dataclass(frozen=True)
class Sources:
    """Files and folders."""

    text: Path
    indexes: list[Path]
    tokenizer: Path


def sources_of(
    about: Told, config: Config, text: Path | None, indexes: Sequence[Path] | None, tokenizer: Path | None
) -> Sources | None:
    """What was named, and for the rest where this machine keeps it; None where the receipt traced no dataset.

    Raises NOT_FOUND saying which option to give.
    """
    facts = {leaf.name: leaf.value for leaf in about.evidence.attribution}
    wanted = {value: facts.get(name.removesuffix("/index"), b"") for name, value in facts.items() if _is_index(name)}
    if not wanted:
        return None
    return Sources(
        text or _text(about, config),
        list(indexes or _indexes(wanted, config)),
        tokenizer or _tokenizer(facts.get("base", b""), config),
    )


def _is_index(name: str) -> bool:
    return name.endswith("/index")


def _text(about: Told, config: Config) -> Path:
    from ..gateway.texts import FOLDER

    digest = about.digest or about.receipt.digest(_domain(config))
    file = config.gateway_dir / FOLDER / f"{digest.hex()}.json"
    if not file.is_file():
        raise OpenLoraError(
            ErrorCode.NOT_FOUND,
            f"no text of {format_bytes(digest)[:14]}… is kept here: name it with --text, or set gateway.keep_text"
            " before asking",
        )
    return file


def _domain(config: Config) -> Domain:
    from ..chainview import read_deployment
    from ..protocol.crypto import Address
    from ..protocol.eip712 import Domain

    deployment = read_deployment(config.deployment_file)
    return Domain(chain_id=deployment.chain_id, verifying_contract=Address(deployment.settlement))


def _indexes(wanted: dict[bytes, bytes], config: Config) -> Iterator[Path]:
    """Folders of the indexes with these digests. `wanted` gives each one's dataset."""
    here = dict(_made_here(config))
    for digest, dataset in wanted.items():
        if digest not in here:
            raise OpenLoraError(
                ErrorCode.NOT_FOUND,
                f"index {digest.hex()[:16]}… of {format_artifact_id(dataset)} is not here: make it from the dataset"
                " with `openlora attribution index`, or name its folder with --index",
            )
        yield here[digest]


def _made_here(config: Config) -> Iterator[tuple[bytes, Path]]:
    """(digest, folder) of what `attribution index` made; each is checked when it is opened."""
    import hashlib

    from ..attribution.corpusindex import DESCRIPTION
    from ..attribution.tracer import FOLDER

    for path in sorted((config.state_dir / FOLDER).glob(f"[!.]*/{DESCRIPTION}")):
        with path.open("rb") as opened:
            yield hashlib.sha256(opened.read(MAX_DESCRIPTION)).digest(), path.parent


def _tokenizer(base: bytes, config: Config) -> Path:
    from ..artifacts.layout import Layout
    from ..gateway.names import NAMES_FILE, load_names

    chosen = config.gateway.names_file
    named = load_names(chosen or config.gateway_dir / NAMES_FILE, must_exist=chosen is not None).base_of(base)
    places = [
        named.folder if named else None,
        config.gateway_dir / "tokenizers" / base.hex(),
        Layout(config.adapters_dir).artifact(base) if len(base) == 32 else None,
    ]
    for place in places:
        if place is not None and (place / "tokenizer.json").is_file():
            return place
    what = format_artifact_id(base) if len(base) == 32 else "this base"
    raise OpenLoraError(ErrorCode.NOT_FOUND, f"the tokenizer of {what} is not here: name its folder with --tokenizer")
