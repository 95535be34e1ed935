"""Everything the engine asks of adapters, in one place: names to digests, host memory, slots, pins, mixes. Thin.

`lookup` and all that follows `host` are for the engine's threads and never wait for a disk; `resolve`, `resolve_mix`
and `load` may read files: call them off the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openlora_kernels.lora import LoraTables

from ..errors import Code, EngineError
from .blob import Storage
from .cache import CacheStats, HostCache
from .device import DeviceSlots, device_slots
from .digest import is_digest
from .folder import AdapterRoot
from .identifier import Identifier
from .loader import AdapterLoader, Completion, LoadObserver
from .problems import untraced
from .recipe import AdapterUse, MixRecipe
from .registry import AdapterRegistry, NamedAdapter, not_found
from .source import Source
from .worker import Worker


@dataclass(frozen=True)
class AdapterInfo:
    """A name and what is known of it. Digest "", rank 0 and nbytes 0: nobody has asked for it yet."""

    name: str
    digest: str
    rank: int
    nbytes: int
    created: int
    tier: str
    """Best place that it can be served from now: slot, host or disk."""
    pinned: bool


@dataclass(frozen=True)
class AdapterStats:
    """Levels and totals of the adapter tiers."""

    num_registered: int
    num_pinned: int
    host: CacheStats
    host_hits: int
    host_misses: int
    device_bytes: int


class AdapterManager:
    """Adapters of one base. `host` is the scheduler's HostTier, `slots` its SlotLoader.

    `on_forget(digest)` is called, on any thread and under no lock, when the last name of a digest has gone (unloaded,
    or its files were replaced): nobody can ask for it any more, so its slot need not stay pinned.
    """

    def __init__(
        self,
        storage: Storage,
        tables: LoraTables,
        observer: LoadObserver,
        *,
        adapters: Path | None = None,
        host_cache: int = 4 << 30,
        max_mix_adapters: int = 4,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.on_forget: Callable[[str], None] = lambda _digest: None
        self._root = AdapterRoot(adapters) if adapters is not None else None
        self._max_mix_adapters = max_mix_adapters
        self._registry = AdapterRegistry(self._root, now)
        self._registry.scan()
        self._cache = HostCache(host_cache)
        self._disk = Worker("adapter-loader")
        self._mixer = Worker("adapter-mixer")
        self._identifier = Identifier(storage, self._disk)
        self.host = AdapterLoader(storage, self._cache, self._registry, self._disk, self._mixer, observer, wake)
        self.slots: DeviceSlots = device_slots(tables, self._cache, observer, storage)

    def close(self) -> None:
        """Finish what is being read, drop the rest."""
        self._disk.close()
        self._mixer.close()
        self._identifier.close()

    def lookup(self, name: str) -> str | None:
        """The digest of a name or digest, if telling it takes no reading; None if it does. Raises as `resolve`."""
        if is_digest(name):
            self.check_known(name)
            return name
        return self._current(self._registry.find(name))

    def check_known(self, digest: str) -> None:
        """Raise ADAPTER_NOT_FOUND for a digest that no name stands for, and no mix that was asked for."""
        if self._registry.known(digest) is None and self._registry.recipe(digest) is None:
            raise not_found(digest)

    def resolve(self, name: str) -> str:
        """The digest of an alias or digest, as its files are now.

        Raises ADAPTER_NOT_FOUND, ADAPTER_INVALID, ADAPTER_MISMATCH, ADAPTER_TOO_LARGE, RANK_TOO_LARGE.
        """
        return self.lookup(name) or self._identify(self._registry.find(name))

    def resolve_mix(
        self,
        uses: Sequence[tuple[str, float]],
        method: str = "cat",
        *,
        density: float | None = None,
        majority_sign_method: str | None = None,
        svd_rank: int | None = None,
        seed: int | None = None,
    ) -> str:
        """The digest of a mix of (alias or digest, weight); of the adapter itself where it is one of weight 1.

        Raises as `resolve`, and MIX_INVALID, RANK_TOO_LARGE (total rank), ADAPTER_TOO_LARGE (with its members).
        """
        members = [AdapterUse(self.resolve(name), weight) for name, weight in uses[: self._max_mix_adapters + 1]]
        if len(uses) == 1 and members[0].weight == 1:
            return members[0].digest
        recipe = MixRecipe.of(
            members,
            method,
            density=density,
            majority_sign_method=majority_sign_method,
            svd_rank=svd_rank,
            seed=seed,
            max_adapters=self._max_mix_adapters,
        )
        self.host.check_mix(recipe)
        return self._registry.put_recipe(recipe)

    def load(self, name: str, path: str, *, in_place: bool = False) -> AdapterInfo:
        """Let `name` mean the folder `path` below the adapters' folder, validated first.

        Raises as `resolve`, and ADAPTER_NAME_TAKEN, BAD_REQUEST (the name).
        """
        if self._root is None:
            raise EngineError(Code.BAD_REQUEST, "no folder of adapters is set: start the engine with --adapters")
        return self._put(name, Source(self._root, self._root.parts_of(path)), in_place=in_place)

    def load_module(self, name: str, folder: Path) -> AdapterInfo:
        """Let `name` mean a folder that the operator named (--lora-modules); it may lie anywhere."""
        return self._put(name, Source(AdapterRoot(folder), ()), in_place=False)

    def unload(self, name: str) -> None:
        """Forget a name. What runs or waits on its digest ends as it began. Raises ADAPTER_NOT_FOUND."""
        self._registry.find(name)
        self._forget(self._registry.remove(name))

    def pin(self, digest: str) -> None:
        """Keep an adapter in host memory; its slot is the pool's to pin. Raises ADAPTER_NOT_FOUND, BUSY."""
        self.host.pin(digest)

    def unpin(self, digest: str) -> None:
        """Let it be evicted again."""
        self.host.unpin(digest)

    def evict(self, digest: str) -> None:
        """Drop the host copy of an adapter that nothing holds. Raises ADAPTER_IN_USE."""
        if holds := self._cache.num_holds(digest):
            raise EngineError(Code.ADAPTER_IN_USE, f"{digest} is held {holds} times: wait until what runs on it ended")
        self._cache.discard(digest)

    def take_completed(self) -> list[Completion]:
        """Loads that ended since: pass them to the scheduler, on the step's thread."""
        return self.host.take_completed()

    def tier_of(self, digest: str) -> str:
        """Where an adapter is found right now: slot, host or disk."""
        if digest in self.slots.resident:
            return "slot"
        return "host" if digest in self._cache else "disk"

    def adapters(self) -> list[AdapterInfo]:
        """All names, sorted."""
        return [self._info(named) for named in self._registry.names()]

    def stats(self) -> AdapterStats:
        """Levels and totals now."""
        return AdapterStats(
            num_registered=len(self._registry),
            num_pinned=self.host.num_pinned,
            host=self._cache.stats(),
            host_hits=self.host.num_hits,
            host_misses=self.host.num_misses,
            device_bytes=self.slots.device_bytes(),
        )

    def check_integrity(self) -> None:
        """Assert that bytes and holds agree; for tests and for idle moments."""
        self._cache.check_integrity()

    def _current(self, named: NamedAdapter) -> str | None:
        """The digest of a name if its files are those that were hashed. Raises what was found wrong with them."""
        stamp = named.source.stamp()
        if named.error is not None and stamp == named.error_stamp:
            raise untraced(named.error)
        if named.identity is not None and stamp == named.identity.stamp:
            return named.identity.digest
        return None

    def _identify(self, named: NamedAdapter) -> str:
        stamp = named.source.stamp()
        try:
            identity = self._identifier.identify(named.source).result()
        except EngineError as error:
            self._registry.fail(named, stamp, error)
            raise untraced(error) from None
        self._forget(self._registry.settle(named, identity))
        return identity.digest

    def _put(self, name: str, source: Source, *, in_place: bool) -> AdapterInfo:
        identity = self._identifier.identify(source).result()
        self.host.check_size(self.host.nbytes(identity.ranks))
        named, gone = self._registry.put(name, source, identity, in_place=in_place)
        self._forget(gone)
        return self._info(named)

    def _forget(self, digest: str | None) -> None:
        if digest is not None:
            self.host.unpin(digest)
            self._cache.discard(digest)
            self.on_forget(digest)

    def _info(self, named: NamedAdapter) -> AdapterInfo:
        identity = named.identity
        if identity is None:
            return AdapterInfo(named.name, "", 0, 0, named.created, "disk", pinned=False)
        return AdapterInfo(
            name=named.name,
            digest=identity.digest,
            rank=max(identity.ranks),
            nbytes=self.host.nbytes(identity.ranks),
            created=named.created,
            tier=self.tier_of(identity.digest),
            pinned=self.host.is_pinned(identity.digest),
        )
