"""Random programs of requests, releases, pins, mixes and slots on real files, with the threads' work done by hand."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_engine.adapters.blob import Storage
from openlora_engine.adapters.cache import HostCache
from openlora_engine.adapters.device import DeviceSlots
from openlora_engine.adapters.folder import AdapterRoot
from openlora_engine.adapters.loader import AdapterLoader
from openlora_engine.adapters.recipe import AdapterUse, MixRecipe
from openlora_engine.adapters.registry import AdapterRegistry
from openlora_engine.adapters.source import Source, identify
from openlora_engine.errors import Code, EngineError
from openlora_engine.scheduling.slots import SlotPool
from openlora_kernels.lora import LoraTables
from support.engine_adapters import WEIGHTS_FILE, llama_targets, plain_adapter, plain_weights, write_folder

STORAGE = Storage(llama_targets(num_layers=1), torch.float16)
RANKS = (1, 2, 3, 4, 6, 8)
SPOILT = 2
"""The number of the adapter whose files change after it was identified."""


class Hands:
    """A worker whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def run(self) -> None:
        if self.work:
            self.work.popleft()()

    def run_all(self) -> None:
        while self.work:
            self.run()


class Heard:
    """An observer that counts."""

    def __init__(self) -> None:
        self.loaded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        assert seconds >= 0
        self.loaded[tier] += 1

    def adapter_load_failed(self, code: str) -> None:
        self.failed[code] += 1


class Shelf:
    """Six adapters on disk, one of them spoilt, and two mixes; their sizes."""

    def __init__(self, folder: Path) -> None:
        self.root = AdapterRoot(folder)
        self.sources, self.identities = [], []
        for number, rank in enumerate(RANKS):
            plain_adapter(folder / str(number), STORAGE.targets, r=rank, seed=number)
            source = Source(self.root, (str(number),))
            self.sources.append(source)
            self.identities.append(identify(source, STORAGE))
        write_folder(folder / str(SPOILT), plain_weights(STORAGE.targets, r=RANKS[SPOILT], seed=99), None)
        self.digests = [identity.digest for identity in self.identities]
        self.recipes = [
            MixRecipe.of([AdapterUse(self.digests[0], 1.0), AdapterUse(self.digests[1], -0.5)]),
            MixRecipe.of([AdapterUse(self.digests[n], 0.5) for n in (1, 3, 4)], "svd"),
            MixRecipe.of([AdapterUse(self.digests[0], 1.0), AdapterUse(self.digests[SPOILT], 1.0)]),
        ]
        self.members = {recipe.digest: [use.digest for use in recipe.uses] for recipe in self.recipes}
        self.spoilt = {self.digests[SPOILT], self.recipes[2].digest}
        self.all = [*self.digests, *self.members, "sha256:" + "f" * 64]

    def registry(self) -> AdapterRegistry:
        registry = AdapterRegistry(self.root, lambda: 0.0)
        for number, (source, identity) in enumerate(zip(self.sources, self.identities, strict=True)):
            registry.put(f"adapter {number}", source, identity, in_place=False)
        for recipe in self.recipes:
            registry.put_recipe(recipe)
        return registry


class Desk:
    """A loader with its cache and slots, and what the scheduler knows of it."""

    def __init__(self, shelf: Shelf, capacity: int) -> None:
        self.shelf = shelf
        self.cache = HostCache(capacity)
        self.disk, self.mixer, self.heard = Hands(), Hands(), Heard()
        self.wakes = 0
        self.loader = AdapterLoader(
            STORAGE, self.cache, shelf.registry(), self.disk, self.mixer, self.heard, self._wake
        )
        self.tables = LoraTables(STORAGE.targets.groups, 2, STORAGE.dtype)
        self.slots = DeviceSlots(self.tables, self.cache, self.heard)
        self.pool = SlotPool(2, self.slots)
        self.waiting: set[str] = set()
        self.ready: set[str] = set()
        self.running: Counter[str] = Counter()

    def _wake(self) -> None:
        self.wakes += 1

    def request(self, digest: str) -> None:
        if digest in self.waiting | self.ready:
            return
        accepted = self.loader.request(digest)
        if not accepted:
            assert digest in (*self.shelf.digests, *self.shelf.members), "an unknown digest is answered, not put off"
            return
        if self.loader.is_ready(digest):
            self.ready.add(digest)
        else:
            self.waiting.add(digest)

    def release(self, digest: str) -> None:
        if digest in self.waiting | self.ready and not self.running[digest]:
            self.loader.release(digest)
            self.waiting.discard(digest)
            self.ready.discard(digest)

    def poll(self) -> None:
        for digest, error in self.loader.take_completed():
            self.waiting.remove(digest)  # KeyError: nobody waits, or told twice
            if error is None:
                assert digest not in self.shelf.spoilt
                self.ready.add(digest)
            else:
                assert error.code is Code.ADAPTER_NOT_FOUND or error.code is Code.ADAPTER_TOO_LARGE

    def run_sequence(self, digest: str) -> None:
        if digest in self.ready and self.pool.acquire(digest) is not None:
            self.running[digest] += 1

    def end_sequence(self, digest: str) -> None:
        if self.running[digest]:
            self.pool.release(digest)
            self.running[digest] -= 1

    def check(self) -> None:
        self.cache.check_integrity()
        self.pool.check_integrity()
        for digest in self.ready:
            assert self.loader.is_ready(digest), "an adapter that is needed left host memory"
            assert self.cache.num_holds(digest) >= 1
        for digest, slot in self.slots.resident.items():
            blob = self.cache.blob(digest)
            assert self.cache.num_holds(digest) >= 1
            assert int(self.tables.a[0, slot]) == blob.address + int(blob.placement.layout.a[0])

    def finish(self) -> None:
        """Everybody leaves: nothing may be held or promised any more, and nobody was left without an answer."""
        while self.disk.work or self.mixer.work:
            self.disk.run_all()
            self.mixer.run_all()
        self.poll()
        assert not self.waiting, "a request was never answered"
        for digest in list(self.running):
            while self.running[digest]:
                self.end_sequence(digest)
        for digest in list(self.slots.resident):
            self.pool.unpin(digest)
            self.pool.evict(digest)
        for digest in list(self.ready):
            self.release(digest)
        for digest in self.shelf.all:
            self.loader.unpin(digest)
        self.check()
        assert all(self.cache.num_holds(digest) == 0 for digest in self.shelf.all)
        assert self.cache.reserve(self.cache.capacity), "room was lost"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


OPERATIONS = ("request", "release", "run_sequence", "end_sequence", "disk", "mixer", "poll", "pin", "unpin", "relieve")


@settings(max_examples=120)
@given(
    capacity=st.sampled_from((20_000, 40_000, 60_000, 1 << 20)),
    program=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 9)), max_size=60),
)
def test_random_programs_keep_bytes_and_holds(shelf: Shelf, capacity: int, program: list[tuple[str, int]]) -> None:
    desk = Desk(shelf, capacity)
    for operation, number in program:
        digest = shelf.all[number % len(shelf.all)]
        if operation in ("disk", "mixer"):
            (desk.disk if operation == "disk" else desk.mixer).run()
        elif operation == "poll":
            desk.poll()
        elif operation == "pin":
            with_room_or_known(desk, digest)
        elif operation == "unpin":
            desk.loader.unpin(digest)
        elif operation == "relieve":
            for idle in desk.pool.idle:
                desk.pool.evict(idle)
        else:
            getattr(desk, operation)(digest)
        desk.check()
    desk.finish()


def with_room_or_known(desk: Desk, digest: str) -> None:
    try:
        desk.loader.pin(digest)
    except EngineError as error:
        assert error.code in (Code.ADAPTER_NOT_FOUND, Code.BUSY, Code.ADAPTER_TOO_LARGE)


def test_a_load_starts_with_the_request_and_ends_with_one_completion(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    desk.request(shelf.digests[0])
    assert len(desk.disk.work) == 1
    assert not desk.loader.take_completed()
    desk.disk.run()
    assert desk.wakes == 1
    assert [tuple(done) for done in desk.loader.take_completed()] == [(shelf.digests[0], None)]
    assert not desk.loader.take_completed()
    assert desk.heard.loaded == {"disk": 1}


def test_one_load_serves_all_who_ask_meanwhile(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    desk.request(shelf.digests[0])
    desk.loader.pin(shelf.digests[0])
    desk.request(shelf.recipes[0].digest)
    assert len(desk.disk.work) == 2, "the first adapter, and the mix's other member"
    desk.finish()
    assert desk.heard.loaded == {"disk": 2, "mix": 1}


def test_a_load_that_nobody_waits_for_any_more_is_called_off(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    for digest in (shelf.digests[0], shelf.recipes[1].digest):
        desk.request(digest)
        desk.release(digest)
    assert desk.cache.used_bytes == 0
    desk.finish()
    assert not desk.heard.loaded


def test_a_request_made_anew_does_not_hear_of_the_old_ones_failure(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    digest = shelf.digests[SPOILT]
    desk.request(digest)
    desk.disk.run()
    desk.release(digest)  # the failure lies ready, not yet collected
    desk.request(digest)
    assert not desk.loader.take_completed()
    desk.disk.run()
    completions = desk.loader.take_completed()
    assert len(completions) == 1
    assert completions[0].error is not None


def test_a_mix_fails_with_the_member_that_fails(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    desk.request(shelf.recipes[2].digest)
    desk.disk.run_all()
    completions = desk.loader.take_completed()
    assert [done.digest for done in completions] == [shelf.recipes[2].digest]
    assert completions[0].error is not None
    assert completions[0].error.code is Code.ADAPTER_NOT_FOUND
    assert completions[0].error.__traceback__ is None, "its frames would keep the adapter's buffers"
    assert desk.cache.num_holds(shelf.digests[0]) == 0


def test_a_digest_that_no_name_stands_for_is_answered(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    assert desk.loader.request(shelf.all[-1])
    (completion,) = desk.loader.take_completed()
    assert completion.error is not None
    assert completion.error.code is Code.ADAPTER_NOT_FOUND


def test_what_could_never_fit_is_refused_naming_the_flag(shelf: Shelf) -> None:
    desk = Desk(shelf, 1_000)
    assert desk.loader.request(shelf.digests[0])
    (completion,) = desk.loader.take_completed()
    assert completion.error is not None
    assert completion.error.code is Code.ADAPTER_TOO_LARGE
    assert "--host-cache" in completion.error.message


def test_no_room_is_put_off_until_somebody_leaves(shelf: Shelf) -> None:
    nbytes = STORAGE.allocated_bytes(STORAGE.place(shelf.identities[5].ranks).nbytes)
    desk = Desk(shelf, nbytes)
    desk.request(shelf.digests[5])
    desk.disk.run()
    desk.poll()
    assert not desk.loader.request(shelf.digests[0])
    desk.release(shelf.digests[5])
    assert desk.loader.request(shelf.digests[0])
    assert shelf.digests[5] not in desk.cache


def test_files_that_were_only_touched_are_loaded_still(shelf: Shelf) -> None:
    (shelf.root.path / "3" / WEIGHTS_FILE).touch()
    desk = Desk(shelf, 1 << 20)
    desk.request(shelf.digests[3])
    desk.disk.run()
    assert [done.error for done in desk.loader.take_completed()] == [None]


def test_evicting_what_runs_is_refused_in_slot_and_host(shelf: Shelf) -> None:
    desk = Desk(shelf, 1 << 20)
    digest = shelf.digests[0]
    desk.request(digest)
    desk.disk.run()
    desk.poll()
    desk.run_sequence(digest)
    with pytest.raises(EngineError) as refused:
        desk.pool.evict(digest)
    assert refused.value.code is Code.ADAPTER_IN_USE
    desk.cache.discard(digest)
    assert digest in desk.cache, "an unloaded adapter stays for what runs on it"
    desk.end_sequence(digest)
    desk.release(digest)
    assert digest in desk.cache, "its slot still points into it"
    desk.pool.evict(digest)
    assert digest not in desk.cache
