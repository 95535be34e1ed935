"""What an artifact may be made of: which files each kind needs, and none that runs when it is read. Pure.

Weights are safetensors. Everything that a reader could execute (pickles, archives, Python, shared objects) is refused
by name, for what is published here as for what is fetched.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath

from ..protocol.chunks import chunk_count
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.manifest import AnyManifest

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CREDITS = "credits.json"
SHARES = "shares.json"
"""A dataset's share table, beside its data: whoever fetches the dataset can prove a share."""
BLOCK = 4096
SAFE_SUFFIXES = frozenset({".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model"})
PLAIN_NAMES = frozenset({"LICENSE", "LICENCE", "NOTICE", "COPYING", "README"})


class Kind(StrEnum):
    """The kinds of artifact, as manifests name them."""

    BASE = "base"
    ADAPTER = "adapter"
    DATASET = "dataset"
    CREDITS = "credits"

    @property
    def article(self) -> str:
        """As a sentence begins with it."""
        return {
            Kind.BASE: "a base model",
            Kind.ADAPTER: "an adapter",
            Kind.DATASET: "a dataset",
            Kind.CREDITS: "a credits table",
        }[self]


_WANTED = {
    # A base's id must not depend on who packed it: what computes, and nothing that is only read by people.
    Kind.BASE: re.compile(
        r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|tokenizer\.model"
        r"|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.(jinja|json)"
        r"|model\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json"
    ),
    Kind.ADAPTER: re.compile(
        r"adapter_config\.json|adapter_model\.safetensors|README\.md|(LICEN[SC]E|NOTICE)(\.md|\.txt)?"
    ),
    Kind.DATASET: re.compile(r".+\.jsonl|README\.md|(LICEN[SC]E|NOTICE)(\.md|\.txt)?"),
    Kind.CREDITS: re.compile(r"credits\.json"),
}


def is_wanted(kind: Kind, path: str) -> bool:
    """Whether a file of a folder belongs into an artifact of this kind; the rest of the folder stays where it is."""
    name = path if kind is not Kind.DATASET else path.rpartition("/")[2]
    return _WANTED[kind].fullmatch(name) is not None


def kind_of(manifest: AnyManifest) -> Kind:
    """The kind of artifact that a manifest describes."""
    return Kind(str(type(manifest).__struct_config__.tag))


def check_contents(manifest: AnyManifest) -> None:
    """Refuse a manifest that names what could run when read, or lacks what its kind needs. Raises BAD_MANIFEST."""
    names = {entry.path for entry in manifest.files}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() not in SAFE_SUFFIXES and path.name.upper() not in PLAIN_NAMES:
            raise _refuse(f"{name} is of no kind that an artifact may hold; weights are safetensors")
    kind = kind_of(manifest)
    if kind is Kind.ADAPTER and not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= names:
        raise _refuse(f"an adapter holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    if kind is Kind.BASE and not {"config.json", "tokenizer.json"} <= names:
        raise _refuse("a base model holds config.json and tokenizer.json")
    if kind is Kind.BASE and not any(name.endswith(".safetensors") for name in names):
        raise _refuse("a base model holds its weights as safetensors")
    if kind is Kind.DATASET and not any(name.endswith(".jsonl") for name in names):
        raise _refuse("a dataset holds its samples as .jsonl")
    if kind is Kind.CREDITS and names != {CREDITS}:
        raise _refuse(f"a credits table is {CREDITS}, alone")


def content_size(manifest: AnyManifest) -> int:
    """Bytes of all files: what is sent."""
    return sum(entry.size for entry in manifest.files)


def footprint(manifest: AnyManifest) -> int:
    """Bytes that an artifact takes on disk, in whole blocks, with its chunk hashes and manifest."""
    files = sum(-(-entry.size // BLOCK) * BLOCK + 32 * chunk_count(entry.size) for entry in manifest.files)
    return files + 4 * BLOCK


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, message)
