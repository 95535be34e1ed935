"""What a response is traced again with: kept text, the indexes of its datasets, its base's tokenizer; found here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id, format_bytes

if TYPE_CHECKING:
    from ..attribution import Evidence
    from ..config import Config
    from ..protocol.structs import Receipt


@dataclass(frozen=True)
class Sources:
    """Files and folders."""

    text: Path
    indexes: list[Path]
    tokenizer: Path


def sources_of(
    receipt: Receipt,
    evidence: Evidence,
    config: Config,
    text: Path | None,
    indexes: Sequence[Path] | None,
    tokenizer: Path | None,
) -> Sources:
    """What was named, and for the rest where this machine keeps it. Raises NOT_FOUND saying which option to give."""
    facts = {leaf.name: leaf.value for leaf in evidence.attribution}
    return Sources(
        text or _text(receipt, config),
        list(indexes or _indexes(config)),
        tokenizer or _tokenizer(facts.get("base", b""), config),
    )


def _text(receipt: Receipt, config: Config) -> Path:
    from ..chainview import read_deployment
    from ..gateway.texts import FOLDER
    from ..protocol.crypto import Address
    from ..protocol.eip712 import Domain

    deployment = read_deployment(config.deployment_file)
    domain = Domain(chain_id=deployment.chain_id, verifying_contract=Address(deployment.settlement))
    file = config.gateway_dir / FOLDER / f"{receipt.digest(domain).hex()}.json"
    if not file.is_file():
        raise OpenLoraError(
            ErrorCode.NOT_FOUND,
            f"no text of {format_bytes(receipt.digest(domain))[:14]}… is kept here: name it with --text, or set"
            " gateway.keep_text before asking",
        )
    return file


def _indexes(config: Config) -> list[Path]:
    from ..attribution.tracer import FOLDER

    folder = config.state_dir / FOLDER
    found = sorted(path.parent for path in folder.glob("*/index.json"))
    if not found:
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, "no index is here: make one with `openlora attribution index`, or name it with --index"
        )
    return found


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
