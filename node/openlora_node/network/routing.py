"""Which node gets a request. Pure: values in, decision out; the caller brings what it knows, the time and the dice.

An adapter's requests go to the first `spread` nodes of its rendezvous order, so that the network's caches divide the
adapters among them. Of two drawn at random (Mitzenmacher 2001) the one expected to answer first is asked: if everybody
took the best of what gossip says, all would take the same. A node that is full says BUSY; then the spread doubles,
so that a popular adapter soon has as many homes as it needs. It narrows again while requests are accepted at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

FIRST_SPREAD = 2
NARROW_EVERY = 8
"""Requests accepted at once before one home less is used."""
MAX_ATTEMPTS = 12
FETCH_S = 5.0
"""Loading an adapter that the node does not hold."""
UNKNOWN_RTT_S = 0.1
UNKNOWN_SPEED = 20
SAME_S = 0.1
"""Answers are foretold no closer than this."""
QUEUE_HALF_LIFE_S = 30.0
"""What an advert says of a queue is half as likely still true after so long."""
WORST_SUCCESS = 0.3
"""A node that fails more often is asked only when nobody else is left."""

Dice = Callable[[int], int]
"""n → a number from 0 to n - 1, each as likely."""


@dataclass(frozen=True)
class Ask:
    """What a request needs. Fees in wei; `royalties` is what the pipeline's artifacts take at most."""

    adapters: frozenset[bytes] = frozenset()
    prompt_tokens: int = 0
    max_tokens: int = 0
    max_fee: int = 0
    royalties: int = 0
    pipeline: bytes = b""
    """The pipeline's id, where it is known: what a payer has paid there once is not charged again."""


@dataclass(frozen=True)
class Candidate:
    """A node as the asker sees it: its advert, its filter, the asker's own experience. Rates in wei per 1,000,000."""

    node: bytes
    input_rate: int = 0
    output_rate: int = 0
    charge: int = 0
    """Settlement charge, if this payer has not paid it yet."""
    max_context: int = 1 << 30
    tokens_per_second: int = 0
    queue_depth: int = 0
    advert_age_s: float = 0.0
    in_flight: int = 0
    """The asker's own requests at this node, which its advert may not count yet."""
    missing: int = 0
    """Adapters of the request that its filter does not hold."""
    rtt_s: float | None = None
    success: float = 1.0
    """Share of the asker's requests that it completed, recent ones counting more."""
    allowed: bool = True
    """Live, reachable, funded, and with access to the artifacts."""


def fee_of(ask: Ask, node: Candidate) -> int:
    """The most that the request can cost there, as the node itself will check it."""
    compute = ask.prompt_tokens * node.input_rate + ask.max_tokens * node.output_rate
    return -(-compute // 1_000_000) + node.charge + ask.royalties


def fits(ask: Ask, node: Candidate) -> bool:
    """Whether the node may and can take the request at all."""
    return (
        node.allowed
        and ask.prompt_tokens + ask.max_tokens <= node.max_context
        and (ask.max_fee == 0 or fee_of(ask, node) <= ask.max_fee)
    )


def expected_s(ask: Ask, node: Candidate) -> float:
    """Time to the whole answer: waiting, loading, generating, divided by the chance that it succeeds."""
    speed = node.tokens_per_second or UNKNOWN_SPEED
    answer = max(1, ask.max_tokens) / speed
    ahead = node.queue_depth * math.exp2(-node.advert_age_s / QUEUE_HALF_LIFE_S) + node.in_flight
    rtt = UNKNOWN_RTT_S if node.rtt_s is None else node.rtt_s
    return (ahead * answer + node.missing * FETCH_S + answer + rtt) / max(node.success, 0.01)


def draw_two(pool: Sequence[Candidate], dice: Dice) -> tuple[Candidate, ...]:
    """Two different ones of the pool, or what there is."""
    if len(pool) <= 2:
        return tuple(pool)
    first = dice(len(pool))
    second = dice(len(pool) - 1)
    return pool[first], pool[second + (second >= first)]


def choose(ask: Ask, homes: Sequence[Candidate], holders: Sequence[Candidate], dice: Dice) -> Candidate | None:
    """One attempt. `homes`: the first of the adapter's order within the spread; `holders`: others known to hold it.

    Leave out of both who was tried before. None when nobody fits: widen the spread, or give up.
    """
    homes = [node for node in homes if fits(ask, node)]
    holders = [node for node in holders if fits(ask, node)]
    sound = [node for node in homes if node.success >= WORST_SUCCESS]
    drawn = draw_two(sound or homes, dice)
    if not any(node.missing == 0 for node in drawn):
        drawn += draw_two([node for node in holders if node.success >= WORST_SUCCESS], dice)
    return min(drawn, key=lambda node: _preference(ask, node), default=None)


def _preference(ask: Ask, node: Candidate) -> tuple[float, int, float, bytes]:
    """The sooner answer; of two as soon as each other, as far as that can be foretold, the cheaper."""
    soon = expected_s(ask, node)
    return soon // SAME_S, fee_of(ask, node), soon, node.node


@dataclass(frozen=True)
class Spread:
    """How many homes an adapter has, as far as one asker has found out."""

    homes: int = FIRST_SPREAD
    quiet: int = 0
    """Requests accepted at once since the last change."""

    def busy(self, nodes: int) -> Spread:
        """A home was full."""
        return Spread(min(2 * self.homes, nodes))

    def accepted(self) -> Spread:
        """A home took a request at the first attempt."""
        if self.quiet + 1 < NARROW_EVERY:
            return Spread(self.homes, self.quiet + 1)
        return Spread(max(FIRST_SPREAD, self.homes - max(1, self.homes // 16)))


def may_retry(attempts: int, tokens_received: int, code_retryable: bool) -> bool:
    """Whether another node may be asked: only before the first token, or the payer would pay twice for one answer."""
    return tokens_received == 0 and code_retryable and attempts < MAX_ATTEMPTS


def alternatives(ranked: Sequence[bytes], own: bytes, busy: Collection[bytes], most: int = 8) -> tuple[bytes, ...]:
    """Whom a full node names with BUSY: those after itself in the adapter's order, which keeps the adapter together."""
    place = ranked.index(own) + 1 if own in ranked else 0
    after = [*ranked[place:], *ranked[:place]]
    return tuple(node for node in after if node != own and node not in busy)[:most]
