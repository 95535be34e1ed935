"""Artifacts over real networks: several sources, liars, losses, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter

from openlora_node.artifacts import ArtifactStore, Piece
from openlora_node.network import session as session_module
from openlora_node.network.buckets import Allowance
from openlora_node.network.identity import Peer
from openlora_node.network.transfer import Fetcher
from openlora_node.network.transfer_sources import of_peers
from openlora_node.protocol.chunks import CHUNK_SIZE, ChunkTree, chunk_hash
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.manifest import AdapterManifest, FileEntry
from openlora_node.protocol.messages import ARTIFACT, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply
from support.artifacts_folders import ABOUT, BASE_ID, adapter_folder, chunks, dataset_folder
from support.artifacts_peers import FAST, HASTY, Node, Twisted, node, nodes, open_store

pytestmark = pytest.mark.timeout(60)


async def publish(folder: Path, *where: Node) -> bytes:
    kind = "adapter" if (folder / "adapter_config.json").exists() else "dataset"
    ids = {await each.store.add_folder(folder, kind, ABOUT if kind == "adapter" else None) for each in where}
    (artifact,) = ids
    return artifact


def same(folder: Path, source: Path, names: list[str]) -> bool:
    return all((folder / name).read_bytes() == (source / name).read_bytes() for name in names)


@pytest.mark.parametrize("size", [0, 1, chunks(1) - 200, chunks(1), chunks(7.5)])
async def test_an_adapter_of_any_size_arrives_whole(tmp_path: Path, size: int) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        source = adapter_folder(tmp_path / "in", size)
        artifact = await publish(source, b)
        seen: list[tuple[int, int]] = []
        folder = await a.fetch(artifact, b, progress=lambda done, total: seen.append((done, total)))
        assert same(folder, source, ["adapter_config.json", "adapter_model.safetensors"])
        total = sum(entry.stat().st_size for entry in folder.iterdir() if not entry.name.startswith("."))
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)
        assert await a.store.verify(artifact) == ()
        assert await a.fetch(artifact) == folder, "what is here needs no source"
        assert b.sender.sent_bytes == total


async def test_many_files_some_of_them_empty(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as (a, b, c):
        source = dataset_folder(tmp_path / "in", files=60)
        for number in range(0, 60, 7):
            (source / f"part{number:04d}.jsonl").write_bytes(b"")
        artifact = await publish(source, b, c)
        folder = await a.fetch(artifact, b, c)
        assert same(folder, source, [path.name for path in source.iterdir()])


async def test_three_sources_share_the_work(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as (a,), AsyncExitStack() as stack:
        together, others = asyncio.Event(), []
        asked: set[int] = set()

        class Waiting(Twisted):
            async def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
                asked.add(id(self))
                if len(asked) == 3:
                    together.set()
                await together.wait()
                async for piece in self.store.reader(artifact, file, first, count):
                    yield piece

        for name in ("b", "c", "d"):
            store = stack.enter_context(open_store(tmp_path / name))
            waiting = Waiting(store, lambda piece: piece)
            others.append(await stack.enter_async_context(node(store, sends=waiting)))
        source = adapter_folder(tmp_path / "in", chunks(96))
        artifact = await publish(source, *others)
        await a.meet(*others)
        folder = await a.fetch(artifact, *others)
        assert same(folder, source, ["adapter_model.safetensors"])
        sent = [other.sender.sent_bytes for other in others]
        assert all(sent), sent
        assert sum(sent) < chunks(96) * 1.6, "little is fetched twice"


def flip(piece: Piece) -> Piece:
    return replace(piece, data=piece.data[:-1] + bytes([piece.data[-1] ^ 1]))


LIES = {
    "a flipped bit": flip,
    "a byte too few": lambda piece: replace(piece, data=piece.data[:-1]),
    "nothing": lambda piece: replace(piece, data=b""),
    "another chunk's place": lambda piece: replace(piece, index=piece.index + 1),
    "no proof": lambda piece: replace(piece, proof=()),
    "a longer proof": lambda piece: replace(piece, proof=(*piece.proof, bytes(32))),
    "another proof": lambda piece: replace(piece, proof=tuple(bytes(32) for _ in piece.proof)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_liar_among_three_is_caught_at_its_first_bad_chunk(tmp_path: Path, lie: str) -> None:
    async with nodes(tmp_path, 1) as (a,), AsyncExitStack() as stack:
        stores = [stack.enter_context(open_store(tmp_path / name)) for name in ("liar", "b", "c")]
        source, lied, honest = adapter_folder(tmp_path / "in", chunks(40)), asyncio.Event(), 3

        def twist(piece: Piece) -> Piece:
            if len(twisted.sent) < honest:
                return piece
            lied.set()
            return LIES[lie](piece)

        twisted = Twisted(stores[0], twist)
        liar = await stack.enter_async_context(node(stores[0], sends=twisted))
        b, c = [
            await stack.enter_async_context(node(store, sends=Twisted(store, lambda piece: piece, gate=lied)))
            for store in stores[1:]
        ]
        artifact = await publish(source, b, c, liar)
        await a.meet(liar, b, c)
        folder = await a.fetch(artifact, liar, b, c)
        assert same(folder, source, ["adapter_model.safetensors"])
        assert await a.store.verify(artifact) == ()
        async with asyncio.timeout(20):
            while await a.points(liar) < 30:
                await asyncio.sleep(0.01)
        assert await a.points(b) == await a.points(c) == 0


async def test_a_lone_liar_gets_nothing_into_the_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "liar") as store:
        twisted = Twisted(store, flip)
        async with nodes(tmp_path, 1) as (a,), node(store, sends=twisted) as liar:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(3)), liar)
            await a.meet(liar)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(artifact, liar)
            assert error.value.code is ErrorCode.BAD_CHUNK
            assert a.store.folder(artifact) is None
            assert len(twisted.sent) <= 2, "the first chunk of a file, and what was under way"
            assert a.store.usage().partial < 100_000


async def test_a_false_manifest_costs_its_sender_and_the_next_source_serves(tmp_path: Path) -> None:
    with open_store(tmp_path / "liar") as store, ExitStack() as stack:
        other = await store.add_folder(adapter_folder(tmp_path / "other", seed=9), "adapter", ABOUT)
        data = store.manifest(other).encode()  # type: ignore[union-attr]
        one_by_one = stack.enter_context(open_store(tmp_path / "asking"))
        async with (
            nodes(tmp_path, 1) as (b,),
            node(one_by_one, fetch=replace(HASTY, sources=1)) as a,
            node(store, sends=Twisted(store, lambda piece: piece, data)) as liar,
        ):
            source = adapter_folder(tmp_path / "in", chunks(2))
            artifact = await publish(source, b, liar)
            await a.meet(liar, b)
            assert same(await a.fetch(artifact, liar, b), source, ["adapter_model.safetensors"])
            async with asyncio.timeout(20):
                while await a.points(liar) < 30:
                    await asyncio.sleep(0.01)


async def test_a_source_that_stops_is_overtaken_and_one_that_dies_replaced(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        names = ("a", "slow", "dying", "steady")
        mine, *stores = [stack.enter_context(open_store(tmp_path / name)) for name in names]
        halted = asyncio.Event()

        def halt(piece: Piece) -> Piece | None:
            if len(slow.sent) < 3:
                return piece
            halted.set()
            return None

        slow = Twisted(stores[0], halt)
        gated = [Twisted(store, lambda piece: piece, gate=halted) for store in stores[1:]]
        a = await stack.enter_async_context(node(mine))
        stops, dies, steady = [
            await stack.enter_async_context(node(store, sends=sends))
            for store, sends in zip(stores, [slow, *gated], strict=True)
        ]
        source = adapter_folder(tmp_path / "in", chunks(80))
        artifact = await publish(source, stops, dies, steady)
        await a.meet(stops, dies, steady)
        stopped: list[asyncio.Task[None]] = []

        def progress(done: int, total: int) -> None:
            if done > total // 4 and not stopped:
                stopped.append(asyncio.create_task(dies.network.stop()))

        folder = await a.fetch(artifact, stops, dies, steady, progress=progress)
        assert same(folder, source, ["adapter_model.safetensors"])
        await stopped[0]
        assert len(slow.sent) == 3


class Dripping(Twisted):
    """Sends a chunk now and then, each within the time that a source has for one."""

    def __init__(self, store: ArtifactStore, pause_s: float) -> None:
        super().__init__(store, lambda piece: piece)
        self.pause_s = pause_s

    async def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
        async for piece in self.store.reader(artifact, file, first, count):
            await asyncio.sleep(self.pause_s)
            self.sent.append(piece.index)
            yield piece


async def test_sources_that_drip_give_their_places_to_those_who_wait(tmp_path: Path) -> None:
    options = replace(HASTY, sources=2, min_rate=chunks(8), slack_s=0.5)
    async with AsyncExitStack() as stack:
        mine, *stores = [stack.enter_context(open_store(tmp_path / name)) for name in ("a", "drip", "drop", "steady")]
        a = await stack.enter_async_context(node(mine, fetch=options))
        drips = [Dripping(store, 1.0) for store in stores[:2]]
        drip, drop = [await stack.enter_async_context(node(each.store, sends=each)) for each in drips]
        steady = await stack.enter_async_context(node(stores[2]))
        source = adapter_folder(tmp_path / "in", chunks(100))
        artifact = await publish(source, drip, drop, steady)
        await a.meet(drip, drop, steady)
        folder = await a.fetch(artifact, drip, drop, steady)
        assert same(folder, source, ["adapter_model.safetensors"])
        assert steady.sender.sent_bytes > chunks(80), "the third was asked, and did nearly all of it"
        assert await a.points(drip) == await a.points(drop) == 0, "to be slow is no fault"


async def test_a_slow_source_is_asked_again_when_those_who_waited_have_nothing(tmp_path: Path) -> None:
    options = replace(HASTY, sources=1, min_rate=chunks(8), slack_s=0.5)
    with open_store(tmp_path / "slow") as store, open_store(tmp_path / "empty") as nothing:
        asked = asyncio.Event()

        class Empty(Twisted):
            def manifest(self, artifact: bytes) -> None:
                asked.set()

        slow = Twisted(store, lambda piece: piece, gate=asked)
        with open_store(tmp_path / "a") as mine:
            async with (
                node(mine, fetch=options) as a,
                node(store, sends=slow) as b,
                node(nothing, sends=Empty(nothing, lambda piece: piece)) as c,
            ):
                source = adapter_folder(tmp_path / "in", chunks(5))
                artifact = await publish(source, b)
                await a.meet(b, c)
                assert same(await a.fetch(artifact, b, c), source, ["adapter_model.safetensors"])
                assert asked.is_set()


async def test_a_fetch_from_drips_alone_ends_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    options = replace(HASTY, min_rate=1 << 40, whole_s=3.0)
    with open_store(tmp_path / "drip") as store, open_store(tmp_path / "a") as mine:
        async with (
            nodes(tmp_path, 1) as (steady,),
            node(mine, fetch=options) as a,
            node(store, sends=Dripping(store, 0.2)) as drip,
        ):
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(60)), drip, steady)
            await a.meet(drip, steady)
            kept = 0

            def progress(done: int, total: int) -> None:
                nonlocal kept
                kept = done

            with pytest.raises(OpenLoraError, match="too slow") as error:
                await a.fetch(artifact, drip, progress=progress)
            assert error.value.code is ErrorCode.NODE_LOST
            assert 0 < kept < chunks(60)
            assert a.fetcher._running == {}
            patient = Fetcher(mine, lambda peer: a.network.open(peer, ARTIFACT), HASTY)
            assert (await patient.fetch(artifact, of_peers([steady.id]))).is_dir()
            total = sum(entry.size for entry in a.store.manifest(artifact).files)  # type: ignore[union-attr]
            assert steady.sender.sent_bytes <= total - kept


async def test_when_the_only_source_dies_what_came_stays_and_another_continues(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as (a, b, c):
        source = adapter_folder(tmp_path / "in", chunks(120))
        artifact = await publish(source, b, c)
        kept = 0
        stopped: list[asyncio.Task[None]] = []

        def progress(done: int, total: int) -> None:
            nonlocal kept
            kept = done
            if done > total // 4 and not stopped:
                stopped.append(asyncio.create_task(b.network.stop()))

        with pytest.raises(OpenLoraError) as error:
            await a.fetch(artifact, b, progress=progress)
        assert error.value.code is ErrorCode.NODE_LOST
        await stopped[0]
        assert chunks(30) < kept < chunks(120)
        assert a.store.folder(artifact) is None
        assert same(await a.fetch(artifact, c), source, ["adapter_model.safetensors"])
        total = sum(entry.size for entry in a.store.manifest(artifact).files)  # type: ignore[union-attr]
        assert c.sender.sent_bytes == total - kept


async def test_a_lone_source_that_sends_nothing_more_is_given_up(tmp_path: Path) -> None:
    impatient = replace(HASTY, answer_s=0.3, attempts=2)
    with open_store(tmp_path / "mute") as store, open_store(tmp_path / "asking") as asking:
        mute = Twisted(store, lambda piece: piece if len(mute.sent) < 3 else None)
        async with node(store, sends=mute) as source, node(asking, fetch=impatient) as a:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(8)), source)
            await a.meet(source)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(artifact, source)
            assert error.value.code is ErrorCode.NODE_LOST
            assert "in time" in error.value.message
            assert len(mute.sent) == 3


async def test_chunks_fill_noise_messages_and_never_spill_into_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encrypt = NoiseTransportReadWriter.encrypt

    def counted(self: NoiseTransportReadWriter, data: bytes) -> bytes:
        sizes.append(len(data))
        return encrypt(self, data)

    monkeypatch.setattr(NoiseTransportReadWriter, "encrypt", counted)
    async with nodes(tmp_path, 2) as (a, b):
        artifact = await publish(adapter_folder(tmp_path / "in", chunks(16)), b)
        await a.fetch(artifact, b)
    assert max(sizes) > 60_000
    assert MAX_PLAINTEXT_LENGTH not in sizes, "a full message is followed by the rest of its Yamux frame"


async def test_two_who_want_the_same_share_one_fetch_and_one_may_leave(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact = await publish(adapter_folder(tmp_path / "in", chunks(40)), b)
        begun = asyncio.Event()
        first = asyncio.create_task(a.fetch(artifact, b, progress=lambda done, total: begun.set()))
        await begun.wait()
        second = asyncio.create_task(a.fetch(artifact, b))
        await asyncio.sleep(0)
        first.cancel()
        folder = await second
        assert first.cancelled()
        assert folder.is_dir()
        total = sum(entry.size for entry in a.store.manifest(artifact).files)  # type: ignore[union-attr]
        assert b.sender.sent_bytes == total


async def test_a_cancelled_fetch_stops_and_keeps_what_came(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact = await publish(adapter_folder(tmp_path / "in", chunks(80)), b)
        begun = asyncio.Event()
        task = asyncio.create_task(a.fetch(artifact, b, progress=lambda done, total: done and begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert a.fetcher._running == {}
        assert a.store.folder(artifact) is None
        assert (await a.fetch(artifact, b)).is_dir()


async def test_the_owners_policy_is_the_senders_law(tmp_path: Path) -> None:
    asked: list[tuple[bytes, str]] = []

    async def nobody(artifact: bytes, peer: Peer) -> bool:
        asked.append((artifact, peer.id))
        return False

    with open_store(tmp_path / "strict") as store:
        async with nodes(tmp_path, 2) as (a, b), node(store, may_send=nobody) as strict:
            artifact = await publish(adapter_folder(tmp_path / "in"), strict)
            await a.meet(strict)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(artifact, b, strict)
            assert error.value.code is ErrorCode.ACCESS_DENIED
            assert asked == [(artifact, a.id)]
            session = await a.network.open(strict.id, ARTIFACT)
            await session.send(GetChunks(artifact=artifact, file=0, first=0, count=1))
            answer = await session.receive()
            assert isinstance(answer, ErrorReply)
            assert answer.code == ErrorCode.ACCESS_DENIED, "chunks are refused too, not only the manifest"
            session.abort()
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(b"\x07" * 32, b)
            assert error.value.code is ErrorCode.NOT_FOUND


async def test_quota_and_sessions_of_a_peer_are_bounded(tmp_path: Path) -> None:
    options = replace(FAST, peer_quota=Allowance(rate=1.0, burst=chunks(6)), peer_sessions=2)
    with open_store(tmp_path / "tight") as store:
        async with nodes(tmp_path, 1) as (a,), node(store, sender=options) as tight:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(10)), tight)
            await a.meet(tight)
            session = await a.network.open(tight.id, ARTIFACT)
            for number in range(2):
                await session.send(GetChunks(artifact=artifact, file=1, first=0, count=5))
                answer = await session.receive()
                if number == 0:
                    assert isinstance(answer, Chunk)
                    for _ in range(4):
                        assert isinstance(await session.receive(), Chunk)
                else:
                    assert isinstance(answer, ErrorReply)
                    assert answer.code == ErrorCode.RATE_LIMITED
                    assert answer.retry_after_ms > 1000 * chunks(3)
            more = [await a.network.open(tight.id, ARTIFACT) for _ in range(2)]
            for each in more:
                await each.send(GetManifest(artifact=artifact))
            answers = [await each.receive() for each in more]
            assert sorted(type(answer).__name__ for answer in answers) == ["ErrorReply", "ManifestReply"]
            session.abort()
            for each in more:
                each.abort()


async def test_a_flood_of_questions_is_held_back_and_a_fetch_of_many_files_waits_its_turn(tmp_path: Path) -> None:
    options = replace(FAST, questions=Allowance(rate=60.0, burst=20.0))
    strict = replace(FAST, questions=Allowance(rate=0.1, burst=20.0))
    with open_store(tmp_path / "calm") as store, open_store(tmp_path / "strict") as other:
        async with (
            nodes(tmp_path, 1) as (a,),
            node(store, sender=options) as calm,
            node(other, sender=strict) as curt,
        ):
            artifact = await publish(dataset_folder(tmp_path / "in", files=64), calm, curt)
            await a.meet(calm, curt)
            assert (await a.fetch(artifact, calm)).is_dir()
            session = await a.network.open(curt.id, ARTIFACT)
            answers = []
            for _ in range(10):
                await session.send(GetManifest(artifact=artifact))
                answers.append(await session.receive())
            session.abort()
            assert isinstance(answers[0], ManifestReply)
            assert isinstance(answers[-1], ErrorReply)
            assert answers[-1].code == ErrorCode.RATE_LIMITED


async def test_bad_questions_get_an_error_and_cost_the_asker(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        artifact = await publish(adapter_folder(tmp_path / "in", chunks(2)), b)
        questions = [
            GetChunks(artifact=artifact, file=2, first=0, count=1),
            GetChunks(artifact=artifact, file=1, first=0, count=5),
            GetChunks(artifact=artifact, file=1, first=1 << 62, count=4096),
            ManifestReply(data=b"{}"),
        ]
        for question in questions:
            session = await a.network.open(b.id, ARTIFACT)
            await session.send(question)
            answer = await session.receive()
            assert isinstance(answer, ErrorReply)
            assert answer.code == ErrorCode.MALFORMED
            assert await session.receive() is None
            session.abort()
        async with asyncio.timeout(20):
            while await b.points(a) < 70:
                await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_peer_that_never_reads_is_cut_off_and_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "WINDOW_BYTES", 1 << 18)
    options = replace(FAST, stall_s=1.0)
    with open_store(tmp_path / "busy") as store:
        async with nodes(tmp_path, 2) as (a, b), node(store, sender=options) as busy:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(160)), busy)
            small = await publish(adapter_folder(tmp_path / "small", seed=2), busy)
            await a.meet(busy)
            await b.meet(busy)
            session = await a.network.open(busy.id, ARTIFACT)
            await session.send(GetChunks(artifact=artifact, file=1, first=0, count=160))
            async with asyncio.timeout(20):
                while busy.sender.sent_bytes == 0:
                    await asyncio.sleep(0.01)
                assert (await b.fetch(small, busy)).is_dir()
                while busy.sender._open:
                    await asyncio.sleep(0.05)
            assert busy.sender.sent_bytes < chunks(160), "what is sent and not taken is bounded"
            with pytest.raises(OpenLoraError):
                while await session.receive() is not None:
                    pass


def manifest_of(*entries: tuple[str, int, str]) -> AdapterManifest:
    files = tuple(FileEntry(path=path, root=root, size=size) for path, size, root in sorted(entries))
    return AdapterManifest(config={}, files=files, base="sha256:" + BASE_ID.hex())


CONFIG = ("adapter_config.json", 2, chunk_hash(b"{}").hex())
HOSTILE = {
    "four terabytes": (manifest_of(CONFIG, ("adapter_model.safetensors", 1 << 42, "00" * 32)), ErrorCode.UNSUPPORTED),
    "larger than allowed by one byte": (
        manifest_of(CONFIG, ("adapter_model.safetensors", (1 << 20) - 1, "00" * 32)),
        ErrorCode.UNSUPPORTED,
    ),
    "a pickle": (
        manifest_of(CONFIG, ("adapter_model.safetensors", 9, "00" * 32), ("x.pkl", 1, "00" * 32)),
        ErrorCode.BAD_MANIFEST,
    ),
    "no weights": (manifest_of(CONFIG, ("weights.safetensors", 9, "00" * 32)), ErrorCode.BAD_MANIFEST),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_manifest_is_refused_before_a_chunk_is_asked_for(tmp_path: Path, case: str) -> None:
    manifest, code = HOSTILE[case]
    with open_store(tmp_path / "hostile") as store:
        await store.add_folder(adapter_folder(tmp_path / "in"), "adapter", ABOUT)
        (known,) = store.ids()
        twisted = Twisted(store, lambda piece: piece, manifest.encode())
        twisted.manifest = lambda artifact, ask=twisted.manifest: ask(known)  # type: ignore[method-assign,misc]
        async with nodes(tmp_path, 1) as (a,), node(store, sends=twisted) as hostile:
            await a.meet(hostile)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(manifest.id, hostile, limit=1 << 20)
            assert error.value.code is code
            assert hostile.sender.sent_bytes == 0
            assert not list((tmp_path / "node0" / ".partial").iterdir())


async def test_weights_that_are_no_safetensors_are_thrown_away_when_they_arrive(tmp_path: Path) -> None:
    pickle = b"\x80\x04cos\nsystem\n" * 30
    manifest = manifest_of(CONFIG, ("adapter_model.safetensors", len(pickle), chunk_hash(pickle).hex()))
    assert ChunkTree([chunk_hash(pickle)]).root == chunk_hash(pickle)
    with open_store(tmp_path / "hostile") as store:
        await store.add_folder(adapter_folder(tmp_path / "in"), "adapter", ABOUT)
        (known,) = store.ids()

        class Pickles(Twisted):
            def manifest(self, artifact: bytes) -> AdapterManifest:
                return manifest

            async def reader(self, artifact: bytes, file: int, first: int, count: int):  # type: ignore[no-untyped-def]
                yield Piece(0, pickle if file else b"{}", ())

        async with nodes(tmp_path, 1) as (a,), node(store, sends=Pickles(store, lambda piece: piece)) as hostile:
            await a.meet(hostile)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(manifest.id, hostile)
            assert error.value.code is ErrorCode.BAD_MANIFEST
            assert a.store.folder(manifest.id) is None
            assert not list((tmp_path / "node0" / ".partial").iterdir())
            assert known


async def test_what_does_not_fit_the_store_is_not_fetched(tmp_path: Path) -> None:
    with open_store(tmp_path / "small", 1 << 20) as store:
        async with nodes(tmp_path, 1) as (b,), node(store, fetch=HASTY) as a:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(8)), b)
            await a.meet(b)
            with pytest.raises(OpenLoraError) as error:
                await a.fetch(artifact, b)
            assert error.value.code is ErrorCode.STORAGE_FULL
            assert b.sender.sent_bytes == 0


@pytest.mark.slow
async def test_the_upload_rate_holds_for_all_together(tmp_path: Path) -> None:
    options = replace(FAST, upload_rate=chunks(40))
    with open_store(tmp_path / "slow") as store:
        async with nodes(tmp_path, 2) as (a, b), node(store, sender=options) as slow:
            artifact = await publish(adapter_folder(tmp_path / "in", chunks(40)), slow)
            await a.meet(slow)
            await b.meet(slow)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(a.fetch(artifact, slow), b.fetch(artifact, slow))
            assert asyncio.get_running_loop().time() - began > 1.6, "80 chunks at 40 a second, a quarter second ahead"


async def test_a_damaged_artifact_is_withdrawn_and_fetched_again_where_it_was_damaged(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (a, b):
        source = adapter_folder(tmp_path / "in", chunks(10))
        artifact = await publish(source, a, b)
        weights = a.store.folder(artifact) / "adapter_model.safetensors"  # type: ignore[operator]
        weights.chmod(0o600)
        with weights.open("r+b") as file:
            file.seek(3 * CHUNK_SIZE)
            file.write(b"rot")
        assert await a.store.verify(artifact) == ("adapter_model.safetensors",)
        assert same(await a.fetch(artifact, b), source, ["adapter_model.safetensors"])
        assert b.sender.sent_bytes == CHUNK_SIZE
