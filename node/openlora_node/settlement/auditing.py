"""Recomputes posted credits from a node's receipts: the same table, or it was not posted from these receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..journal import Reader
from . import credit_rows
from .credit_rows import Posted
from .crediting import NOBODY, Rows, add_up, within
from .credits import CreditTable
from .decisions import PeriodsLike, SumsLike

MAX_EPOCH_S = 366 * 86_400


@dataclass(frozen=True)
class Audited:
    """One posted table beside what the receipts come to."""

    posted: Posted
    found: Rows

    @property
    def agrees(self) -> bool:
        """Whether they are the same."""
        return self.found == self.posted.table.credits


def audit(
    posts: Sequence[Posted], epochs: Sequence[tuple[int, Mapping[bytes, SumsLike]]], through: int
) -> Audited | None:
    """The newest post up to an epoch, recomputed with all that it continues; None where there is none.

    `epochs`: (number, sums by dataset) of closed epochs, ascending, from the first receipt on.
    """
    newest = max((post for post in posts if post.epoch <= through), key=lambda post: post.epoch, default=None)
    if newest is None:
        return None
    line = [newest]
    while (earlier := _continued(posts, line[-1])) is not None:
        line.append(earlier)
    found: Rows = ()
    for post in reversed(line):
        covered = [sums for number, sums in epochs if post.after < number <= post.epoch and post.dataset in sums]
        added = add_up([sums[post.dataset].rows() for sums in covered])
        found = add_up([found, within(added, post.available)]) or ((NOBODY, 0),)
    return Audited(newest, found)


def _continued(posts: Sequence[Posted], post: Posted) -> Posted | None:
    """What a post continues. A root comes again where an epoch credits nobody: the newest before it is meant."""
    found = (one for one in posts if one.table.root == post.base and one.epoch <= post.after)
    return max(found, key=lambda one: one.epoch, default=None)


@dataclass(frozen=True)
class Finding:
    """What receipts come to for a dataset, and what was posted of it; None where nothing was."""

    dataset: bytes
    table: CreditTable
    posted: CreditTable | None


def audit_all(reader: Reader, node: bytes, periods: PeriodsLike, through: int) -> list[Finding]:
    """Every dataset of which the node's receipts say something up to an epoch, ascending by id."""
    now = (through + 2) * MAX_EPOCH_S  # a time at which the epoch is over, whatever its length
    epochs = [(number, sums) for number, sums in periods.since(0, now) if number <= through]
    found = []
    for dataset in sorted({dataset for _, sums in epochs for dataset in sums}):
        posts = reader.read(lambda tx, dataset=dataset: credit_rows.posts(tx, node, dataset))  # type: ignore[misc]
        audited = audit(posts, epochs, through)
        if audited is not None:
            table = CreditTable(audited.found or ((NOBODY, 0),))
            found.append(Finding(dataset, table, audited.posted.table))
        elif rows := add_up([sums[dataset].rows() for _, sums in epochs if dataset in sums]):
            found.append(Finding(dataset, CreditTable(rows), None))
    return found
