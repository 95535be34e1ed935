"""Who is served next: virtual token counters (VTC, arXiv 2401.00588) of tenants, and of adapters within a tenant.

Knows no queue and no slot: it is told who has sequences waiting, and what was computed for whom.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .heaps import LazyHeap
from .sequence import Sequence

K = TypeVar("K", bound=Hashable)

MAX_REMEMBERED = 4096
"""Idle clients whose debt is remembered; beyond it the smallest debts are forgiven."""


class VirtualTokenCounters(Generic[K]):
    """Service received by each client, in weighted tokens; the backlogged client of the least counter is next.

    A client that had nothing waiting returns with at least the least counter of those that wait (or of the one that
    waited last), so idle time earns no credit. Service it got beyond that stays counted: leaving does not clear a debt.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._counters: dict[K, float] = {}
        self._joined: dict[K, int] = {}
        """Backlogged client -> the number of its arrival, which orders equal counters."""
        self._backlog: LazyHeap[K] = LazyHeap(self._counters.__getitem__)
        self._idle: LazyHeap[K] = LazyHeap(self._counters.__getitem__)
        self._max_remembered = max_remembered
        self._last_floor = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        """Clients remembered."""
        return len(self._counters)

    def __getitem__(self, client: K) -> float:
        """The counter; the floor for a client not remembered."""
        counter = self._counters.get(client)
        return self.floor if counter is None else counter

    @property
    def floor(self) -> float:
        """What a returning client is lifted to; never falls."""
        least = self._backlog.peek()
        return self._last_floor if least is None else self._counters[least]

    def rank(self, client: K) -> tuple[float, int]:
        """Order among backlogged clients."""
        return self._counters[client], self._joined[client]

    def join(self, client: K) -> None:
        """`client` has something waiting, after a time of having nothing."""
        self._counters[client] = max(self._counters.get(client, 0.0), self.floor)
        self._arrivals += 1
        self._joined[client] = self._arrivals
        self._idle.discard(client)
        self._backlog.push(client)

    def leave(self, client: K) -> None:
        """`client` has nothing waiting any more; it may still run."""
        self._last_floor = max(self._last_floor, self.floor)
        self._backlog.discard(client)
        del self._joined[client]
        if not self._backlog:
            self._last_floor = max(self._last_floor, self._counters[client])

    def charge(self, client: K, tokens: float) -> None:
        """Count service; whether anything waits does not matter, but the client must not be retired."""
        self._counters[client] += tokens

    def retire(self, client: K) -> None:
        """`client` has nothing waiting and nothing running. Clients that the floor has passed are forgotten: they would
        be lifted to it anyway."""
        self._idle.push(client)
        floor = self.floor
        while (least := self._idle.peek()) is not None:
            if self._counters[least] > floor and len(self._idle) <= self._max_remembered:
                break
            self._idle.discard(least)
            del self._counters[least]


@dataclass(frozen=True)
class TokenWeights:
    """What a token counts: an output token costs a step of its own, a prompt token shares one (VTC's weights)."""

    prompt: float = 1.0
    output: float = 2.0


class FairShare:
    """Two levels of counters. A sequence is ranked by its tenant's, then by its adapter's within the tenant."""

    def __init__(self, weights: TokenWeights | None = None) -> None:
        self.weights = weights or TokenWeights()
        self.tenants: VirtualTokenCounters[str] = VirtualTokenCounters()
        self._adapters: dict[str, VirtualTokenCounters[str | None]] = {}
        self._live: dict[str, dict[str | None, int]] = {}
        """Tenant -> adapter -> live sequences."""

    def adapters_of(self, tenant: str) -> VirtualTokenCounters[str | None]:
        """The counters within a tenant that has live sequences."""
        return self._adapters[tenant]

    def enter(self, seq: Sequence) -> None:
        """A sequence is live."""
        self._adapters.setdefault(seq.tenant, VirtualTokenCounters())
        adapters = self._live.setdefault(seq.tenant, {})
        adapters[seq.adapter] = adapters.get(seq.adapter, 0) + 1

    def exit(self, seq: Sequence) -> None:
        """A sequence ended; it waits nowhere."""
        adapters = self._live[seq.tenant]
        adapters[seq.adapter] -= 1
        if adapters[seq.adapter]:
            return
        del adapters[seq.adapter]
        self._adapters[seq.tenant].retire(seq.adapter)
        if not adapters:
            del self._live[seq.tenant], self._adapters[seq.tenant]
            self.tenants.retire(seq.tenant)

    def charge_prompt(self, seq: Sequence) -> None:
        """Count what admitting `seq` will compute: neither cached tokens nor those charged before a preemption."""
        tokens = seq.num_tokens - max(seq.num_charged_tokens, seq.num_computed_tokens)
        if tokens > 0:
            self._charge(seq, tokens * self.weights.prompt)
            seq.num_charged_tokens = seq.num_tokens

    def charge_output(self, seq: Sequence) -> None:
        """Count one sampled token."""
        self._charge(seq, self.weights.output)
        seq.num_charged_tokens = seq.num_tokens

    def _charge(self, seq: Sequence, tokens: float) -> None:
        self.tenants.charge(seq.tenant, tokens)
        self._adapters[seq.tenant].charge(seq.adapter, tokens)
