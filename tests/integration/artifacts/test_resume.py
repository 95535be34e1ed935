"""What a fetch has kept survives the process, however it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from openlora_node.artifacts.layout import CHUNKS
from openlora_node.protocol.chunks import CHUNK_SIZE
from support.artifacts_folders import ABOUT, adapter_folder, chunks
from support.artifacts_peers import Node, Twisted, node, nodes, open_store

pytestmark = pytest.mark.timeout(90)
TESTS = Path(__file__).parents[2]


async def worker(root: Path, artifact: bytes, source: Node) -> asyncio.subprocess.Process:
    (address,) = await source.network.addresses()
    command = ["-W", "ignore", "-m", "support.artifacts_worker", str(root), artifact.hex(), source.id, address]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


async def until(process: asyncio.subprocess.Process, kept: int) -> int:
    assert process.stdout is not None
    done = 0
    while done < kept:
        line = (await process.stdout.readline()).split()
        assert line, "the worker ended too soon"
        done = int(line[0])
    return done


@pytest.mark.slow
async def test_a_fetcher_killed_twice_goes_on_where_it_was(tmp_path: Path) -> None:
    with open_store(tmp_path / "source") as store:
        allowed = 20
        halting = Twisted(store, lambda piece: piece if len(halting.sent) < allowed else None)
        async with node(store, sends=halting) as source:
            folder = adapter_folder(tmp_path / "in", chunks(64))
            artifact = await store.add_folder(folder, "adapter", ABOUT)
            manifest = store.manifest(artifact)
            assert manifest is not None
            total, root = sum(entry.size for entry in manifest.files), tmp_path / "killed"
            kept = 0
            for _ in range(2):
                process = await worker(root, artifact, source)
                kept = await until(process, kept + chunks(10))
                process.kill()
                await process.wait()
                allowed += 20
            before, allowed = source.sender.sent_bytes, 1 << 30
            process = await worker(root, artifact, source)
            assert process.stdout is not None
            first = (await process.stdout.readline()).split()
            assert int(first[0]) >= kept, "what was reported kept is kept"
            out = await process.stdout.read()
            assert out.endswith(b"done\n")
            await process.wait()
            assert source.sender.sent_bytes - before == total - int(first[0]), "nothing that was kept is sent again"
    with open_store(root) as store:
        assert await store.verify(artifact) == ()
        target = store.folder(artifact)
        assert target is not None
        name = "adapter_model.safetensors"
        assert (target / name).read_bytes() == (folder / name).read_bytes()
        assert not list((root / ".partial").iterdir())


async def _interrupted(a: Node, b: Node, tmp_path: Path, size: int) -> tuple[bytes, Path]:
    """A download at rest, more than half-way."""
    artifact = await b.store.add_folder(adapter_folder(tmp_path / "in", size), "adapter", ABOUT)
    half = asyncio.Event()
    task = asyncio.create_task(
        a.fetch(artifact, b, progress=lambda done, total: half.set() if done > total // 2 else None)
    )
    await half.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return artifact, tmp_path / "node0" / ".partial" / artifact.hex()


async def test_chunks_that_rotted_in_between_are_fetched_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact, partial = await _interrupted(a, b, tmp_path, chunks(60))
        with (partial / "adapter_model.safetensors").open("r+b") as file:
            file.seek(2 * CHUNK_SIZE + 5)
            file.write(b"rot")
        (partial / "adapter_config.json").unlink()
        assert (await a.fetch(artifact, b)).is_dir()
        assert await a.store.verify(artifact) == ()


@pytest.mark.parametrize("damage", ["garbage", "short", "gone", "false hashes"])
async def test_a_damaged_record_of_what_was_kept_costs_time_and_nothing_else(tmp_path: Path, damage: str) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact, partial = await _interrupted(a, b, tmp_path, chunks(12))
        record = partial / CHUNKS
        size = record.stat().st_size
        if damage == "garbage":
            record.write_bytes(os.urandom(size))
        elif damage == "short":
            os.truncate(record, 33)
        elif damage == "gone":
            record.unlink()
        else:
            # A chunk that is wrong and recorded as if it were right: only the file's root can tell.
            from openlora_node.protocol.chunks import chunk_hash

            wrong = os.urandom(CHUNK_SIZE)
            with (partial / "adapter_model.safetensors").open("r+b") as file:
                file.seek(0)
                file.write(wrong)
            data = bytearray(record.read_bytes())
            data[32:64] = chunk_hash(wrong)
            record.write_bytes(data)
        assert (await a.fetch(artifact, b)).is_dir()
        assert await a.store.verify(artifact) == ()


async def test_a_link_planted_where_a_file_will_be_is_not_written_through(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact, partial = await _interrupted(a, b, tmp_path, chunks(20))
        victim = tmp_path / "victim"
        victim.write_text("precious")
        weights = partial / "adapter_model.safetensors"
        weights.unlink()
        weights.symlink_to(victim)
        with pytest.raises(Exception, match="STORAGE_FAILED"):
            await a.fetch(artifact, b)
        assert victim.read_text() == "precious"
