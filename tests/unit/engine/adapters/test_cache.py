"""The host cache against a model of it, by random programs: bytes bounded, holds respected, least recent first."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from openlora_engine.adapters.blob import Blob, Storage
from openlora_engine.adapters.cache import HostCache
from support.engine_adapters import llama_targets

CAPACITY = 100
STORAGE = Storage(llama_targets(num_layers=1), torch.float16)
BLOB = Blob(STORAGE.place((0,) * len(STORAGE.targets)), torch.float16, torch.empty(0, dtype=torch.uint8))


class CacheMachine(RuleBasedStateMachine):
    promises = Bundle("promises")

    def __init__(self) -> None:
        super().__init__()
        self.cache = HostCache(CAPACITY)
        self.sizes: dict[str, int] = {}
        self.holds: dict[str, int] = {}
        self.doomed: set[str] = set()
        self.order: list[str] = []
        """Unheld, least recently used first."""
        self.promised = 0
        self.next_name = 0

    @rule(target=promises, nbytes=st.integers(0, CAPACITY + 10))
    def reserve(self, nbytes: int) -> int:
        held = sum(size for name, size in self.sizes.items() if self.holds[name])
        fits = held + self.promised + nbytes <= CAPACITY
        assert self.cache.reserve(nbytes) == fits
        if not fits:
            return -1
        while sum(self.sizes.values()) + self.promised + nbytes > CAPACITY:
            self.forget(self.order[0])
        self.promised += nbytes
        return nbytes

    @rule(nbytes=consumes(promises))
    def cancel(self, nbytes: int) -> None:
        if nbytes >= 0:
            self.cache.cancel(nbytes)
            self.promised -= nbytes

    @rule(nbytes=consumes(promises), holds=st.integers(0, 2))
    def insert(self, nbytes: int, holds: int) -> None:
        if nbytes < 0:
            return
        name = f"adapter {self.next_name}"
        self.next_name += 1
        self.cache.insert(name, BLOB, nbytes, holds)
        self.promised -= nbytes
        self.sizes[name], self.holds[name] = nbytes, holds
        if not holds:
            self.order.append(name)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sizes)))
        assert self.cache.hold(name) is BLOB
        self.holds[name] += 1
        if name in self.order:
            self.order.remove(name)

    @rule()
    def hold_what_is_absent(self) -> None:
        assert self.cache.hold("absent") is None

    @precondition(lambda self: any(self.holds.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, holds in self.holds.items() if holds)))
        self.cache.release(name)
        self.holds[name] -= 1
        if not self.holds[name]:
            self.order.append(name)
            if name in self.doomed:
                self.forget(name)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sizes)))
        self.cache.discard(name)
        if self.holds[name]:
            self.doomed.add(name)
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        self.order.remove(name)
        self.doomed.discard(name)
        del self.sizes[name], self.holds[name]

    @invariant()
    def agrees(self) -> None:
        self.cache.check_integrity()
        assert self.cache.used_bytes == sum(self.sizes.values()) + self.promised <= CAPACITY
        assert all(name in self.cache for name in self.sizes)
        assert len(self.cache) == len(self.sizes)
        assert all(self.cache.num_holds(name) == holds for name, holds in self.holds.items())


CacheMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestCache = CacheMachine.TestCase
