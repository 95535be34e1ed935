"""The waiting sequences: one line a (tenant, adapter), sorted into lanes by what their adapter still needs.

Only ranks are decided here (fairness, age); whether the first in rank can be admitted is the scheduler's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from .fairness import FairShare
from .heaps import LazyHeap
from .sequence import Sequence


class Lane(Enum):
    """What the sequences of one adapter wait for. Sequences of the base model are always RESIDENT."""

    NO_HOST_ROOM = "no room in host memory: ask again"
    LOADING = "the adapter is being loaded into host memory"
    ABSENT = "a slot"
    HELD = "its own slot drains for another adapter, or another's drains for it"
    RESIDENT = "nothing but a seat and memory"


RANKED = (Lane.NO_HOST_ROOM, Lane.ABSENT, Lane.RESIDENT)
"""Lanes that are picked from; in the others, a digest's next event is what counts."""


class Flow:
    """The waiting sequences of one adapter of one tenant, oldest first. Never empty while in the queue."""

    __slots__ = ("adapter", "head", "sequences", "tenant")

    def __init__(self, tenant: str, adapter: str | None) -> None:
        self.tenant = tenant
        self.adapter = adapter
        self.sequences: LazyHeap[Sequence] = LazyHeap(_order)
        self.head: Sequence | None = None


class _LaneIndex:
    """The flows of one ranked lane, by fairness (tenant, then adapter) and by the age of their heads."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._tenants: LazyHeap[str] = LazyHeap(share.tenants.rank)
        self._flows: dict[str, LazyHeap[Flow]] = {}
        self._ages: LazyHeap[Flow] = LazyHeap(_age)

    def __len__(self) -> int:
        return len(self._ages)

    def add(self, flow: Flow) -> None:
        """Enter a flow, or rank it anew after its head changed."""
        flows = self._flows.get(flow.tenant)
        if flows is None:
            counters = self._share.adapters_of(flow.tenant)
            flows = self._flows[flow.tenant] = LazyHeap(lambda flow: counters.rank(flow.adapter))
            self._tenants.push(flow.tenant)
        if flow not in flows:
            flows.push(flow)
        self._ages.push(flow)

    def remove(self, flow: Flow) -> None:
        """Take a flow out."""
        flows = self._flows[flow.tenant]
        flows.discard(flow)
        if not flows:
            del self._flows[flow.tenant]
            self._tenants.discard(flow.tenant)
        self._ages.discard(flow)

    def fairest(self) -> Flow | None:
        """The flow that fairness serves next."""
        tenant = self._tenants.peek()
        return None if tenant is None else self._flows[tenant].peek()

    def oldest(self) -> Flow | None:
        """The flow whose head is longest in line."""
        return self._ages.peek()


class WaitingQueue:
    """Push, discard and pick in O(log n); moving an adapter between lanes costs O(log n) a tenant that waits for it."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._lanes = {lane: _LaneIndex(share) for lane in RANKED}
        self._flows: dict[str | None, dict[str, Flow]] = {}
        """Adapter -> tenant -> flow."""
        self._lane_of: dict[str | None, Lane] = {}
        self._num_flows: dict[str, int] = {}
        """Tenant -> its flows: a tenant with any is backlogged."""
        self._num_sequences = 0
        self._last_place = 0

    def __len__(self) -> int:
        """Sequences waiting."""
        return self._num_sequences

    def __contains__(self, seq: Sequence) -> bool:
        """Whether `seq` waits here."""
        flow = self._flows.get(seq.adapter, {}).get(seq.tenant)
        return flow is not None and seq in flow.sequences

    def __iter__(self) -> Iterator[Sequence]:
        """All waiting sequences, by adapter."""
        for adapter in self._flows:
            yield from self.of_adapter(adapter)

    def of_adapter(self, adapter: str | None) -> list[Sequence]:
        """The sequences that wait for or with one adapter."""
        return [seq for flow in self._flows.get(adapter, {}).values() for seq in flow.sequences]

    def adapters(self, lanes: Iterable[Lane]) -> list[str]:
        """Digests waited for, in any of `lanes`. O(adapters)."""
        chosen = frozenset(lanes)
        return [adapter for adapter, lane in self._lane_of.items() if adapter is not None and lane in chosen]

    def count(self, lane: Lane) -> int:
        """Flows in a ranked lane."""
        return len(self._lanes[lane])

    def has_adapter(self, adapter: str | None) -> bool:
        """Whether any sequence waits for or with this adapter."""
        return adapter in self._flows

    def lane_of(self, adapter: str | None) -> Lane:
        """The lane of an adapter that sequences wait for or with."""
        return self._lane_of[adapter]

    def push(self, seq: Sequence, lane: Lane) -> None:
        """Add a sequence; `lane` is that of its adapter."""
        flows = self._flows.get(seq.adapter)
        if flows is None:
            flows = self._flows[seq.adapter] = {}
            self._lane_of[seq.adapter] = lane
        assert self._lane_of[seq.adapter] is lane, f"{seq.adapter} is in two lanes"
        flow = flows.get(seq.tenant)
        if flow is None:
            flow = flows[seq.tenant] = Flow(seq.tenant, seq.adapter)
            self._join(flow)
        flow.sequences.push(seq)
        self._num_sequences += 1
        self._refresh(flow, lane)

    def take_place(self, seq: Sequence, now: float) -> None:
        """Give `seq`, queued or about to be, the last place in line."""
        self._last_place += 1
        seq.order = self._last_place
        seq.waiting_since = now

    def to_end_of_line(self, adapter: str, now: float) -> None:
        """Let all that wait with this adapter begin to wait anew, in their order. Ranks only grow: no heap changes."""
        for seq in sorted(self.of_adapter(adapter), key=_order):
            self.take_place(seq, now)

    def discard(self, seq: Sequence) -> bool:
        """Take a sequence out; False if it does not wait here."""
        flows = self._flows.get(seq.adapter, {})
        flow = flows.get(seq.tenant)
        if flow is None or not flow.sequences.discard(seq):
            return False
        self._num_sequences -= 1
        lane = self._lane_of[seq.adapter]
        if flow.sequences:
            self._refresh(flow, lane)
            return True
        if lane in self._lanes:
            self._lanes[lane].remove(flow)
        self._leave(flow)
        del flows[seq.tenant]
        if not flows:
            del self._flows[seq.adapter], self._lane_of[seq.adapter]
        return True

    def move(self, adapter: str, lane: Lane) -> None:
        """The adapter's sequences now wait for something else."""
        old = self._lane_of.get(adapter)
        if old is None or old is lane:
            return
        self._lane_of[adapter] = lane
        for flow in self._flows[adapter].values():
            if old in self._lanes:
                self._lanes[old].remove(flow)
            if lane in self._lanes:
                self._lanes[lane].add(flow)

    def fairest(self, lanes: Iterable[Lane]) -> Sequence | None:
        """The sequence that fairness serves next: least served tenant, its least served adapter, first come."""
        flows = [flow for lane in lanes if (flow := self._lanes[lane].fairest()) is not None]
        return min(flows, key=self._fair_rank).head if flows else None

    def oldest(self, lanes: Iterable[Lane]) -> Sequence | None:
        """The sequence longest in line; it is at the head of its flow."""
        flows = [flow for lane in lanes if (flow := self._lanes[lane].oldest()) is not None]
        return min(flows, key=_age).head if flows else None

    def first_of(self, adapter: str) -> Sequence | None:
        """The sequence of this adapter that is longest in line, whatever its lane."""
        flows = self._flows.get(adapter)
        return min(flows.values(), key=_age).head if flows else None

    def check_integrity(self) -> None:
        """Assert that lanes, flows and counts agree."""
        assert self._num_sequences == sum(1 for _ in self), "sequences miscounted"
        flows = [flow for flows in self._flows.values() for flow in flows.values()]
        assert all(flow.head is flow.sequences.peek() and flow.head is not None for flow in flows), (
            "a head is not first"
        )
        assert set(self._lane_of) == set(self._flows), "lanes and flows name different adapters"
        for lane, index in self._lanes.items():
            expected = sum(len(self._flows[adapter]) for adapter, its in self._lane_of.items() if its is lane)
            assert len(index) == expected, f"{lane} holds another's flows"
        assert sum(self._num_flows.values()) == len(flows), "backlogs miscounted"

    def _fair_rank(self, flow: Flow) -> tuple[tuple[float, int], tuple[float, int]]:
        return self._share.tenants.rank(flow.tenant), self._share.adapters_of(flow.tenant).rank(flow.adapter)

    def _refresh(self, flow: Flow, lane: Lane) -> None:
        """Rank the flow anew if it is new in its lane or its head changed."""
        head = flow.sequences.peek()
        if head is not flow.head:
            flow.head = head
            if lane in self._lanes:
                self._lanes[lane].add(flow)

    def _join(self, flow: Flow) -> None:
        count = self._num_flows.get(flow.tenant, 0)
        self._num_flows[flow.tenant] = count + 1
        if not count:
            self._share.tenants.join(flow.tenant)
        self._share.adapters_of(flow.tenant).join(flow.adapter)

    def _leave(self, flow: Flow) -> None:
        self._share.adapters_of(flow.tenant).leave(flow.adapter)
        count = self._num_flows[flow.tenant] - 1
        self._num_flows[flow.tenant] = count
        if not count:
            del self._num_flows[flow.tenant]
            self._share.tenants.leave(flow.tenant)


def _order(seq: Sequence) -> int:
    return seq.order


def _age(flow: Flow) -> int:
    """Places in line are given in the order of `waiting_since`."""
    head = flow.head
    assert head is not None, "an empty flow is not kept"
    return head.order
