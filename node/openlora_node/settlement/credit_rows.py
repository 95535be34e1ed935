"""What the journal keeps of credits: how far each dataset is decided, and the table behind each posted root."""

from __future__ import annotations

from dataclasses import dataclass

from openlora_chain.store import NewIntent

from ..journal.books import number, wei
from ..journal.database import Transaction
from ..journal.outbox import submit_intent
from .credits import CreditTable


@dataclass(frozen=True)
class Decided:
    """How far a dataset is decided. `settled` in wei as the chain had it then."""

    settled: int = 0
    epoch: int = -1


@dataclass(frozen=True)
class Posted:
    """One table that was posted or is about to be; `leaves` is the id that it is fetched by."""

    node: bytes
    dataset: bytes
    epoch: int
    table: CreditTable
    leaves: bytes
    base: bytes
    """Root of the table that it continues; 32 zero bytes for none."""
    after: int
    """The epoch through which everything was decided before."""
    available: int
    """Wei of the pool that waited: it adds no more."""


def decided(tx: Transaction, node: bytes, dataset: bytes) -> Decided:
    """How far a dataset is decided as far as this journal knows."""
    row = tx.one("SELECT settled, epoch FROM credit_pools WHERE node = ? AND dataset = ?", node, dataset)
    return Decided() if row is None else Decided(number(row[0]), row[1])


def note_decided(tx: Transaction, node: bytes, dataset: bytes, state: Decided) -> None:
    """Keep it."""
    tx.write(
        "credits.decided",
        "INSERT INTO credit_pools (node, dataset, settled, epoch) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (node, dataset) DO UPDATE SET settled = excluded.settled, epoch = excluded.epoch",
        node,
        dataset,
        wei(state.settled),
        state.epoch,
    )


def datasets(tx: Transaction, node: bytes) -> list[bytes]:
    """Every dataset of which anything was noted."""
    return [row[0] for row in tx.all("SELECT dataset FROM credit_pools WHERE node = ? ORDER BY dataset", node)]


def posts(tx: Transaction, node: bytes, dataset: bytes) -> list[Posted]:
    """The tables of one dataset, newest epoch first."""
    rows = tx.all(
        "SELECT epoch, credits, leaves, base, after, available FROM credit_posts"
        " WHERE node = ? AND dataset = ? ORDER BY epoch DESC, at DESC",
        node,
        dataset,
    )
    return [
        Posted(node, dataset, epoch, CreditTable.decode(data), leaves, base, after, number(available))
        for epoch, data, leaves, base, after, available in rows
    ]


def queue_post(tx: Transaction, post: Posted, intent: NewIntent, now: int) -> None:
    """A table and the intent that posts its root, in one transaction."""
    tx.write(
        "credits.post",
        "INSERT INTO credit_posts (node, dataset, epoch, root, base, after, available, leaves, credits, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node, dataset, epoch, root) DO UPDATE SET"
        " leaves = excluded.leaves, base = excluded.base, after = excluded.after, available = excluded.available,"
        " at = excluded.at",
        post.node,
        post.dataset,
        post.epoch,
        post.table.root,
        post.base,
        post.after,
        wei(post.available),
        post.leaves,
        post.table.encode(),
        now,
    )
    submit_intent(tx, intent, now)
