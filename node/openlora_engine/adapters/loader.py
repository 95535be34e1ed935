"""Disk to host memory, off the step's thread: what is asked for, loading, ready or failed; mixes await their members.

One thread reads adapters, another makes mixes, since a mix may take seconds. A load is claimed by the scheduler, by a
pin, or by a mix under way; a claim becomes a hold on the cache's entry when the load is done, and a load that nobody
claims any more before it begins is called off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import NamedTuple, Protocol

from ..errors import Code, EngineError
from .blob import Blob, Storage
from .cache import HostCache
from .mixing import build_mix
from .plan import check_rank
from .problems import untraced
from .recipe import MixRecipe
from .registry import AdapterRegistry, not_found
from .source import load
from .worker import Worker

logger = logging.getLogger(__name__)


class LoadObserver(Protocol):
    """Hears of loads, on any thread."""

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        """An adapter came out of `tier`: `disk` or `mix` into host memory, `host` into a slot."""
        ...

    def adapter_load_failed(self, code: str) -> None:
        """An adapter could not be loaded."""
        ...


class Completion(NamedTuple):
    """The end of a load that the scheduler asked for and still waits for: ready, or failed with an error."""

    digest: str
    error: EngineError | None


@dataclass(eq=False, slots=True)
class _Job:
    """One load or mix under way. `nbytes` are reserved in the cache."""

    digest: str
    tier: str
    nbytes: int
    work: Callable[[], Blob] | None = None
    claims: int = 1
    members: tuple[str, ...] = ()
    num_missing: int = 0
    """Members still being loaded."""
    dependents: list[_Job] = field(default_factory=list)
    started: bool = False
    ended: bool = False
    """Done, failed or called off."""
    error: EngineError | None = None


class _NoRoom(Exception):
    """What is held leaves too little room now."""


class AdapterLoader:
    """The host tier as the scheduler sees it (`scheduling.slots.HostTier`), and what pins and mixes need of it.

    Thread-safe. The workers are their owner's to close. When a load ended, `wake` is called on the worker's thread;
    `take_completed` tells which.
    """

    def __init__(
        self,
        storage: Storage,
        cache: HostCache,
        registry: AdapterRegistry,
        disk: Worker,
        mixer: Worker,
        observer: LoadObserver,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._registry = registry
        self._observer = observer
        self._wake = wake
        self._lock = Lock()
        self._jobs: dict[str, _Job] = {}
        self._open: dict[str, _Job | None] = {}
        """Requests of the scheduler: the job each waits for, None once it is ready."""
        self._pins: set[str] = set()
        self._completed: list[_Job] = []
        self._disk = disk
        self._mixer = mixer
        self.num_hits = 0
        self.num_misses = 0

    # scheduling.slots.HostTier

    def is_ready(self, digest: str) -> bool:
        """Whether the whole adapter (or mix) is in host memory now. O(1)."""
        return digest in self._cache

    def request(self, digest: str) -> bool:
        """Keep `digest` in host memory until `release`, loading it if need be; False if there is no room now."""
        with self._lock:
            assert digest not in self._open, f"{digest} is requested twice"
            try:
                job = self._claim(digest)
            except _NoRoom:
                return False
            except EngineError as error:
                job = _Job(digest, "disk", 0, claims=0, ended=True, error=untraced(error))
                self._completed.append(job)
            self.num_hits += job is None
            self.num_misses += job is not None
            self._open[digest] = job
        if job is not None and job.error is not None:
            self._wake()
        return True

    def release(self, digest: str) -> None:
        """The scheduler needs `digest` no more."""
        with self._lock:
            job = self._open.pop(digest)
            if job is None or job.error is None:
                self._unclaim(digest)

    def take_completed(self) -> list[Completion]:
        """The requests whose loads ended since. Call on the step's thread; a failed one is forgotten."""
        with self._lock:
            ended, self._completed = self._completed, []
            completions = []
            for job in ended:
                # A request that was given up, and perhaps made anew, waits for another job or none.
                if self._open.get(job.digest) is job:
                    completions.append(Completion(job.digest, job.error))
                    if job.error is None:
                        self._open[job.digest] = None
                    else:
                        del self._open[job.digest]
            return completions

    # What others need.

    def pin(self, digest: str) -> None:
        """Keep an adapter in host memory until `unpin`, loading it if need be. Raises ADAPTER_NOT_FOUND, BUSY."""
        with self._lock:
            if digest in self._pins:
                return
            try:
                self._claim(digest)
            except _NoRoom:
                message = "all host memory is taken by adapters in use: raise --host-cache, or pin it later"
                raise EngineError(Code.BUSY, message, retry_after_s=1.0) from None
            self._pins.add(digest)

    def unpin(self, digest: str) -> None:
        """Let it be evicted again."""
        with self._lock:
            if digest in self._pins:
                self._pins.discard(digest)
                self._unclaim(digest)

    @property
    def num_pinned(self) -> int:
        """Adapters with a pin."""
        return len(self._pins)

    def is_pinned(self, digest: str) -> bool:
        """Whether a pin holds it (or waits for it)."""
        return digest in self._pins

    def check_size(self, nbytes: int, what: str = "the adapter") -> None:
        """Raise ADAPTER_TOO_LARGE for what host memory could never hold."""
        if nbytes > self._cache.capacity:
            raise EngineError(
                Code.ADAPTER_TOO_LARGE,
                f"{what} takes {nbytes:,} bytes of host memory, {self._cache.capacity:,} are set: raise --host-cache",
            )

    def check_mix(self, recipe: MixRecipe) -> None:
        """Raise MIX_INVALID, RANK_TOO_LARGE or ADAPTER_TOO_LARGE for a mix of known adapters that cannot be made."""
        members = [self.ranks_of(use.digest) for use in recipe.uses]
        ranks = recipe.ranks(members, self._storage.targets)
        check_rank(max(ranks), self._storage.max_lora_rank, "the mix's total rank")
        self.check_size(self.nbytes(ranks) + sum(map(self.nbytes, members)), "the mix with its members")

    def nbytes(self, ranks: tuple[int, ...]) -> int:
        """Host memory that an adapter of these ranks takes."""
        return self._storage.allocated_bytes(self._storage.place(ranks).nbytes)

    # Under the lock.

    def _claim(self, digest: str) -> _Job | None:
        """Claim an adapter: None if it is ready (and held now), else the job that makes it so."""
        if self._cache.hold(digest) is not None:
            return None
        job = self._jobs.get(digest)
        if job is not None:
            job.claims += 1
            return job
        recipe = self._registry.recipe(digest)
        return self._start_mix(digest, recipe) if recipe is not None else self._start_load(digest)

    def _unclaim(self, digest: str) -> None:
        job = self._jobs.get(digest)
        if job is None:
            self._cache.release(digest)
            return
        job.claims -= 1
        if not job.claims and not job.started:
            self._end(job)
            self._cache.cancel(job.nbytes)
            self._cache.take_evicted()

    def _load_job(self, digest: str) -> _Job:
        """A load that is not started and has no room yet. Raises ADAPTER_NOT_FOUND."""
        known = self._registry.known(digest)
        if known is None:
            raise not_found(digest)
        nbytes = self.nbytes(known.identity.ranks)
        self.check_size(nbytes)
        return _Job(digest, "disk", nbytes, partial(load, known.source, known.identity, self._storage))

    def _start_load(self, digest: str) -> _Job:
        job = self._load_job(digest)
        self._reserve(job.nbytes)
        self._submit(job)
        return job

    def _start_mix(self, digest: str, recipe: MixRecipe) -> _Job:
        """Claim all members and start the mix, or do nothing: mixes that hold some and await others could deadlock."""
        members = tuple(use.digest for use in recipe.uses)
        held = [member for member in members if self._cache.hold(member) is not None]
        try:
            loads = [self._load_job(member) for member in members if member not in held and member not in self._jobs]
            job = self._mix_job(digest, recipe, loads)
            self._reserve(job.nbytes + sum(load.nbytes for load in loads))
        except (EngineError, _NoRoom):
            for member in held:
                self._cache.release(member)
            raise
        for member in members:
            if member in self._jobs:
                self._jobs[member].claims += 1
        for load_job in loads:
            self._submit(load_job)
        pending = [self._jobs[member] for member in members if member not in held]
        for waited_for in pending:
            waited_for.dependents.append(job)
        job.num_missing = len(pending)
        self._jobs[digest] = job
        if not pending:
            self._mixer.submit(partial(self._run, job))
        return job

    def _mix_job(self, digest: str, recipe: MixRecipe, loads: list[_Job]) -> _Job:
        ranks = recipe.ranks([self.ranks_of(use.digest) for use in recipe.uses], self._storage.targets)
        nbytes = self.nbytes(ranks)
        self.check_size(nbytes + sum(load.nbytes for load in loads), "the mix with its members")
        members = tuple(use.digest for use in recipe.uses)
        return _Job(digest, "mix", nbytes, partial(self._mix, recipe), members=members)

    def ranks_of(self, digest: str) -> tuple[int, ...]:
        """Rank at each target of a known adapter. Raises ADAPTER_NOT_FOUND."""
        known = self._registry.known(digest)
        if known is None:
            raise not_found(digest)
        return known.identity.ranks

    def _reserve(self, nbytes: int) -> None:
        if not self._cache.reserve(nbytes):
            raise _NoRoom

    def _submit(self, job: _Job) -> None:
        self._jobs[job.digest] = job
        self._disk.submit(partial(self._run, job))

    def _end(self, job: _Job) -> None:
        """Take a job off the list; its claims on members end."""
        del self._jobs[job.digest]
        job.ended, job.work = True, None
        for member in job.members:
            self._unclaim(member)

    def _settle(self, job: _Job, blob: Blob | None) -> None:
        """A job ran: its claims become holds, or vanish; mixes that waited for it go on, or fail with it."""
        self._end(job)
        if blob is None:
            self._cache.cancel(job.nbytes)
            self._pins.discard(job.digest)
        else:
            self._cache.insert(job.digest, blob, job.nbytes, job.claims)
        self._completed.append(job)
        for mix in job.dependents:
            if mix.ended:
                continue
            if job.error is not None:
                mix.error = job.error
                mix.members = tuple(member for member in mix.members if member != job.digest)
                self._settle(mix, None)
                continue
            mix.num_missing -= 1
            if not mix.num_missing:
                self._mixer.submit(partial(self._run, mix))

    # On the workers' threads.

    def _run(self, job: _Job) -> None:
        with self._lock:
            work = job.work
            if job.ended or work is None:
                return
            job.started = True
        self._cache.take_evicted()
        began = time.perf_counter()
        blob = None
        try:
            blob = work()
        except EngineError as error:
            job.error = untraced(error)
        except MemoryError:
            job.error = EngineError(Code.OUT_OF_MEMORY, "no memory for the adapter: lower --host-cache")
        except Exception:
            logger.exception("loading %s failed", job.digest)
            job.error = EngineError(Code.ENGINE_FAILED, "the adapter could not be loaded; see the engine's log")
        seconds = time.perf_counter() - began
        with self._lock:
            self._settle(job, blob)
        if job.error is None:
            self._observer.adapter_loaded(job.tier, seconds)
        else:
            self._observer.adapter_load_failed(job.error.code.value)
        self._wake()

    def _mix(self, recipe: MixRecipe) -> Blob:
        return build_mix(recipe, [self._cache.blob(use.digest) for use in recipe.uses], self._storage)
