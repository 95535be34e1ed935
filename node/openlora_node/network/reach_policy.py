"""Whether others can reach this host: what peers' dial-backs add up to, whom to ask, and when again. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .reach_addresses import Scope, ip_of, scope_of

ENOUGH_VOTES = 5
MAX_ASKED = 8
DIRECT_SHARE = 0.5
RECHECK_S = 600.0
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 60.0


class Answer(Enum):
    """What came of asking one peer to dial back."""

    REACHED = "reached"
    FAILED = "failed"
    REFUSED = "refused"
    """No verdict: the peer would not or could not try."""


@dataclass(frozen=True)
class Vote:
    """One peer's dial-back."""

    peer: str
    ip: str
    """The peer's own IP."""
    observed: str
    """The IP under which the peer sees this host."""
    answer: Answer
    address: str = ""
    """The address at which it reached this host."""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the votes add up to. `is_direct` is None while nobody could say."""

    is_direct: bool | None
    reached: int = 0
    counted: int = 0
    addresses: tuple[str, ...] = ()
    """Confirmed by somebody, most often confirmed first; empty unless direct."""

    @property
    def is_settled(self) -> bool:
        """Whether enough peers spoke for the answer to stand until the next regular look."""
        return self.is_direct is not None and self.counted >= ENOUGH_VOTES


def decide(votes: Iterable[Vote]) -> Verdict:
    """At least half of the votes that count make a host direct.

    Refusals count for nothing. Nor do votes of peers that see this host under an address that carries less far than
    the one under which others see it: whoever shares our local network always reaches us.
    """
    spoken = [vote for vote in votes if vote.answer is not Answer.REFUSED]
    if not spoken:
        return Verdict(None)
    widest = max(_scope(vote.observed) for vote in spoken)
    counted = [vote for vote in spoken if _scope(vote.observed) == widest]
    reached = [vote for vote in counted if vote.answer is Answer.REACHED]
    is_direct = len(reached) >= DIRECT_SHARE * len(counted)
    addresses = Counter(vote.address for vote in reached if vote.address)
    confirmed = tuple(address for address, _ in addresses.most_common()) if is_direct else ()
    return Verdict(is_direct, len(reached), len(counted), confirmed)


def choose(candidates: Iterable[tuple[str, str]], most: int, dice: random.Random) -> tuple[str, ...]:
    """Random peers to ask, of (peer, IP) pairs, those of IPs not yet chosen first: one operator is one opinion."""
    shuffled = list(candidates)
    dice.shuffle(shuffled)
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, str]] = []
    for peer, ip in shuffled:
        ranked.append((seen[ip], peer))
        seen[ip] += 1
    ranked.sort(key=lambda entry: entry[0])
    return tuple(peer for _, peer in ranked[:most])


def next_look_s(verdict: Verdict, previous_s: float, recheck_s: float = RECHECK_S) -> float:
    """Seconds until the next look: ten minutes once settled, soon and then less and less often before."""
    if verdict.is_settled:
        return recheck_s
    return min(recheck_s, LONGEST_RETRY_S, max(FIRST_RETRY_S, 2 * previous_s))


def own_addresses(verdict: Verdict, announce: Sequence[str], circuits: Sequence[str]) -> tuple[str, ...]:
    """What to tell others: what the operator announces or peers confirmed, and relays while nothing is direct."""
    direct = tuple(announce) if announce and verdict.is_direct is not False else verdict.addresses
    return direct if verdict.is_direct else (*direct, *circuits)


def _scope(ip: str) -> Scope:
    known = ip_of(ip) or ip
    try:
        return scope_of(known)
    except ValueError:
        return Scope.LOOPBACK
