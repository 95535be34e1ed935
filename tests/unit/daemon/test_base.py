"""The base model's id: computed once for a folder, again when a file changes, fetched where only the id is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openlora_node.daemon.base import Base, find_base
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import format_artifact_id
from openlora_node.protocol.manifest import AnyManifest, BaseManifest, FileEntry

ID = b"\x44" * 32


@dataclass
class Packed:
    manifest: AnyManifest


@dataclass
class Store:
    """Describes by the folder's config alone, and counts how often."""

    described: int = 0
    here: dict[bytes, Path] = field(default_factory=dict)

    async def describe(self, path: Path, kind: str) -> Packed:
        assert kind == "base"
        self.described += 1
        size = (path / "config.json").stat().st_size
        entry = FileEntry(path="config.json", root="aa" * 32, size=size)
        return Packed(BaseManifest(config={}, files=(entry,), tokenizer="bb" * 32, chat_template="cc" * 32))

    def folder(self, artifact: bytes) -> Path | None:
        return self.here.get(artifact)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


async def test_a_folders_id_is_computed_once_and_again_after_a_change(folder: Path, tmp_path: Path) -> None:
    store, cache = Store(), tmp_path / "base.json"
    first = await find_base(str(folder), store, cache)
    assert first.folder == folder
    assert await find_base(str(folder), store, cache) == first
    assert store.described == 1
    (folder / "config.json").write_text('{"a": 1}')
    second = await find_base(str(folder), store, cache)
    assert second.artifact != first.artifact
    assert store.described == 2
    cache.write_text("{")
    assert await find_base(str(folder), store, cache) == second
    assert store.described == 3


@pytest.mark.parametrize("name", ["none", "empty"])
async def test_what_holds_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenLoraError) as caught:
        await find_base(str(tmp_path / name), Store(), tmp_path / "base.json")
    assert caught.value.code is ErrorCode.CONFIG_INVALID


async def test_an_artifact_is_taken_from_the_store_or_fetched_or_left_to_the_engine(tmp_path: Path) -> None:
    store, fetched = Store(), []

    async def fetch(artifact: bytes) -> Path:
        fetched.append(artifact)
        return tmp_path / "fetched"

    name = format_artifact_id(ID)
    assert await find_base(name, store, tmp_path / "base.json") == Base(ID, None)
    assert await find_base(name, store, tmp_path / "base.json", fetch) == Base(ID, tmp_path / "fetched")
    store.here[ID] = tmp_path / "here"
    assert await find_base(name, store, tmp_path / "base.json", fetch) == Base(ID, tmp_path / "here")
    assert fetched == [ID]
