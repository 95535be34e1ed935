"""What a slot's change of tenant does: on the CPU to the tables; on CUDA, played by fakes, to holds and copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from openlora_engine.adapters.blob import Storage
from openlora_engine.adapters.cache import HostCache
from openlora_engine.adapters.device import CudaSlots, DeviceSlots, device_slots, slot_bytes
from openlora_engine.adapters.folder import AdapterRoot
from openlora_engine.adapters.source import Source, identify, load
from openlora_kernels.lora import LoraTables, Segments, reference
from support.engine_adapters import llama_targets, plain_adapter

STORAGE = Storage(llama_targets(num_layers=1), torch.float32, max_lora_rank=8)


class Observer:
    def __init__(self) -> None:
        self.loads = 0

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        assert tier == "host"
        self.loads += 1

    def adapter_load_failed(self, code: str) -> None:
        raise AssertionError(code)


@pytest.fixture
def cache(tmp_path: Path) -> HostCache:
    """Adapters "0" and "1", of ranks 3 and 5."""
    cache = HostCache(1 << 20)
    for name, rank in (("0", 3), ("1", 5)):
        source = Source(AdapterRoot(plain_adapter(tmp_path / name, STORAGE.targets, r=rank, seed=rank)), ())
        blob = load(source, identify(source, STORAGE), STORAGE)
        assert cache.reserve(blob.placement.nbytes)
        cache.insert(name, blob, blob.placement.nbytes, holds=0)
    return cache


def output(tables: LoraTables, slot: int) -> torch.Tensor:
    group = STORAGE.targets.groups[0]
    y = torch.zeros(1, group.columns[-1])
    reference(y, torch.ones(1, group.in_features), Segments.of([(slot, [0])]), tables, 0)
    return y


def tables() -> LoraTables:
    return LoraTables(STORAGE.targets.groups, 3, STORAGE.dtype)


def test_a_slot_points_into_host_memory_and_holds_it(cache: HostCache) -> None:
    observer = Observer()
    slots = device_slots(tables(), cache, observer, STORAGE)
    slots.load(2, "0")
    assert slots.is_loaded(2, "0")
    assert not slots.is_loaded(2, "1")
    assert cache.num_holds("0") == 1
    first = output(slots.tables, 2)
    assert bool(first.any())
    slots.unload(2, "0")
    assert cache.num_holds("0") == 0
    assert not output(slots.tables, 2).any()
    slots.load(2, "1")
    assert not torch.equal(output(slots.tables, 2), first)
    assert observer.loads == 2
    assert slots.device_bytes() == 0


class FakeCuda:
    """Events that are done when the test says so, and the order of what was asked of streams."""

    def __init__(self) -> None:
        self.events: list[FakeEvent] = []
        self.waits = 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.device = device

            def wait_stream(self, other: object) -> None:
                cuda.waits += 1

        class Event(FakeEvent):
            def record(self, stream: object) -> None:
                cuda.events.append(self)

        @contextmanager
        def stream(_: object) -> Iterator[None]:
            yield

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: device)


class FakeEvent:
    done = False

    def query(self) -> bool:
        return self.done


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    return cuda


def test_a_copied_slot_is_loaded_when_its_copy_is_done_and_then_lets_host_memory_go(
    cache: HostCache, cuda: FakeCuda
) -> None:
    slots = CudaSlots(tables(), cache, Observer(), STORAGE)
    assert slots.device_bytes() == 3 * slot_bytes(STORAGE)
    slots.load(0, "0")
    assert not slots.is_loaded(0, "0")
    assert cache.num_holds("0") == 1
    assert cuda.waits == 1, "the copy waits for kernels that may read the slot"
    cuda.events[0].done = True
    assert slots.is_loaded(0, "0")
    assert cache.num_holds("0") == 0
    on_cpu = DeviceSlots(tables(), cache, Observer())
    on_cpu.load(0, "0")
    assert torch.equal(output(slots.tables, 0), output(on_cpu.tables, 0))


def test_a_slot_vacated_during_its_copy_keeps_host_memory_until_the_copy_is_done(
    cache: HostCache, cuda: FakeCuda
) -> None:
    slots = CudaSlots(tables(), cache, Observer(), STORAGE)
    slots.load(0, "0")
    slots.unload(0, "0")
    slots.load(0, "1")
    assert cache.num_holds("0") == 1
    cuda.events[1].done = True
    assert slots.is_loaded(0, "1")
    assert (cache.num_holds("0"), cache.num_holds("1")) == (1, 0)
    cuda.events[0].done = True
    assert slots.is_loaded(0, "1")
    assert cache.num_holds("0") == 0
    cache.check_integrity()
