"""The store: what goes in comes out, what must not goes nowhere, and nothing in use disappears."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest

from openlora_node.artifacts import About, ArtifactStore, Collected, Kind, ShareTable, footprint
from openlora_node.artifacts import space as space_module
from openlora_node.artifacts import store as store_module
from openlora_node.artifacts.contents import check_contents
from openlora_node.artifacts.eviction import Candidate
from openlora_node.protocol.chunks import CHUNK_SIZE, verify_chunk
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.manifest import AdapterManifest, BaseManifest, DatasetManifest, FileEntry
from openlora_node.protocol.merkle import amount_leaf, verify_proof
from support.artifacts_folders import ABOUT, BASE_ID, adapter_folder, base_folder, chunks, dataset_folder

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    with ArtifactStore.open(tmp_path / "store", 64 * MIB, keep_free=0) as opened:
        yield opened


def refused(error: pytest.ExceptionInfo[OpenLoraError], code: ErrorCode) -> str:
    assert error.value.code is code
    return error.value.message


async def test_an_adapter_goes_in_and_comes_out_whole_and_read_only(store: ArtifactStore, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "in", chunks(2.5))
    artifact, packed = await store.publish(source, Kind.ADAPTER, ABOUT)
    folder = store.folder(artifact)
    assert folder is not None
    assert folder == tmp_path / "store" / "sha256" / artifact.hex()[:2] / artifact.hex()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o444
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    assert packed.left_out == ("optimizer.pt",)
    manifest = store.manifest(artifact)
    assert isinstance(manifest, AdapterManifest)
    assert manifest.id == artifact
    assert manifest.config["r"] == 8
    assert manifest.config["lora_alpha"] == "16.5"
    assert manifest.config["target_modules"] == ["q_proj", "v_proj"]
    assert store.ids() == store.ids(Kind.ADAPTER) == {artifact}
    assert store.ids(Kind.BASE) == frozenset()
    assert await store.verify(artifact) == ()


async def test_the_same_folder_has_the_same_id_and_is_kept_once(store: ArtifactStore, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "in")
    first = await store.add_folder(source, Kind.ADAPTER, ABOUT)
    used = store.usage()
    assert await store.add_folder(source, Kind.ADAPTER, ABOUT) == first
    assert store.usage() == used
    described = await store.describe(source, Kind.ADAPTER, ABOUT)
    assert described.manifest.id == first


async def test_a_base_names_its_tokenizer_and_template(store: ArtifactStore, tmp_path: Path) -> None:
    source = base_folder(tmp_path / "in")
    (source / "README.md").write_text("people read this")
    artifact = await store.add_folder(source, Kind.BASE)
    manifest = store.manifest(artifact)
    assert isinstance(manifest, BaseManifest)
    assert manifest.tokenizer == sha256((source / "tokenizer.json").read_bytes()).hexdigest()
    assert manifest.chat_template == sha256(b"{{ messages }}").hexdigest()
    assert manifest.config == {"architecture": "LlamaForCausalLM", "hidden_size": 64, "model_type": "llama"}
    (source / "README.md").unlink()
    assert await store.add_folder(source, Kind.BASE) == artifact, "what people read does not change what computes"
    (source / "chat_template.jinja").write_text("other")
    other = store.manifest(await store.add_folder(source, Kind.BASE))
    assert isinstance(other, BaseManifest)
    assert other.chat_template == sha256(b"other").hexdigest()


async def test_a_dataset_carries_its_share_table_and_every_share_proves(store: ArtifactStore, tmp_path: Path) -> None:
    alice, bob = Address(b"\x01" * 20), Address(b"\x02" * 20)
    shares = ShareTable.of([(bob, 4000), (alice, 6000)])
    artifact = await store.add_folder(
        dataset_folder(tmp_path / "in", files=2), Kind.DATASET, About(shares=shares, licence="CC0-1.0")
    )
    manifest, folder = store.manifest(artifact), store.folder(artifact)
    assert isinstance(manifest, DatasetManifest)
    assert folder is not None
    assert manifest.config == {"samples": 6, "licence": "CC0-1.0"}
    table = ShareTable.decode((folder / "shares.json").read_bytes())
    assert table == shares
    assert table.root.hex() == manifest.shares_root
    for account, bps in ((alice, 6000), (bob, 4000)):
        assert verify_proof(table.root, amount_leaf(account, bps), table.proof(account))
    extended = await store.add_folder(dataset_folder(tmp_path / "more"), Kind.DATASET, About(previous=artifact))
    later = store.manifest(extended)
    assert isinstance(later, DatasetManifest)
    assert later.previous.endswith(artifact.hex())


async def test_one_file_is_a_dataset(store: ArtifactStore, tmp_path: Path) -> None:
    path = dataset_folder(tmp_path / "in") / "part0000.jsonl"
    manifest = store.manifest(await store.add_folder(path, "dataset"))
    assert manifest is not None
    assert [entry.path for entry in manifest.files] == ["part0000.jsonl"]


async def test_the_recipe_in_the_folder_is_the_manifests(store: ArtifactStore, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "in")
    (source / "recipe.json").write_text(json.dumps({"steps": 10, "rate": "0.001"}))
    manifest = store.manifest(await store.add_folder(source, Kind.ADAPTER, ABOUT))
    assert isinstance(manifest, AdapterManifest)
    assert manifest.recipe == {"steps": 10, "rate": "0.001"}
    assert "recipe.json" not in {entry.path for entry in manifest.files}
    told = About(base=BASE_ID, recipe={"steps": 11})
    other = store.manifest(await store.add_folder(source, Kind.ADAPTER, told))
    assert isinstance(other, AdapterManifest)
    assert other.recipe == {"steps": 11}


def _link(path: Path) -> None:
    secret = path.parent.parent / "secret"
    secret.write_text("not yours")
    path.unlink(missing_ok=True)
    path.symlink_to(secret)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"#!")


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


BAD_ADAPTERS = {
    "a link for weights": lambda folder: _link(folder / "adapter_model.safetensors"),
    "a link for the configuration": lambda folder: _link(folder / "adapter_config.json"),
    "a link for the recipe": lambda folder: _link(folder / "recipe.json"),
    "a pipe for weights": lambda folder: _fifo(folder / "adapter_model.safetensors"),
    "a folder for weights": lambda folder: _folder(folder / "adapter_model.safetensors"),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "a pickle": lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
    "a pickle by another name": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04K\x01."),
    "weights cut short": lambda folder: os.truncate(folder / "adapter_model.safetensors", 900),
    "bytes after the weights": lambda folder: _append(folder / "adapter_model.safetensors"),
    "an empty file for weights": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""),
    "no configuration": lambda folder: (folder / "adapter_config.json").unlink(),
    "a list for a configuration": lambda folder: (folder / "adapter_config.json").write_text("[]"),
    "a deep configuration": lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000),
    "floats in the recipe": lambda folder: (folder / "recipe.json").write_text('{"rate": 0.1}'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ADAPTERS)
async def test_a_bad_folder_is_refused_and_leaves_nothing(store: ArtifactStore, tmp_path: Path, case: str) -> None:
    source = adapter_folder(tmp_path / "in")
    BAD_ADAPTERS[case](source)
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(source, Kind.ADAPTER, ABOUT)
    message = refused(error, ErrorCode.BAD_MANIFEST)
    assert str(tmp_path) not in message
    assert store.ids() == frozenset()
    assert list((tmp_path / "store" / ".incoming").iterdir()) == []
    assert store.usage().partial == 0


async def test_a_dataset_refuses_links_in_subfolders_and_lines_that_are_no_objects(
    store: ArtifactStore, tmp_path: Path
) -> None:
    source = dataset_folder(tmp_path / "in")
    outside = dataset_folder(tmp_path / "outside")
    (source / "sub").symlink_to(outside)  # not followed, so not wanted
    manifest = store.manifest(await store.add_folder(source, Kind.DATASET))
    assert manifest is not None
    assert len(manifest.files) == 1
    (source / "sub").unlink()
    (source / "sub").mkdir()
    (source / "sub" / "more.jsonl").symlink_to(outside / "part0000.jsonl")
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(source, Kind.DATASET)
    assert "sub/more.jsonl" in refused(error, ErrorCode.BAD_MANIFEST)
    (source / "sub" / "more.jsonl").unlink()
    (source / "sub" / "more.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(source, Kind.DATASET)
    assert "line 2" in refused(error, ErrorCode.BAD_MANIFEST)
    (source / "sub" / "more.jsonl").rename(source / "sub" / "a name with spaces.jsonl")
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(source, Kind.DATASET)
    refused(error, ErrorCode.BAD_MANIFEST)


@pytest.mark.parametrize("name", ["x.bin", "run.py", "weights.PT", "lib.so", "a/b.pkl", "noextension", "x.tar"])
def test_a_manifest_that_names_what_could_run_is_refused(name: str) -> None:
    entries = sorted([name, "adapter_config.json", "adapter_model.safetensors"])
    files = tuple(FileEntry(path=path, root="0" * 64, size=1) for path in entries)
    manifest = AdapterManifest(config={}, files=files, base="sha256:" + "0" * 64)
    with pytest.raises(OpenLoraError) as error:
        check_contents(manifest)
    assert name in refused(error, ErrorCode.BAD_MANIFEST)


async def test_a_missing_folder_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(tmp_path / "nowhere", Kind.ADAPTER, ABOUT)
    refused(error, ErrorCode.NOT_FOUND)


async def test_chunks_come_out_with_proofs_that_lead_to_the_root(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = await store.add_folder(adapter_folder(tmp_path / "in", chunks(9.3)), Kind.ADAPTER, ABOUT)
    manifest = store.manifest(artifact)
    assert manifest is not None
    entry = manifest.files[1]
    content = (tmp_path / "in" / entry.path).read_bytes()
    for first, count in ((0, 10), (3, 1), (2, 7), (9, 1)):
        pieces = [piece async for piece in store.reader(artifact, 1, first, count)]
        assert [piece.index for piece in pieces] == list(range(first, first + count))
        for piece in pieces:
            assert piece.data == content[piece.index * CHUNK_SIZE :][:CHUNK_SIZE]
            verify_chunk(bytes.fromhex(entry.root), entry.size, piece.index, piece.data, piece.proof)
    for file, first, count in ((2, 0, 1), (-1, 0, 1), (1, 10, 1), (1, 5, 6), (1, 0, 0), (1, -1, 1)):
        with pytest.raises(OpenLoraError) as error:
            _ = [piece async for piece in store.reader(artifact, file, first, count)]
        refused(error, ErrorCode.MALFORMED)
    with pytest.raises(OpenLoraError) as error:
        _ = [piece async for piece in store.reader(b"\x01" * 32, 0, 0, 1)]
    refused(error, ErrorCode.NOT_FOUND)


async def test_a_reader_left_early_holds_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = await store.add_folder(adapter_folder(tmp_path / "in", chunks(40)), Kind.ADAPTER, ABOUT)
    reader = store.reader(artifact, 1, 0, 40)
    async for _ in reader:
        break
    with pytest.raises(OpenLoraError) as error:
        store.remove(artifact)
    refused(error, ErrorCode.BUSY)
    await reader.aclose()
    store.remove(artifact)
    assert store.folder(artifact) is None


async def test_a_rotten_chunk_is_not_sent_but_found_and_withdrawn(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = await store.add_folder(adapter_folder(tmp_path / "in", chunks(3)), Kind.ADAPTER, ABOUT)
    folder = store.folder(artifact)
    assert folder is not None
    weights = folder / "adapter_model.safetensors"
    weights.chmod(0o600)
    with weights.open("r+b") as file:
        file.seek(CHUNK_SIZE + 7)
        file.write(b"rot")
    assert [piece.index async for piece in store.reader(artifact, 1, 2, 1)] == [2]
    with pytest.raises(OpenLoraError) as error:
        _ = [piece async for piece in store.reader(artifact, 1, 1, 1)]
    refused(error, ErrorCode.STORAGE_FAILED)
    manifest = store.manifest(artifact)
    assert manifest is not None
    assert await store.verify(artifact) == ("adapter_model.safetensors",)
    assert store.folder(artifact) is None
    partial = await store.begin(manifest.encode())
    assert partial.missing() == [(1, 1, 1)]
    store.leave(partial)


async def test_the_least_recently_used_goes_first_but_nothing_held_or_pinned(tmp_path: Path) -> None:
    now = 1_000_000.0
    with ArtifactStore.open(tmp_path / "store", MIB, keep_free=0, clock=lambda: now) as store:
        sources = [adapter_folder(tmp_path / str(n), 200_000, seed=n) for n in range(8)]
        ids = []
        for source in sources[:4]:
            now += 100
            ids.append(await store.add_folder(source, Kind.ADAPTER, ABOUT))
        now += 100
        store.folder(ids[0])
        store.pin(ids[1])
        with store.hold(ids[2]):
            now += 100
            ids.append(await store.add_folder(sources[4], Kind.ADAPTER, ABOUT))
            assert store.ids() == {ids[0], ids[1], ids[2], ids[4]}, "3 was the oldest that nobody held on to"
            with store.hold(ids[0]), store.hold(ids[4]):
                with pytest.raises(OpenLoraError) as error:
                    await store.add_folder(sources[5], Kind.ADAPTER, ABOUT)
                refused(error, ErrorCode.STORAGE_FULL)
                assert len(store.ids()) == 4
        now += 100
        ids.append(await store.add_folder(sources[5], Kind.ADAPTER, ABOUT))
        assert store.ids() == {ids[0], ids[1], ids[4], ids[5]}
        assert store.usage().complete <= MIB
    with ArtifactStore.open(tmp_path / "store", MIB, keep_free=0, clock=lambda: now) as store:
        store.unpin(ids[1])
        await store.add_folder(sources[6], Kind.ADAPTER, ABOUT)
        assert ids[1] not in store.ids(), "the times of last use survive a restart"
        assert store.pinned() == frozenset()


async def test_an_artifact_that_is_taken_while_it_was_to_go_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    with ArtifactStore.open(tmp_path / "store", MIB, keep_free=0, clock=lambda: now) as store, ExitStack() as holds:
        ids = []
        for number in range(4):
            now += 100
            ids.append(
                await store.add_folder(adapter_folder(tmp_path / str(number), 200_000, seed=number), "adapter", ABOUT)
            )
        choose = space_module.victims

        def choose_and_be_late(candidates: Iterable[Candidate], excess: int) -> tuple[Candidate, ...] | None:
            chosen = choose(candidates, excess)
            if chosen is not None and chosen[0].artifact == ids[0]:
                holds.enter_context(store.hold(ids[0]))
            return chosen

        monkeypatch.setattr(space_module, "victims", choose_and_be_late)
        ids.append(await store.add_folder(adapter_folder(tmp_path / "4", 200_000, seed=4), "adapter", ABOUT))
        assert store.ids() == {ids[0], ids[2], ids[3], ids[4]}
        assert await store.verify(ids[0]) == ()


async def test_a_manifest_alone_evicts_nothing_and_what_is_proven_evicts_as_it_comes(tmp_path: Path) -> None:
    now = 1_000_000.0
    with (
        ArtifactStore.open(tmp_path / "origin", 64 * MIB, keep_free=0) as origin,
        ArtifactStore.open(tmp_path / "store", 4 * MIB, keep_free=0, clock=lambda: now) as store,
    ):
        ids = []
        for number in range(4):
            now += 100
            ids.append(
                await store.add_folder(
                    adapter_folder(tmp_path / str(number), chunks(3.5), seed=number), "adapter", ABOUT
                )
            )
        large = await origin.add_folder(adapter_folder(tmp_path / "large", chunks(12), seed=9), "adapter", ABOUT)
        manifest = origin.manifest(large)
        assert manifest is not None
        used = store.usage()
        partial = await store.begin(manifest.encode())
        assert store.usage() == used, "a promise takes nothing"
        with pytest.raises(OpenLoraError) as error:
            await store.begin(_manifest_of_size(chunks(12)).encode())
        refused(error, ErrorCode.STORAGE_FULL)
        for index in range(12):
            with pytest.raises(OpenLoraError) as error:
                await store.keep(partial, 1, index, b"x" * CHUNK_SIZE, (bytes(32),) * 4)
            refused(error, ErrorCode.BAD_CHUNK)
        assert store.usage() == used, "nor do chunks that prove nothing"
        here = []
        for file, first, count in partial.missing():
            async for piece in origin.reader(large, file, first, count):
                await store.keep(partial, file, piece.index, piece.data, piece.proof)
                here.append(len(store.ids()))
                assert store.usage().complete + store.usage().partial <= 4 * MIB
        assert here[0] == 4
        assert sorted(set(here), reverse=True) == [4, 3, 2, 1], "one after the other"
        assert here == sorted(here, reverse=True)
        await store.finish(partial)
        assert store.ids() == {ids[3], large}


async def test_a_download_whose_room_was_pinned_meanwhile_stops_and_keeps_what_came(tmp_path: Path) -> None:
    with (
        ArtifactStore.open(tmp_path / "origin", 64 * MIB, keep_free=0) as origin,
        ArtifactStore.open(tmp_path / "store", 2 * MIB, keep_free=0) as store,
    ):
        pinned = await store.add_folder(adapter_folder(tmp_path / "0", chunks(4)), "adapter", ABOUT)
        large = await origin.add_folder(adapter_folder(tmp_path / "large", chunks(6), seed=9), "adapter", ABOUT)
        manifest = origin.manifest(large)
        assert manifest is not None
        partial = await store.begin(manifest.encode())
        store.pin(pinned)
        pieces = [(file, p) for file, *rest in partial.missing() async for p in origin.reader(large, file, *rest)]
        with pytest.raises(OpenLoraError) as error:
            for file, piece in pieces:
                await store.keep(partial, file, piece.index, piece.data, piece.proof)
        refused(error, ErrorCode.STORAGE_FULL)
        assert partial.done > 2 * CHUNK_SIZE
        store.unpin(pinned)
        for file, piece in pieces:
            await store.keep(partial, file, piece.index, piece.data, piece.proof)
        await store.finish(partial)
        assert store.ids() == {large}
        assert await store.verify(large) == ()


def _manifest_of_size(size: int) -> AdapterManifest:
    files = (
        FileEntry(path="adapter_config.json", root="00" * 32, size=2),
        FileEntry(path="adapter_model.safetensors", root="00" * 32, size=size),
    )
    return AdapterManifest(config={}, files=files, base="sha256:" + BASE_ID.hex())


async def test_what_does_not_fit_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    with ArtifactStore.open(tmp_path / "store", MIB, keep_free=0) as store:
        kept = await store.add_folder(adapter_folder(tmp_path / "small"), Kind.ADAPTER, ABOUT)
        with pytest.raises(OpenLoraError) as error:
            await store.add_folder(adapter_folder(tmp_path / "large", 2 * MIB), Kind.ADAPTER, ABOUT)
        refused(error, ErrorCode.STORAGE_FULL)
        assert store.ids() == {kept}, "nothing was evicted for something that cannot fit"
    with ArtifactStore.open(tmp_path / "store", 1 << 50, keep_free=1 << 60) as store:
        store.pin(kept)
        with pytest.raises(OpenLoraError) as error:
            await store.add_folder(adapter_folder(tmp_path / "other", seed=3), Kind.ADAPTER, ABOUT)
        refused(error, ErrorCode.STORAGE_FULL)


async def test_a_second_writer_is_refused_and_a_guest_adds(store: ArtifactStore, tmp_path: Path) -> None:
    root = tmp_path / "store"
    with pytest.raises(OpenLoraError) as error:
        ArtifactStore.open(root, 64 * MIB)
    assert str(os.getpid()) in refused(error, ErrorCode.DATADIR_LOCKED)
    with ArtifactStore.open(root, 64 * MIB, beside=True, keep_free=0) as guest:
        artifact = await guest.add_folder(adapter_folder(tmp_path / "in"), Kind.ADAPTER, ABOUT, pin=True)
        assert store.folder(artifact) is not None
        assert store.ids() == {artifact}
        assert store.pinned() == {artifact}
        with pytest.raises(OpenLoraError) as error:
            guest.remove(artifact)
        refused(error, ErrorCode.DATADIR_LOCKED)
        with pytest.raises(OpenLoraError) as error:
            await guest.gc()
        refused(error, ErrorCode.DATADIR_LOCKED)
        with pytest.raises(OpenLoraError) as error:
            store.remove(artifact)
        assert "unpin" in refused(error, ErrorCode.BUSY)
        store.unpin(artifact)
        store.remove(artifact)
        assert guest.ids() == frozenset()
        assert guest.folder(artifact) is None
    with pytest.raises(OpenLoraError) as error:
        store.remove(artifact)
    refused(error, ErrorCode.NOT_FOUND)


async def test_one_download_has_one_owner_in_any_process(store: ArtifactStore, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "in", chunks(2))
    manifest = (await store.describe(source, Kind.ADAPTER, ABOUT)).manifest
    partial = await store.begin(manifest.encode())
    with ArtifactStore.open(tmp_path / "store", 64 * MIB, beside=True, keep_free=0) as guest:
        for other in (store, guest):
            with pytest.raises(OpenLoraError) as error:
                await other.begin(manifest.encode())
            refused(error, ErrorCode.BUSY)
        assert await store.gc() == Collected(0, 0, 0, 0), "a download under way is not given up"
        store.leave(partial)
        taken = await guest.begin(manifest.encode())
        assert await guest.add_folder(source, Kind.ADAPTER, ABOUT) == manifest.id, "publishing needs no download"
        with pytest.raises(OpenLoraError) as error:
            await guest.finish(taken)
        refused(error, ErrorCode.BAD_CHUNK)
        await guest.discard(taken)
        assert store.ids() == {manifest.id}


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = ArtifactStore.open(tmp_path / "store", MIB, keep_free=0)
    store.close()
    store.close()
    with pytest.raises(OpenLoraError) as error:
        await store.add_folder(tmp_path, Kind.ADAPTER, ABOUT)
    refused(error, ErrorCode.STORAGE_FAILED)


async def test_gc_removes_what_crashes_left(tmp_path: Path) -> None:
    root, now = tmp_path / "store", 0.0
    with ArtifactStore.open(root, 64 * MIB, keep_free=0) as store:
        artifact = await store.add_folder(adapter_folder(tmp_path / "in"), Kind.ADAPTER, ABOUT)
        manifest = store.manifest(artifact)
        assert manifest is not None
        now = (root / "sha256").stat().st_mtime
    (root / ".trash" / "1-2-3").mkdir()
    (root / ".incoming" / "1-2-3").mkdir()
    (root / ".incoming" / "1-2-3" / "half").write_bytes(bytes(10_000))
    broken = root / "sha256" / "ab" / ("ab" * 32)
    broken.mkdir(parents=True)
    (broken / ".manifest").write_bytes(b"{}")
    victim = tmp_path / "victim"
    victim.mkdir()
    (root / "sha256" / "cd").mkdir()
    (root / "sha256" / "cd" / ("cd" * 32)).symlink_to(victim)
    (root / ".partial" / ("ef" * 32)).mkdir()
    with ArtifactStore.open(root, 64 * MIB, keep_free=0, clock=lambda: now + 60) as store:
        assert store.ids() == {artifact}
        assert not list((root / ".trash").iterdir())
        collected = await store.gc()
        assert collected.broken == 2
        assert list((root / ".incoming").iterdir()), "an import may still be under way"
        assert victim.is_dir()
    with ArtifactStore.open(root, 64 * MIB, keep_free=0, clock=lambda: now + 8 * 86_400) as store:
        collected = await store.gc()
        assert collected.partials == 1
        assert collected.freed >= 10_000
        assert not list((root / ".incoming").iterdir())
        assert store.ids() == {artifact}


async def test_tending_collects_at_once_and_then_again(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "TEND_S", 0.01)
    remains = tmp_path / "store" / ".trash" / "1-2-3"
    tending = asyncio.create_task(store.tend())
    for _ in range(2):
        remains.mkdir()
        while remains.exists():
            await asyncio.sleep(0.01)
    tending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tending


async def test_an_import_that_is_cancelled_stops_early_and_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls = 0

    def progress(done: int, size: int) -> None:
        nonlocal calls
        calls += 1
        begun.set()
        go_on.wait(10)

    source = adapter_folder(tmp_path / "in", chunks(20))
    task = asyncio.create_task(store.add_folder(source, Kind.ADAPTER, ABOUT, progress=progress))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls <= 2
    assert store.ids() == frozenset()
    assert list((tmp_path / "store" / ".incoming").iterdir()) == []
    assert store.usage().partial == 0


async def test_the_footprint_is_what_the_disk_holds(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = await store.add_folder(dataset_folder(tmp_path / "in", files=50), Kind.DATASET)
    manifest, folder = store.manifest(artifact), store.folder(artifact)
    assert manifest is not None
    assert folder is not None
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert footprint(manifest) >= on_disk
