"""What a node decides of the money that waits for a dataset's contributors: post, bring into force, give up. Pure.

Money accrues on chain as vouchers are redeemed and shared out; receipts say whose data it came from. A post decides the
receipts of whole closed epochs, once all of them are redeemed, so that no post credits more than came in. What it does
not credit goes by static shares. Periods that were vetoed or lapsed went by shares: they are never credited again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

POST_GAS, ACTIVATE_GAS, LAPSE_GAS = 220_000, 200_000, 120_000
"""Upper bounds; a test holds them."""
ROUNDING_WEI = 1_000
"""By how much a pool may fall short of its receipts because royalties are divided with rounding."""
NOBODY = bytes(20)
"""The one row of a table in which nobody is credited anything: a root needs a leaf."""

Rows: TypeAlias = tuple[tuple[bytes, int], ...]
"""(contributor, wei), ascending by contributor."""


@dataclass(frozen=True)
class Epoch:
    """A closed epoch: the wei of its receipts that wait for a decision, and what they credit."""

    number: int
    assigned: int
    credited: Rows


@dataclass(frozen=True)
class Pool:
    """What the chain says of (node, dataset). Amounts in wei, cumulative; times in unix seconds."""

    accrued: int
    settled: int
    waiting_since: int
    must_reach: int
    pending_until: int | None
    """When the post in its timelock can be brought into force; None without one."""
    told: bool = True
    """Whether the epoch of the last decision is closed: so are then all receipts of what must be reached."""


@dataclass(frozen=True)
class Post:
    """Decide everything through an epoch: the cumulative table, and up to where of the pool it reaches."""

    epoch: int
    rows: Rows
    through: int

    @property
    def total(self) -> int:
        """Wei that the table credits."""
        return sum(wei for _, wei in self.rows)


@dataclass(frozen=True)
class Activate:
    """Bring the post into force: its timelock is over."""


@dataclass(frozen=True)
class Lapse:
    """Send the pool to static shares: nobody posted in time."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do now."""


Decision: TypeAlias = Post | Activate | Lapse | Wait


def decide(pool: Pool, before: Rows, epochs: Sequence[Epoch], window: int, now: int) -> Decision:
    """`before`: the table in force; `epochs`: those that no decision covers yet, ascending; `window` in seconds."""
    if pool.pending_until is not None:
        return Activate() if now >= pool.pending_until else Wait()
    left = pool.accrued - pool.settled
    if left <= 0:
        return Wait()
    if now > pool.waiting_since + window:
        return Lapse()
    is_early = 2 * (now - pool.waiting_since) < window
    chosen, assigned = _redeemed(epochs, left)
    if not chosen:
        # Receipts whose vouchers are not redeemed yet: wait for them, but not until the window is over.
        if not epochs or is_early:
            return Wait()
        chosen, assigned = epochs[:1], left
    elif pool.settled + assigned < pool.must_reach and not pool.told and is_early:
        # A post now would have to reach into the money of an epoch that is still open, and leave its receipts nothing.
        return Wait()
    credited = within(add_up([epoch.credited for epoch in chosen]), left)
    all_of_it = len(chosen) == len(epochs) and left - assigned <= ROUNDING_WEI
    through = pool.accrued if all_of_it else min(pool.settled + assigned, pool.accrued)
    rows = add_up([before, credited]) or ((NOBODY, 0),)
    # What is credited is reached even where the owner assigns less by now than when the responses were made.
    reached = pool.settled + max(1, sum(wei for _, wei in credited))
    return Post(chosen[-1].number, rows, max(through, pool.must_reach, reached))


def _redeemed(epochs: Sequence[Epoch], left: int) -> tuple[Sequence[Epoch], int]:
    """The longest beginning whose receipts came in altogether, and what they wait for."""
    assigned, found, count = 0, 0, 0
    for place, epoch in enumerate(epochs, 1):
        assigned += epoch.assigned
        if assigned > left + ROUNDING_WEI:
            break
        count, found = place, assigned
    return epochs[:count], min(found, left)


def add_up(tables: Sequence[Rows]) -> Rows:
    """The sums by contributor. Each epoch is rounded down by itself; the row of nobody goes when there is another."""
    sums: dict[bytes, int] = {}
    for rows in tables:
        for owner, wei in rows:
            sums[owner] = sums.get(owner, 0) + wei
    if len(sums) > 1:
        sums.pop(NOBODY, None)
    return tuple(sorted(sums.items()))


def within(rows: Rows, most: int) -> Rows:
    """The same parts of what there is, where receipts credit more than came in."""
    total = sum(wei for _, wei in rows)
    if total <= most:
        return rows
    return tuple((owner, part) for owner, wei in rows if (part := wei * most // total))
