"""A machine for the scheduler to drive: fake host memory, fake slots, a fake model whose KV cache checks every read.

Each KV cell stores which prefix it was computed from, as a node of one trie. A chunk is right only if every cell below
it holds exactly the sequence's own prefix, under its own adapter and salt: the oracle against wrong sharing.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass

from openlora_engine.errors import Code, EngineError
from openlora_engine.scheduling.blocks import BlockManager
from openlora_engine.scheduling.fairness import FairShare
from openlora_engine.scheduling.limits import SchedulerConfig
from openlora_engine.scheduling.prefix import PrefixHasher
from openlora_engine.scheduling.schedule import Schedule
from openlora_engine.scheduling.scheduler import Scheduler
from openlora_engine.scheduling.sequence import Sequence, SequenceStatus
from openlora_engine.scheduling.slots import SlotPool

EOS = 0
VOCAB = 23


def next_token(adapter: str | None, tokens: list[int]) -> int:
    """The fake model: a function of adapter and prefix alone."""
    return zlib.crc32(repr((adapter, tokens)).encode()) % VOCAB


def reference(seq: Sequence) -> list[int]:
    """What the model says to a prompt when it has the machine to itself."""
    tokens = seq.token_ids[: seq.num_prompt_tokens]
    output: list[int] = []
    while len(output) < seq.max_tokens and (not output or output[-1] != EOS):
        output.append(next_token(seq.adapter, tokens + output))
    return output


def talkative(length: int, num_tokens: int, *, first: int = 2, adapter: str | None = None) -> list[int]:
    """A prompt to which the model answers with at least `num_tokens` tokens before it ends."""
    while True:
        prompt = [first, *range(100, 99 + length)]
        if len(reference(Sequence("x/0", "x", prompt, length, num_tokens, adapter=adapter))) == num_tokens:
            return prompt
        first += 1


class FakeHost:
    """Host memory for `capacity` adapters; loads finish when the test says so, in order.

    `instant` loads within `request`. An adapter in a slot keeps its place, as on the CPU.
    """

    def __init__(self, capacity: int = 10**9, *, instant: bool = False) -> None:
        self.capacity = capacity
        self.instant = instant
        self.requested: set[str] = set()
        self.ready: dict[str, None] = {}
        self.loading: deque[str] = deque()
        self.in_slots: set[str] = set()

    def is_ready(self, digest: str) -> bool:
        return digest in self.ready

    def request(self, digest: str) -> bool:
        assert digest not in self.requested, f"{digest} requested twice"
        held = self.requested | self.in_slots
        if digest not in held and len(held) >= self.capacity:
            return False
        self.requested.add(digest)
        if digest not in self.ready:
            self._evict()
            if self.instant:
                self.ready[digest] = None
            else:
                self.loading.append(digest)
        return True

    def release(self, digest: str) -> None:
        self.requested.remove(digest)
        if digest in self.loading:
            self.loading.remove(digest)

    def finish_load(self) -> str | None:
        """The oldest load under way succeeds."""
        if not self.loading:
            return None
        digest = self.loading.popleft()
        self.ready[digest] = None
        return digest

    def fail_load(self) -> str | None:
        """The oldest load under way fails."""
        if not self.loading:
            return None
        digest = self.loading.popleft()
        self.requested.remove(digest)
        return digest

    def _evict(self) -> None:
        held = self.requested | self.in_slots
        for digest in [digest for digest in self.ready if digest not in held]:
            if len(set(self.ready) | held) > self.capacity:
                del self.ready[digest]


class FakeLoader:
    """Slots that check their tenancy. With `copies`, a load is under way until `finish_copies`."""

    def __init__(self, host: FakeHost, *, copies: bool = False) -> None:
        self.host = host
        self.copies = copies
        self.tenant: dict[int, str] = {}
        self.copying: set[int] = set()
        self.fails: set[str] = set()
        """Digests whose next load fails."""

    def load(self, slot: int, digest: str) -> None:
        assert slot not in self.tenant, f"slot {slot} was not unloaded"
        assert self.host.is_ready(digest), f"{digest} is not in host memory"
        if digest in self.fails:
            self.fails.discard(digest)
            raise EngineError(Code.OUT_OF_MEMORY, "no")
        self.tenant[slot] = digest
        self.host.in_slots.add(digest)
        if self.copies:
            self.copying.add(slot)

    def is_loaded(self, slot: int, digest: str) -> bool:
        assert self.tenant[slot] == digest, "asked for another's slot"
        return slot not in self.copying

    def unload(self, slot: int, digest: str) -> None:
        assert self.tenant.pop(slot) == digest, "another sits there"
        self.copying.discard(slot)
        self.host.in_slots.discard(digest)

    def finish_copies(self) -> None:
        self.copying.clear()


class FakeKV:
    """KV cells that remember the prefix they were computed from."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._cells: list[int | None] = [None] * (num_blocks * block_size)
        self._trie: dict[tuple[object, ...], int] = {}

    def compute(self, seq: Sequence, num_tokens: int) -> None:
        """Write the cells of a chunk."""
        nodes = self._nodes(seq)
        for position in range(seq.num_computed_tokens, seq.num_computed_tokens + num_tokens):
            self._cells[self._cell(seq, position)] = nodes[position]

    def check(self, seq: Sequence, num_tokens: int) -> None:
        """Assert that the first `num_tokens` cells are those of this very prefix."""
        nodes = self._nodes(seq)
        for position in range(num_tokens):
            cell = self._cells[self._cell(seq, position)]
            assert cell == nodes[position], f"{seq} reads another's keys at {position}"

    def _cell(self, seq: Sequence, position: int) -> int:
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _nodes(self, seq: Sequence) -> list[int]:
        node, nodes = self._node("root", seq.adapter, seq.cache_salt), []
        for token in seq.token_ids:
            node = self._node(node, token)
            nodes.append(node)
        return nodes

    def _node(self, *key: object) -> int:
        return self._trie.setdefault(key, len(self._trie))


@dataclass
class Shape:
    """Sizes of a machine."""

    num_blocks: int = 64
    block_size: int = 4
    num_slots: int = 4
    host_capacity: int = 10**9
    prefix_caching: bool = True
    instant: bool = True
    copies: bool = False


class Machine:
    """A scheduler, what it drives, and the engine's part of each step."""

    def __init__(self, shape: Shape | None = None, config: SchedulerConfig | None = None) -> None:
        self.shape = shape or Shape()
        self.config = config or SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=16, max_wait_s=5.0)
        hasher = PrefixHasher("model", self.shape.block_size)
        self.blocks = BlockManager(self.shape.num_blocks, hasher, enable_prefix_caching=self.shape.prefix_caching)
        self.host = FakeHost(self.shape.host_capacity, instant=self.shape.instant)
        self.loader = FakeLoader(self.host, copies=self.shape.copies)
        self.slots = SlotPool(self.shape.num_slots, self.loader)
        self.share = FairShare()
        self.scheduler = Scheduler(self.config, self.blocks, self.slots, self.host, self.share)
        self.kv = FakeKV(self.shape.num_blocks, self.shape.block_size)
        self.now = 0.0
        self.num_steps = 0
        self.num_computed = 0
        self.admitted: list[str] = []
        """Sequences in the order of their first chunk."""
        self.done: dict[str, Sequence] = {}
        self._count = 0
        self._reads: list[object] = []
        """What the step in flight reads of its sequences."""

    def add(
        self,
        prompt: list[int],
        *,
        max_tokens: int = 4,
        adapter: str | None = None,
        tenant: str = "",
        salt: str = "",
        n: int = 1,
        name: str | None = None,
    ) -> list[Sequence]:
        """Send a request; raises what the scheduler raises."""
        self._count += 1
        name = name or f"r{self._count}"
        choices = [
            Sequence(
                seq_id=f"{name}/{index}",
                request_id=name,
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
                max_tokens=max_tokens,
                index=index,
                adapter=adapter,
                tenant=tenant,
                cache_salt=salt,
            )
            for index in range(n)
        ]
        self.scheduler.add_all(choices, self.now)
        return choices

    def step(self, *, dt: float = 1.0) -> Schedule:
        """One whole step, a second long unless told."""
        schedule = self.begin()
        self.end(schedule)
        self.now += dt
        return schedule

    def begin(self) -> Schedule:
        """Schedule, and run the model on it."""
        schedule = self.scheduler.schedule(self.now)
        self._check_shape(schedule)
        for seq, num_tokens, _samples in schedule.chunks:
            self.kv.check(seq, seq.num_computed_tokens)
            self.kv.compute(seq, num_tokens)
            self.num_computed += num_tokens
            if seq.seq_id not in self.admitted:
                self.admitted.append(seq.seq_id)
        for seq, num_tokens, _samples in schedule.chunks:
            self.kv.check(seq, seq.num_computed_tokens + num_tokens)
        self._reads = self._read(schedule)
        return schedule

    def end(self, schedule: Schedule) -> None:
        """Sample, advance, and finish what is done. Nothing that the model read may have changed meanwhile."""
        assert self._read(schedule) == self._reads, "changed under the step"
        tokens = [next_token(seq.adapter, seq.token_ids) for seq, _num_tokens, samples in schedule.chunks if samples]
        self.scheduler.advance(schedule, tokens)
        self.num_steps += 1
        for seq, _num_tokens, _samples in schedule.chunks:
            if seq.status is not SequenceStatus.FINISHED and self._is_done(seq):
                self.done[seq.seq_id] = self.scheduler.finish(seq.seq_id)

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is live; every load succeeds."""
        for _ in range(max_steps):
            if not len(self.scheduler):
                return
            self.finish_loads()
            self.step()
        raise AssertionError(f"still live after {max_steps} steps: {self.scheduler.stats}")

    def finish_loads(self) -> None:
        """All loads and copies under way succeed."""
        while (digest := self.host.finish_load()) is not None:
            self.scheduler.adapter_ready(digest, self.now)
        self.loader.finish_copies()

    def check(self) -> None:
        """Everything accounted for, and every cell held is its holder's."""
        self.scheduler.check_integrity()
        for seq in self.scheduler.live:
            if seq.holds_memory:
                self.kv.check(seq, seq.num_computed_tokens)

    def check_empty(self) -> None:
        """Nothing live holds nothing."""
        self.scheduler.check_integrity()
        assert not len(self.scheduler)
        assert self.blocks.num_free_blocks == self.blocks.num_blocks, "blocks leaked"
        assert not any(self.slots.num_refs(digest) for digest in self.slots), "slots leaked"
        assert not self.host.requested, "host memory leaked"
        assert not self.slots.reservations or not self.step().chunks, "reservations leaked"

    def _read(self, schedule: Schedule) -> list[object]:
        return [
            (
                seq.seq_id,
                seq.num_computed_tokens,
                list(seq.token_ids),
                list(seq.block_table),
                seq.slot,
                None if seq.slot is None else self.loader.tenant[seq.slot],
            )
            for seq, _num_tokens, _samples in schedule.chunks
        ]

    def _is_done(self, seq: Sequence) -> bool:
        if not seq.max_tokens:
            return not seq.num_uncomputed_tokens
        return seq.num_output_tokens == seq.max_tokens or (seq.num_output_tokens > 0 and seq.token_ids[-1] == EOS)

    def _check_shape(self, schedule: Schedule) -> None:
        assert schedule.num_tokens <= self.config.max_num_batched_tokens
        assert len(schedule.chunks) <= self.config.max_num_seqs
        assert len({chunk.seq for chunk in schedule.chunks}) == len(schedule.chunks), "a sequence twice in a step"
        slots = [-1 if chunk.seq.slot is None else chunk.seq.slot for chunk in schedule.chunks]
        assert slots == sorted(slots), "rows of one adapter are apart"
        for seq, num_tokens, samples in schedule.chunks:
            assert seq.status is SequenceStatus.RUNNING
            assert num_tokens > 0
            assert samples == (num_tokens == seq.num_uncomputed_tokens and seq.max_tokens > 0)
            if seq.adapter is not None:
                assert seq.slot is not None
                assert self.loader.tenant[seq.slot] == seq.adapter, f"{seq} runs on another's weights"
                assert seq.slot not in self.loader.copying, f"{seq} runs on weights still being copied"
