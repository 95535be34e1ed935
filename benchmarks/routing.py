"""Routing at scale: a discrete-event simulation that asks the node's own policy where each request goes.

Prints the table of docs/benchmarks/routing.md and, with --plot, draws its figure:
    python benchmarks/routing.py --plot docs/benchmarks/routing.svg
"""

from __future__ import annotations

import argparse
import random
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path

import numpy as np

from openlora_node.network.adverts import TTL_INTERVALS, debounce_s, interval_s
from openlora_node.network.rendezvous import affinity
from openlora_node.network.routing import MAX_ATTEMPTS, Ask, Candidate, Spread, choose
from openlora_node.protocol.structs import MAX_ADVERT_BYTES

GOSSIP_DEGREE = 6
RTT_S = 0.05
TOKENS = 200
ASK = Ask(max_tokens=TOKENS)


@dataclass(frozen=True)
class World:
    """What is simulated. Times in seconds; a node runs `slots` requests at once and lets `queue` wait."""

    nodes: int = 10_000
    adapters: int = 100_000
    requests: int = 1_000_000
    zipf: float = 1.0
    utilisation: float = 0.6
    slots: int = 2
    queue: int = 2
    cache: int = 32
    answer_s: float = 10.0
    load_s: float = 5.0
    gateways: int = 100
    seed: int = 1


@dataclass
class Node:
    """A node: who runs, who waits, what is cached."""

    speed: float
    running: list[float] = field(default_factory=list)
    waiting: deque[float] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def queued(self, now: float) -> int:
        """Requests that have not begun."""
        while self.waiting and self.waiting[0] <= now:
            self.waiting.popleft()
        return len(self.waiting)

    def is_full(self, now: float, limit: int) -> bool:
        """Whether it answers BUSY."""
        return self.queued(now) >= limit

    def take(self, adapter: int, now: float, answer_s: float, world: World) -> tuple[float, bool]:
        """Serve a request; how long it waited, and whether the adapter was there."""
        hit = adapter in self.cache
        self.cache[adapter] = None
        self.cache.move_to_end(adapter)
        if len(self.cache) > world.cache:
            self.cache.popitem(last=False)
        start = now if len(self.running) < world.slots else max(now, heappop(self.running))
        heappush(self.running, start + answer_s / self.speed + (0.0 if hit else world.load_s))
        if start > now:
            self.waiting.append(start)
        return start - now, hit


class Gossip:
    """What adverts say: each node's cache and queue as they were at its last advert."""

    def __init__(self, world: World, nodes: list[Node], dice: random.Random) -> None:
        self.interval = interval_s(60.0, world.nodes)
        self.pause = debounce_s(self.interval)
        self.nodes = nodes
        self.sent = 0
        self.queue = [0] * world.nodes
        self.at = [0.0] * world.nodes
        self.holders: dict[int, set[int]] = {}
        self.told: list[frozenset[int]] = [frozenset()] * world.nodes
        self.due = [(dice.random() * self.pause, index) for index in range(world.nodes)]
        self.due.sort()

    def advance(self, now: float) -> None:
        """Send what is due: a node whose cache changed after the debounce, any other after the interval."""
        while self.due[0][0] <= now:
            at, index = heappop(self.due)
            node = self.nodes[index]
            cache = frozenset(node.cache)
            if cache != self.told[index] or at - self.at[index] >= self.interval or self.at[index] == 0:
                for gone in self.told[index] - cache:
                    self.holders[gone].discard(index)
                for new in cache - self.told[index]:
                    self.holders.setdefault(new, set()).add(index)
                self.told[index] = cache
                self.queue[index] = node.queued(at)
                self.at[index] = at
                self.sent += 1
            heappush(self.due, (at + self.pause, index))


class Policy:
    """A way to choose: an iterator over nodes to ask, until one takes the request."""

    waits = False
    """Whether the first node asked has to take it, full or not."""

    def __init__(self, world: World, gossip: Gossip, keys: np.ndarray, dice: random.Random) -> None:
        self.world, self.gossip, self.keys, self.dice = world, gossip, keys, dice
        self.ranks: dict[int, np.ndarray] = {}

    def ranked(self, adapter: int, most: int) -> np.ndarray:
        """The first nodes of the adapter's rendezvous order, at least `most`."""
        known = self.ranks.get(adapter)
        if known is None or len(known) < min(most, self.world.nodes):
            size = min(self.world.nodes, max(8, 2 * most))
            score = affinity(np.uint64(adapter * 0x9E3779B97F4A7C15 & ((1 << 64) - 1)), self.keys)
            top = np.argpartition(score, -size)[-size:] if size < self.world.nodes else np.arange(size)
            known = self.ranks[adapter] = top[np.argsort(score[top])[::-1]]
        return known

    def ask(self, adapter: int, gateway: int, attempt: int, tried: list[int], now: float) -> int:
        """The node to ask next."""
        raise NotImplementedError

    def settled(self, adapter: int, gateway: int, attempts: int) -> None:
        """A node took it."""


class Random(Policy):
    """Any node."""

    def ask(self, adapter: int, gateway: int, attempt: int, tried: list[int], now: float) -> int:
        return self.dice.randrange(self.world.nodes)


class LeastLoaded(Policy):
    """Any of the nodes with the shortest queue that adverts tell of."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.best, self.until = np.arange(0), -1.0

    def ask(self, adapter: int, gateway: int, attempt: int, tried: list[int], now: float) -> int:
        if now > self.until:
            queue = np.array(self.gossip.queue)
            self.best, self.until = np.flatnonzero(queue == queue.min()), now + 1.0
        return int(self.best[self.dice.randrange(len(self.best))])


class ConsistentHashing(Policy):
    """Always the adapter's first node."""

    waits = True

    def ask(self, adapter: int, gateway: int, attempt: int, tried: list[int], now: float) -> int:
        return int(self.ranked(adapter, 1)[0])


class OpenLora(Policy):
    """The node's own policy, as the gateway uses it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.spread: dict[tuple[int, int], Spread] = {}
        nodes = self.gossip.nodes
        self.ids = [index.to_bytes(4, "big") for index in range(len(nodes))]
        self.speeds = [round(node.speed * TOKENS / self.world.answer_s) for node in nodes]

    def candidate(self, adapter: int, index: int, now: float) -> Candidate:
        """A node as adverts show it."""
        gossip = self.gossip
        return Candidate(
            node=self.ids[index],
            tokens_per_second=self.speeds[index],
            queue_depth=gossip.queue[index],
            advert_age_s=now - gossip.at[index],
            missing=adapter not in gossip.told[index],
            rtt_s=RTT_S,
        )

    def ask(self, adapter: int, gateway: int, attempt: int, tried: list[int], now: float) -> int:
        spread = self.spread.get((gateway, adapter), Spread())
        if attempt:
            spread = self.spread[gateway, adapter] = spread.busy(self.world.nodes)
        ranked = self.ranked(adapter, spread.homes)[: spread.homes]
        drawn = {int(ranked[self._below(len(ranked))]) for _ in range(3)}.difference(tried)
        homes = [self.candidate(adapter, index, now) for index in drawn]
        holders = []
        if all(node.missing for node in homes):  # the policy looks at holders in this case only
            known = islice(self.gossip.holders.get(adapter, ()), 4)
            holders = [self.candidate(adapter, index, now) for index in known if index not in tried]
        chosen = choose(ASK, homes, holders, self._below)
        return int.from_bytes(chosen.node, "big") if chosen else self._below(self.world.nodes)

    def _below(self, limit: int) -> int:
        return int(self.dice.random() * limit)

    def settled(self, adapter: int, gateway: int, attempts: int) -> None:
        if attempts == 1 and (gateway, adapter) in self.spread:
            self.spread[gateway, adapter] = self.spread[gateway, adapter].accepted()


POLICIES: dict[str, type[Policy]] = {
    "random": Random,
    "least loaded": LeastLoaded,
    "consistent hashing": ConsistentHashing,
    "OpenLoRA": OpenLora,
}


@dataclass(frozen=True)
class Result:
    """What came of it. Times in seconds."""

    hits: float
    warm_hits: float
    p50: float
    p99: float
    busy: float
    asked: float
    refused: float
    adverts: float
    waits: np.ndarray
    taken: float


def simulate(name: str, world: World) -> Result:
    """Run all requests of a world through one policy."""
    began = time.perf_counter()
    dice = random.Random(world.seed)
    numbers = np.random.default_rng(world.seed)
    nodes = [Node(dice.choice((0.5, 1.0, 1.0, 1.5))) for _ in range(world.nodes)]
    keys = numbers.integers(0, 1 << 63, world.nodes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    gossip = Gossip(world, nodes, dice)
    policy = POLICIES[name](world, gossip, keys, dice)
    popularity = 1.0 / np.arange(1, world.adapters + 1) ** world.zipf
    wanted = np.searchsorted(np.cumsum(popularity / popularity.sum()), numbers.random(world.requests))
    rate = world.utilisation * sum(node.speed for node in nodes) * world.slots / world.answer_s
    arrivals = np.cumsum(numbers.exponential(1.0 / rate, world.requests))
    answers = numbers.exponential(world.answer_s, world.requests)
    waits = np.zeros(world.requests)
    hit = np.zeros(world.requests, dtype=bool)
    busy = refused = asked = 0
    for index in range(world.requests):
        now, adapter = float(arrivals[index]), int(min(wanted[index], world.adapters - 1)) + 1
        gossip.advance(now)
        gateway, tried = index % world.gateways, []
        while True:
            chosen = policy.ask(adapter, gateway, len(tried), tried, now)
            tried.append(chosen)
            if policy.waits or not nodes[chosen].is_full(now, world.queue):
                break
            if len(tried) == MAX_ATTEMPTS:
                refused += 1
                break
        policy.settled(adapter, gateway, len(tried))
        asked += len(tried)
        busy += len(tried) > 1
        waited, hit[index] = nodes[chosen].take(adapter, now, float(answers[index]), world)
        waits[index] = waited + RTT_S * len(tried)
    duration = float(arrivals[-1])
    return Result(
        hits=float(hit.mean()),
        warm_hits=float(hit[world.requests // 2 :].mean()),
        p50=float(np.quantile(waits, 0.5)),
        p99=float(np.quantile(waits, 0.99)),
        busy=busy / world.requests,
        asked=asked / world.requests,
        refused=refused / world.requests,
        adverts=gossip.sent / duration,
        waits=np.quantile(waits, np.linspace(0, 1, 1001)),
        taken=time.perf_counter() - began,
    )


def table(results: dict[str, Result]) -> str:
    """The table of the documentation."""
    rows = [
        "| policy | cache hits | in the second half | queue p50 s | queue p99 s | nodes asked | found all asked full |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {name} | {r.hits:.1%} | {r.warm_hits:.1%} | {r.p50:.2f} | {r.p99:.1f} | {r.asked:.2f} | {r.refused:.2%} |"
        for name, r in results.items()
    ]
    return "\n".join(rows)


def plot(results: dict[str, Result], path: Path) -> None:
    """Hit rates as bars, waiting times as curves."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "openlora"
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.barh(list(results), [100 * r.warm_hits for r in results.values()])
    left.invert_yaxis()
    left.set_xlabel("cache hits in the second half, %")
    for name, r in results.items():
        right.plot(np.linspace(0, 100, 1001), np.maximum(r.waits, 0.01), label=name)
    right.set_yscale("log")
    right.set_xlim(50, 100)
    right.set_xlabel("percentile of requests")
    right.set_ylabel("time in the queue, s")
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Simulate, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("nodes", 10_000), ("adapters", 100_000), ("requests", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    world = World(nodes=arguments.nodes, adapters=arguments.adapters, requests=arguments.requests)
    results = {}
    for name in POLICIES:
        results[name] = simulate(name, world)
        print(f"{name}: {results[name].taken:.0f} s", flush=True)
    print(table(results))
    interval = interval_s(60.0, world.nodes)
    adverts = results["OpenLoRA"].adverts
    print(
        f"adverts: every {interval:.0f} s, after a change {debounce_s(interval):.0f} s, "
        f"life {TTL_INTERVALS * interval:.0f} s; {adverts:.1f} a second on the topic, "
        f"at most {adverts * MAX_ADVERT_BYTES * GOSSIP_DEGREE / 1e3:.0f} kB/s a node"
    )
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
