"""The device's side of the slots: what a slot's change of tenant does to the kernels' tables, on the CPU and on CUDA.

Implements `scheduling.slots.SlotLoader`. Called on the step's thread only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from openlora_kernels.lora import LoraTables

from .blob import Blob, Storage
from .cache import HostCache
from .loader import LoadObserver


class DeviceSlots:
    """Slots that point straight into host memory: on the CPU nothing is copied.

    A slot keeps its own hold on the blob, so that it cannot be evicted from under the kernels.
    """

    def __init__(self, tables: LoraTables, cache: HostCache, observer: LoadObserver) -> None:
        self.tables = tables
        self.resident: dict[str, int] = {}
        """Digest -> slot."""
        self._cache = cache
        self._observer = observer

    def load(self, slot: int, digest: str) -> None:
        """Let `slot` serve `digest`, which is in host memory. Microseconds."""
        began = time.perf_counter()
        blob = self._cache.hold(digest)
        assert blob is not None, f"{digest} is not in host memory"
        self._place(slot, digest, blob)
        self.resident[digest] = slot
        self._observer.adapter_loaded("host", time.perf_counter() - began)

    def is_loaded(self, slot: int, digest: str) -> bool:
        """Whether a step launched now may read `slot`."""
        return self.resident.get(digest) == slot

    def unload(self, slot: int, digest: str) -> None:
        """`slot` serves `digest` no more."""
        self.tables.clear(slot)
        del self.resident[digest]
        self._vacate(slot, digest)

    def device_bytes(self) -> int:
        """Device memory that adapters take; 0 where slots point into host memory."""
        return 0

    def _place(self, slot: int, digest: str, blob: Blob) -> None:
        self.tables.set(slot, blob.address, blob.placement.layout)

    def _vacate(self, slot: int, digest: str) -> None:
        self._cache.release(digest)


@dataclass(frozen=True, eq=False)
class _Copy:
    """A copy under way, and the host blob that it reads."""

    digest: str
    event: torch.cuda.Event

    def is_done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaSlots(DeviceSlots):
    """One region of a device arena a slot, filled by one asynchronous copy of the whole blob on a stream of its own.

    Host memory is let go when the copy is done. Not run on a device here.
    """

    def __init__(self, tables: LoraTables, cache: HostCache, observer: LoadObserver, storage: Storage) -> None:
        super().__init__(tables, cache, observer)
        self._slot_bytes = slot_bytes(storage)
        self._arena: Tensor = torch.empty(tables.num_slots, self._slot_bytes, dtype=torch.uint8, device=tables.device)
        self._stream = torch.cuda.Stream(tables.device)  # type: ignore[no-untyped-call]
        self._copies: dict[int, _Copy] = {}
        """Slot -> its copy under way."""
        self._orphans: list[_Copy] = []
        """Copies whose slot was vacated before they were done."""

    def is_loaded(self, slot: int, digest: str) -> bool:
        """Whether the slot's copy is done."""
        self._let_go()
        return super().is_loaded(slot, digest) and slot not in self._copies

    def device_bytes(self) -> int:
        """The arena's size."""
        return self._arena.nbytes

    def _place(self, slot: int, digest: str, blob: Blob) -> None:
        region = self._arena[slot, : blob.placement.nbytes]
        # Kernels launched before may still read what the slot held; copies into one slot follow each other.
        self._stream.wait_stream(torch.cuda.current_stream(self.tables.device))
        with torch.cuda.stream(self._stream):
            region.copy_(blob.data[: blob.placement.nbytes], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._copies[slot] = _Copy(digest, event)
        self.tables.set(slot, region.data_ptr(), blob.placement.layout)

    def _vacate(self, slot: int, digest: str) -> None:
        copy = self._copies.pop(slot, None)
        if copy is not None:
            self._orphans.append(copy)
        self._let_go()

    def _let_go(self) -> None:
        """Give back the host memory of copies that are done."""
        done = [copy for copy in (*self._copies.values(), *self._orphans) if copy.is_done()]
        self._copies = {slot: copy for slot, copy in self._copies.items() if copy not in done}
        self._orphans = [copy for copy in self._orphans if copy not in done]
        for copy in done:
            self._cache.release(copy.digest)


def slot_bytes(storage: Storage) -> int:
    """Device memory of one slot: room for the highest rank at every target."""
    return storage.place((storage.max_lora_rank,) * len(storage.targets)).nbytes


def device_slots(tables: LoraTables, cache: HostCache, observer: LoadObserver, storage: Storage) -> DeviceSlots:
    """The slots of the tables' device."""
    if tables.device.type == "cuda":
        return CudaSlots(tables, cache, observer, storage)
    return DeviceSlots(tables, cache, observer)
