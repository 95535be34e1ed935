"""The manager as the engine uses it, with its real threads: names and digests, reloads, tiers, mixes, many names."""

from __future__ import annotations

import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openlora_engine.adapters.blob import Storage
from openlora_engine.adapters.manager import AdapterManager
from openlora_engine.adapters.worker import Worker
from openlora_engine.errors import Code, EngineError
from openlora_kernels.lora import LoraTables
from support.engine_adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    llama_targets,
    plain_adapter,
    plain_config,
    plain_weights,
    write_folder,
)

TARGETS = llama_targets(num_layers=1)
STORAGE = Storage(TARGETS, torch.float16, max_lora_rank=16)


class Quiet:
    """An observer that does not listen."""

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        pass

    def adapter_load_failed(self, code: str) -> None:
        pass


class Bench:
    """A manager over a folder, and its bell."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.bell = threading.Event()
        self.tables = LoraTables(TARGETS.groups, 4, STORAGE.dtype)
        options = {"adapters": root, "host_cache": 1 << 20, "wake": self.bell.set, "now": lambda: 1_700_000_000.0}
        self.manager = AdapterManager(STORAGE, self.tables, Quiet(), **{**options, **settings})

    def add(self, name: str, **settings: Any) -> Path:
        return plain_adapter(self.root / name, TARGETS, **settings)

    def bring(self, digest: str) -> None:
        """Request and wait until it is in host memory."""
        self.bell.clear()
        assert self.manager.host.request(digest)
        while not self.manager.host.is_ready(digest):
            assert self.bell.wait(30)
            self.bell.clear()
        assert all(error is None for _, error in self.manager.take_completed())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.manager.close()


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> EngineError:
    with pytest.raises(EngineError) as refused:
        call(*args, **kwargs)
    return refused.value


def test_names_are_listed_without_reading_and_known_once_asked_for(tmp_path: Path) -> None:
    for name in ("b", "a"):
        plain_adapter(tmp_path / name, TARGETS, r=2)
    (tmp_path / "no adapter").mkdir()
    write_folder(tmp_path / ".hidden", None, plain_config())
    write_folder(tmp_path / os.fsdecode(b"\xff\n"), None, plain_config())
    bench = Bench(tmp_path)
    manager = bench.manager
    assert [(info.name, info.digest, info.created) for info in manager.adapters()] == [
        ("a", "", 1_700_000_000),
        ("b", "", 1_700_000_000),
    ]
    assert manager.lookup("a") is None
    digest = manager.resolve("a")
    assert manager.lookup("a") == manager.resolve(digest) == manager.lookup(digest) == digest
    assert (info := manager.adapters()[0]).rank == 2
    assert info.nbytes > 0
    bench.manager.close()


def test_a_missing_folder_of_adapters_is_a_configuration_error(tmp_path: Path) -> None:
    error = refusal(Bench, tmp_path / "nowhere")
    assert error.code is Code.CONFIG_INVALID
    assert "--adapters" in error.message


def test_a_folder_that_comes_later_is_found_by_its_name(bench: Bench) -> None:
    assert refusal(bench.manager.resolve, "new").code is Code.ADAPTER_NOT_FOUND
    bench.add("new")
    assert bench.manager.resolve("new").startswith("sha256:")


@pytest.mark.parametrize("name", ["", ".", "..", "../new", "a/b", "/etc", "a\0", "x" * 300, "sha256:" + "0" * 64, ".x"])
def test_names_that_are_no_folders_are_not_found(bench: Bench, name: str) -> None:
    bench.add("new")
    assert refusal(bench.manager.resolve, name).code is Code.ADAPTER_NOT_FOUND


def test_a_name_means_the_files_as_they_are_now(bench: Bench) -> None:
    bench.add("a", seed=1)
    first = bench.manager.resolve("a")
    shutil.rmtree(bench.root / "a")
    assert refusal(bench.manager.resolve, "a").code is Code.ADAPTER_NOT_FOUND
    bench.add("a", seed=2)
    second = bench.manager.resolve("a")
    assert second != first
    assert refusal(bench.manager.resolve, first).code is Code.ADAPTER_NOT_FOUND


def test_a_reload_leaves_running_requests_their_version(bench: Bench) -> None:
    manager, tables = bench.manager, bench.tables
    bench.add("a", seed=1)
    old = manager.resolve("a")
    bench.bring(old)
    manager.slots.load(0, old)
    before = tables.weights(0, 0).a.clone()
    bench.add("a", seed=2)
    new = manager.load("a", "a", in_place=True).digest
    assert new != old
    bench.bring(new)
    manager.slots.load(1, new)
    assert torch.equal(tables.weights(0, 0).a, before)
    assert not torch.equal(tables.weights(0, 1).a, before)
    manager.host.release(old)
    assert manager.host.is_ready(old), "its slot serves still"
    manager.slots.unload(0, old)
    assert not manager.host.is_ready(old), "nobody can ask for it any more"
    manager.check_integrity()


def test_an_unloaded_name_is_gone_until_it_is_loaded_again(bench: Bench) -> None:
    manager = bench.manager
    bench.add("a")
    digest = manager.resolve("a")
    bench.bring(digest)
    manager.unload("a")
    assert refusal(manager.resolve, "a").code is Code.ADAPTER_NOT_FOUND
    assert refusal(manager.check_known, digest).code is Code.ADAPTER_NOT_FOUND
    assert refusal(manager.unload, "a").code is Code.ADAPTER_NOT_FOUND
    assert manager.host.is_ready(digest), "what runs ends as it began"
    manager.host.release(digest)
    assert not manager.host.is_ready(digest)
    assert manager.load("a", "a").digest == digest
    assert manager.resolve("a") == digest


def test_a_pin_ends_with_the_last_name(bench: Bench) -> None:
    manager, forgotten = bench.manager, []
    manager.on_forget = forgotten.append
    for name in ("a", "b"):
        bench.add(name, seed=1)
    digest = manager.resolve("a")
    assert manager.resolve("b") == digest
    manager.pin(digest)
    manager.unload("b")
    assert manager.host.is_pinned(digest)
    assert not forgotten
    bench.add("a", seed=2)
    assert manager.resolve("a") != digest
    assert not manager.host.is_pinned(digest)
    assert forgotten == [digest]
    bench.bring(manager.resolve("a"))
    assert manager.tier_of(digest) == "disk"


def test_two_names_of_one_content_share_it(bench: Bench) -> None:
    manager = bench.manager
    for name in ("a", "b"):
        bench.add(name)
    assert manager.resolve("a") == manager.resolve("b")
    digest = manager.resolve("a")
    bench.bring(digest)
    manager.unload("a")
    manager.host.release(digest)
    assert manager.host.is_ready(digest)
    assert manager.resolve("b") == digest


def test_loading_by_path(bench: Bench) -> None:
    manager = bench.manager
    bench.add("team/a", seed=1)
    bench.add("team/b", seed=2)
    info = manager.load("mine", "team/a")
    assert manager.resolve("mine") == info.digest
    assert manager.load("mine", str(bench.root / "team" / "a")).digest == info.digest, "the same again is no conflict"
    assert refusal(manager.load, "mine", "team/b").code is Code.ADAPTER_NAME_TAKEN
    assert manager.resolve("mine") == info.digest
    assert manager.load("mine", "team/b", in_place=True).digest != info.digest
    assert refusal(manager.load, "x", "../outside").code is Code.ADAPTER_INVALID
    assert refusal(manager.load, "x", "team/nothing").code is Code.ADAPTER_NOT_FOUND
    for name in ("", "a\nb", "x" * 257, info.digest):
        assert refusal(manager.load, name, "team/a").code is Code.BAD_REQUEST
    assert [info.name for info in manager.adapters()] == ["mine"]


def test_an_invalid_adapter_does_not_become_visible(bench: Bench) -> None:
    write_folder(bench.root / "x" / "bad", plain_weights(TARGETS), plain_config(use_dora=True))
    assert refusal(bench.manager.load, "bad", "x/bad").code is Code.ADAPTER_INVALID
    assert bench.manager.adapters() == []


def test_an_operators_module_may_lie_anywhere(tmp_path: Path) -> None:
    folder = plain_adapter(tmp_path / "elsewhere" / "a", TARGETS)
    bench = Bench(tmp_path, adapters=None)
    info = bench.manager.load_module("mine", folder)
    assert bench.manager.resolve("mine") == info.digest
    assert refusal(bench.manager.load, "x", str(folder)).code is Code.BAD_REQUEST
    bench.manager.close()


def test_what_is_wrong_with_a_name_is_remembered_until_its_files_change(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.add("a")
    (folder / WEIGHTS_FILE).write_bytes(b"nonsense")
    first = refusal(bench.manager.resolve, "a")
    with monkeypatch.context() as patch:
        patch.setattr("openlora_engine.adapters.identifier.identify", lambda *_: pytest.fail("read again"))
        again = refusal(bench.manager.resolve, "a")
    assert (again.code, again.message) == (first.code, first.message) == (Code.ADAPTER_INVALID, first.message)
    assert again is not first, "an exception raised again and again keeps every traceback"
    bench.add("a")
    assert bench.manager.resolve("a")


def test_tiers_pins_and_eviction(bench: Bench) -> None:
    manager = bench.manager
    bench.add("a")
    digest = manager.resolve("a")
    assert manager.tier_of(digest) == "disk"
    bench.bring(digest)
    assert manager.tier_of(digest) == "host"
    manager.slots.load(2, digest)
    assert manager.tier_of(digest) == manager.adapters()[0].tier == "slot"
    assert refusal(manager.evict, digest).code is Code.ADAPTER_IN_USE
    manager.pin(digest)
    manager.slots.unload(2, digest)
    manager.host.release(digest)
    assert refusal(manager.evict, digest).code is Code.ADAPTER_IN_USE
    assert manager.adapters()[0].pinned
    manager.unpin(digest)
    manager.evict(digest)
    assert manager.tier_of(digest) == "disk"
    stats = manager.stats()
    assert (stats.num_registered, stats.num_pinned, stats.host.used_bytes) == (1, 0, 0)
    assert dict(stats.host.evictions) == {"unloaded": 1}


def test_a_mix_is_an_adapter_like_another(bench: Bench) -> None:
    manager = bench.manager
    for seed, name in enumerate(("a", "b")):
        bench.add(name, seed=seed)
    digest = manager.resolve_mix([("a", 0.5), ("b", -1.0)])
    assert manager.resolve_mix([(manager.resolve("b"), -1.0), ("a", 0.5)]) == digest
    assert manager.resolve(digest) == digest
    bench.bring(digest)
    manager.slots.load(0, digest)
    assert bench.tables.weights(0, 0).a.shape[0] == 3 * 2 * 4, "q, k and v of two adapters of rank 4"
    assert manager.resolve_mix([("a", 1.0)]) == manager.resolve("a")
    assert manager.resolve_mix([("a", 0.5)]) != manager.resolve("a")


def test_mixes_that_cannot_be_made_are_refused_before_anything_is_loaded(bench: Bench) -> None:
    manager = bench.manager
    for name, rank in (("a", 12), ("b", 6), ("c", 4)):
        bench.add(name, r=rank)
    error = refusal(manager.resolve_mix, [("a", 1.0), ("b", 1.0)])
    assert error.code is Code.RANK_TOO_LARGE
    assert "--max-lora-rank 18" in error.message
    assert manager.resolve_mix([("a", 1.0), ("c", 1.0)])
    assert refusal(manager.resolve_mix, [("b", 1.0), ("c", 1.0)], "ties").code is Code.MIX_INVALID
    assert refusal(manager.resolve_mix, [("b", 1.0), ("nobody", 1.0)]).code is Code.ADAPTER_NOT_FOUND
    assert refusal(manager.resolve_mix, [("b", 1.0), ("b", 1.0)]).code is Code.MIX_INVALID
    assert refusal(manager.resolve_mix, [("b", 1.0)] * 5).code is Code.MIX_INVALID
    assert refusal(manager.resolve_mix, []).code is Code.MIX_INVALID
    assert manager.stats().host.used_bytes == 0


def test_an_adapter_larger_than_host_memory_is_refused_naming_the_flag(tmp_path: Path) -> None:
    bench = Bench(tmp_path, host_cache=2_000)
    bench.add("team/a")
    error = refusal(bench.manager.load, "a", "team/a")
    assert error.code is Code.ADAPTER_TOO_LARGE
    assert "--host-cache" in error.message
    bench.manager.close()


def test_close_answers_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    for name in ("a", "b"):
        bench.add(name)
    reading, may_go_on = threading.Event(), threading.Event()

    def read_slowly(*_: object) -> None:
        reading.set()
        may_go_on.wait(30)
        raise EngineError(Code.ADAPTER_INVALID, "read")

    monkeypatch.setattr("openlora_engine.adapters.identifier.identify", read_slowly)
    found: list[Code] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(refusal(bench.manager.resolve, name).code))
        for name in ("a", "b")
    ]
    threads[0].start()
    assert reading.wait(30)
    threads[1].start()
    closing = threading.Thread(target=bench.manager.close)
    closing.start()
    may_go_on.set()
    for thread in (*threads, closing):
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(found) in ([Code.ADAPTER_INVALID, Code.DRAINING], [Code.ADAPTER_INVALID] * 2)


@pytest.mark.slow
def test_five_thousand_adapters_take_a_few_hundred_bytes_each(tmp_path: Path) -> None:
    """Registered and, what costs more, every digest known: the files are links to eight contents."""
    contents = [plain_adapter(tmp_path / "contents" / str(seed), TARGETS, r=1, seed=seed) for seed in range(8)]
    root = tmp_path / "root"
    root.mkdir()
    for number in range(5_000):
        folder = root / f"customer-{number:05}"
        folder.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE)[: 2 if number < 500 else 1]:
            (folder / name).hardlink_to(contents[number % 8] / name)
    Bench(root).manager.close()  # caches of modules and classes are filled
    tracemalloc.start()
    bench = Bench(root)
    listed, _ = tracemalloc.get_traced_memory()
    assert len(bench.manager.adapters()) == 5_000
    digests = {bench.manager.resolve(f"customer-{number:05}") for number in range(500)}
    known, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(digests) == 8
    assert listed < 5_000 * 600
    assert known - listed < 500 * 1_200
    bench.manager.close()


def test_work_on_a_worker_uses_one_core_and_others_keep_theirs() -> None:
    torch.set_num_threads(2)  # the fixture restores it
    worker = Worker("test")
    seen: list[int] = []
    done = threading.Event()
    worker.submit(lambda: seen.append(torch.get_num_threads()))
    worker.submit(lambda: 1 // 0)  # is logged, and the next piece is done
    worker.submit(done.set)
    assert done.wait(30)
    newcomer = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    newcomer.start()
    newcomer.join()
    worker.close()
    worker.submit(lambda: seen.append(-1))
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2
