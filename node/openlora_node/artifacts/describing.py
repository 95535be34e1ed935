"""What a manifest says of an artifact beyond its files: read off the files, and told by whoever publishes it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import ZERO32, format_artifact_id
from ..protocol.manifest import AdapterManifest, AnyManifest, BaseManifest, DatasetManifest, FileEntry
from .contents import ADAPTER_CONFIG, Kind
from .shares import ShareTable

MAX_TEXT_BYTES = 16 << 20
"""Of a JSON file that is read for the manifest, and of one line of a dataset."""
MODEL_CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TEXTS = frozenset({ADAPTER_CONFIG, MODEL_CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE})
"""Files whose text a manifest is made with."""
_ADAPTER_KEYS = ("peft_type", "task_type", "r", "lora_alpha", "use_dora", "use_rslora", "base_model_name_or_path")
_BASE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "dtype")


@dataclass(frozen=True)
class About:
    """What a folder does not say about itself."""

    base: bytes | None = None
    """Adapters: the artifact id of the base that it fits."""
    datasets: tuple[bytes, ...] = ()
    """Adapters: what it was trained on."""
    recipe: Mapping[str, Any] | None = None
    """Adapters: how it was trained, without floats. None: what `recipe.json` in the folder says, if there is one."""
    shares: ShareTable | None = None
    """Datasets: who contributed. None: all income is the owner's."""
    previous: bytes | None = None
    """Datasets: the version that this one extends."""
    licence: str = ""


@dataclass(frozen=True)
class Content:
    """One file as it was read: its chunk tree's root, its SHA-256, its text if it is one of TEXTS, its lines."""

    path: str
    size: int
    root: bytes
    digest: bytes
    text: bytes
    lines: int


def describe(kind: Kind, about: About, files: Sequence[Content]) -> AnyManifest:
    """The manifest of these files, which stand in ascending order. Raises BAD_MANIFEST."""
    entries = tuple(FileEntry(path=file.path, root=file.root.hex(), size=file.size) for file in files)
    by_path = {file.path: file for file in files}
    licence = {"licence": about.licence} if about.licence else {}
    if kind is Kind.ADAPTER:
        if about.base is None:
            raise _refuse("an adapter names the base that it fits")
        return AdapterManifest(
            config=_adapter_config(_settings(by_path, ADAPTER_CONFIG)) | licence,
            files=entries,
            base=format_artifact_id(about.base),
            datasets=tuple(sorted({format_artifact_id(dataset) for dataset in about.datasets})),
            recipe=dict(about.recipe or {}),
        )
    if kind is Kind.DATASET:
        return DatasetManifest(
            config={"samples": sum(file.lines for file in files), **licence},
            files=entries,
            shares_root=(about.shares.root if about.shares else ZERO32).hex(),
            previous=format_artifact_id(about.previous) if about.previous else "",
        )
    if TOKENIZER not in by_path:
        raise _refuse(f"a base model holds {TOKENIZER}")
    return BaseManifest(
        config=_base_config(_settings(by_path, MODEL_CONFIG)) | licence,
        files=entries,
        tokenizer=by_path[TOKENIZER].digest.hex(),
        chat_template=sha256(_chat_template(by_path).encode()).hexdigest(),
    )


def read_object(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises BAD_MANIFEST naming the file."""
    try:
        value = json.loads(text) if len(text) <= MAX_TEXT_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _refuse(f"{name} is not a JSON object")
    return value


def _settings(files: Mapping[str, Content], path: str) -> dict[str, Any]:
    if path not in files:
        raise _refuse(f"{path} is missing")
    return read_object(files[path].text, path)


def _adapter_config(settings: dict[str, Any]) -> dict[str, Any]:
    """What of PEFT's configuration helps to choose an adapter; fractions as text."""
    chosen: dict[str, Any] = {}
    for key in _ADAPTER_KEYS:
        value = settings.get(key)
        if isinstance(value, bool | int | str):
            chosen[key] = value
        elif isinstance(value, float):
            chosen[key] = repr(value)
    targets = settings.get("target_modules")
    if isinstance(targets, str):
        chosen["target_modules"] = targets
    elif isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        chosen["target_modules"] = sorted(targets)
    return chosen


def _base_config(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a model's configuration helps to choose a base."""
    chosen = {key: settings[key] for key in _BASE_KEYS if isinstance(settings.get(key), bool | int | str)}
    architectures = settings.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        chosen["architecture"] = architectures[0]
    return chosen


def _chat_template(files: Mapping[str, Content]) -> str:
    """As the library that wrote the folder reads it: the file of its own first, then the tokenizer's settings."""
    if CHAT_TEMPLATE in files:
        return files[CHAT_TEMPLATE].text.decode("utf-8", "replace")
    found = _settings(files, TOKENIZER_CONFIG).get("chat_template", "") if TOKENIZER_CONFIG in files else ""
    if isinstance(found, list):
        found = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}.get("default", "")
    return found if isinstance(found, str) else ""


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_MANIFEST, message)
