"""Random operations on a store, reopenings and crashes included, equal a model that is a few dictionaries."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from openlora_node.artifacts import ArtifactStore, Partial, footprint
from openlora_node.artifacts.contents import content_size
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.manifest import AnyManifest
from support.artifacts_folders import ABOUT, adapter_folder

SIZES = (1_000, 100_000, 300_000, 300_001, 600_000)
CACHE = 1_400_000
"""Not all of them fit at once."""
STEP = CACHE // 64
"""By which the room of a download grows."""


class StoreModel(RuleBasedStateMachine):
    """The store beside its model. Time moves one step an operation, so the order of last use is known."""

    downloads = Bundle("downloads")

    def __init__(self, origin: ArtifactStore, sources: dict[bytes, Path]) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="artifacts-model-"))
        self.now = 1_000_000.0
        self.loop = asyncio.new_event_loop()
        self.origin = origin
        self.sources = sources
        self.manifests = {artifact: _manifest(origin, artifact) for artifact in sources}
        self.ids = sorted(self.sources)
        self.here: dict[bytes, float] = {}
        self.pins: set[bytes] = set()
        self.held: dict[bytes, Any] = {}
        self.fetching: dict[bytes, Partial] = {}
        self.room: dict[bytes, int] = {}
        self.store = self.open()

    def open(self) -> ArtifactStore:
        return ArtifactStore.open(self.home / "store", CACHE, keep_free=0, clock=lambda: self.now)

    def tick(self) -> None:
        self.now += 100.0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def pick(self, number: int) -> bytes:
        return self.ids[number % len(self.ids)]

    def evicted(self, needed: int, promised: int = 0) -> list[bytes] | None:
        """What the model throws out for so many more bytes; None when these and what is promised cannot fit."""
        taken = sum(footprint(self.manifests[a]) for a in self.here) + sum(self.room.values()) + needed
        gone, free = [], 0
        for artifact in sorted(self.here, key=lambda a: (self.here[a], a)):
            if artifact not in self.pins and artifact not in self.held:
                if taken - free > CACHE:
                    gone.append(artifact)
                    taken -= footprint(self.manifests[artifact])
                else:
                    free += footprint(self.manifests[artifact])
        return gone if taken + promised - free <= CACHE else None

    def promised(self) -> int:
        """Bytes that downloads may still ask room for."""
        return sum(footprint(self.manifests[a]) - self.room[a] for a in self.fetching)

    def forget(self, gone: list[bytes]) -> None:
        for victim in gone:
            del self.here[victim]

    def grow(self, artifact: bytes, left: int) -> bool:
        """Room for what of a download is proven; False when nothing more may go for it."""
        whole, before = footprint(self.manifests[artifact]), self.room[artifact]
        if whole - left <= before:
            return True
        wanted = min(whole, whole - left + STEP)
        gone = self.evicted(wanted - before)
        if gone is None:
            return False
        self.room[artifact] = wanted
        self.forget(gone)
        return True

    @rule(number=st.integers(0, 4))
    def publish(self, number: int) -> None:
        self.tick()
        artifact = self.pick(number)
        source = self.sources[artifact]
        names = [entry.path for entry in self.manifests[artifact].files]
        needed = sum((source / name).stat().st_size for name in names) + 4096 * (len(names) + 4)
        gone = self.evicted(needed, self.promised())
        try:
            assert self.run(self.store.add_folder(source, "adapter", ABOUT)) == artifact
        except OpenLoraError as error:
            assert error.code is ErrorCode.STORAGE_FULL
            assert gone is None
            return
        assert gone is not None
        self.forget(gone)
        self.here.setdefault(artifact, self.now)

    @rule(number=st.integers(0, 4))
    def use(self, number: int) -> None:
        self.tick()
        artifact = self.pick(number)
        folder = self.store.folder(artifact)
        assert (folder is not None) == (artifact in self.here)
        if folder is not None:
            self.here[artifact] = self.now

    @rule(number=st.integers(0, 4), pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        artifact = self.pick(number)
        if pinned:
            self.store.pin(artifact)
            self.pins.add(artifact)
        else:
            self.store.unpin(artifact)
            self.pins.discard(artifact)

    @rule(number=st.integers(0, 4))
    def hold_or_release(self, number: int) -> None:
        self.tick()
        artifact = self.pick(number)
        if artifact in self.held:
            self.held.pop(artifact).__exit__(None, None, None)
        elif artifact in self.here:
            self.held[artifact] = self.store.hold(artifact)
            self.held[artifact].__enter__()
            self.here[artifact] = self.now

    @rule(number=st.integers(0, 4))
    def remove(self, number: int) -> None:
        artifact = self.pick(number)
        try:
            self.store.remove(artifact)
        except OpenLoraError as error:
            if artifact in self.here:
                assert error.code is ErrorCode.BUSY
                assert artifact in self.held or artifact in self.pins
            else:
                assert error.code is ErrorCode.NOT_FOUND
        else:
            assert artifact not in self.held
            assert artifact not in self.pins
            del self.here[artifact]

    @rule(target=downloads, number=st.integers(0, 4))
    def fetch(self, number: int) -> bytes | None:
        self.tick()
        artifact = self.pick(number)
        if artifact in self.here:
            return None
        fits = self.evicted(0, self.promised() + footprint(self.manifests[artifact])) is not None
        try:
            self.fetching[artifact] = self.run(self.store.begin(self.manifests[artifact].encode()))
        except OpenLoraError as error:
            assert error.code is (ErrorCode.BUSY if artifact in self.fetching else ErrorCode.STORAGE_FULL)
            assert artifact in self.fetching or not fits
            return None
        assert fits
        self.room[artifact] = 0  # and nothing goes for a promise
        return artifact

    @rule(artifact=downloads, count=st.integers(1, 4))
    def receive(self, artifact: bytes | None, count: int) -> None:
        partial = self.fetching.get(artifact or b"")
        if partial is None or artifact is None:
            return
        for file, first, length in partial.missing()[:1]:
            self.run(self._receive(partial, artifact, file, first, min(length, count)))

    async def _receive(self, partial: Partial, artifact: bytes, file: int, first: int, count: int) -> bool:
        async for piece in self.origin.reader(artifact, file, first, count):
            done = partial.done
            fits = self.grow(artifact, content_size(self.manifests[artifact]) - done - len(piece.data))
            try:
                await self.store.keep(partial, file, piece.index, piece.data, piece.proof)
            except OpenLoraError as error:
                assert error.code is ErrorCode.STORAGE_FULL
                assert not fits
                assert partial.done == done
                return False
            assert fits
        return True

    @rule(artifact=consumes(downloads), give_up=st.booleans())
    def finish(self, artifact: bytes | None, give_up: bool) -> None:
        self.tick()
        partial = self.fetching.get(artifact or b"")
        if partial is None or artifact is None:
            return
        if give_up:
            self.run(self.store.discard(partial))
        else:
            if partial.missing():
                try:
                    self.run(self.store.finish(partial))
                except OpenLoraError as error:
                    assert error.code is ErrorCode.BAD_CHUNK
                else:
                    raise AssertionError("a download with holes was taken for complete")
            if all(self.run(self._receive(partial, artifact, *part)) for part in partial.missing()):
                self.run(self.store.finish(partial))
                # Somebody may have published it meanwhile.
                self.here.setdefault(artifact, self.now)
            else:
                self.run(self.store.discard(partial))
        del self.fetching[artifact], self.room[artifact]

    @rule()
    def crash_and_reopen(self) -> None:
        """Nothing is told to end: the lock and the descriptors go with the process."""
        for hold in self.held.values():
            hold.__exit__(None, None, None)
        for artifact, partial in self.fetching.items():
            partial.close()
            # A new process finds it at rest; the model gives it up, so that its space needs no second bookkeeping.
            self.store._layout.discard(self.store._layout.partial(artifact))
        self.held.clear()
        self.fetching.clear()
        self.room.clear()
        self.store.close()
        self.store = self.open()

    @invariant()
    def equals_the_model(self) -> None:
        assert self.store.ids() == set(self.here)
        assert self.store.pinned() == self.pins
        usage = self.store.usage()
        assert usage.complete == sum(footprint(self.manifests[artifact]) for artifact in self.here)
        assert usage.partial == sum(self.room.values())
        assert usage.complete + usage.partial <= CACHE
        names = {entry.name for entry in (self.home / "store" / ".partial").iterdir()}
        assert names == {artifact.hex() for artifact in self.fetching}
        assert not list((self.home / "store" / ".trash").iterdir())
        assert not list((self.home / "store" / ".incoming").iterdir())

    def teardown(self) -> None:
        for artifact in self.here:
            assert self.run(self.store.verify(artifact)) == ()
        self.store.close()
        self.loop.close()
        shutil.rmtree(self.home)


def _manifest(store: ArtifactStore, artifact: bytes) -> AnyManifest:
    manifest = store.manifest(artifact)
    assert manifest is not None
    return manifest


@pytest.mark.slow
def test_random_operations_equal_the_model(tmp_path: Path) -> None:
    with ArtifactStore.open(tmp_path / "origin", 1 << 30, keep_free=0) as origin:
        sources = {}
        for number, size in enumerate(SIZES):
            folder = adapter_folder(tmp_path / f"in{number}", size, seed=number)
            sources[asyncio.run(origin.add_folder(folder, "adapter", ABOUT))] = folder
        program = settings(max_examples=20, stateful_step_count=25)
        run_state_machine_as_test(lambda: StoreModel(origin, sources), settings=program)
