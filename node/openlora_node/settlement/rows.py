"""What settlement keeps in the journal: which voucher is under way, what transactions cost and brought.

The functions run inside a journal transaction, so that a voucher and the intent to redeem it commit together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openlora_chain.bindings import PipelineTuple, VoucherTuple
from openlora_chain.store import CLOSED, Intent, IntentState, NewIntent

from ..journal.books import LEDGER_COLUMNS, Books, ledger_of, number, wei, wide
from ..journal.database import Transaction
from ..journal.outbox import find_intent, open_intents, submit_intent
from ..journal.pipelines import KnownPipeline, pipeline_of
from ..journal.values import Ledger, LedgerKey

LARGEST, IN_TURN, HURRIED = 256, 256, 512
"""Ledgers looked at in one round: those with the largest vouchers, some others in turn, those of payers who thaw."""
RETRY_REFUSED_S = 86_400
"""How long a voucher that the chain refused rests before it is tried again, unless a newer one takes its place."""
KINDS = ("redeem", "collect", "anchor", "claim", "harvest", "credits")

Encode = Callable[[list[PipelineTuple], list[VoucherTuple], list[bytes]], NewIntent]
"""Pipelines, vouchers and signatures → the intent that redeems them."""

_KEY = "payer = ? AND node = ? AND signer = ? AND pipeline = ?"


@dataclass(frozen=True)
class Unpaid:
    """A ledger whose newest voucher is worth more than the chain has paid, and where its redemption stands."""

    ledger: Ledger
    known: KnownPipeline
    since: int
    under_way: bool
    """An open intent carries a voucher of it."""
    refused: str | None


@dataclass(frozen=True)
class Cost:
    """One transaction of ours, final: gas used, wei paid for it, unix seconds."""

    tx_hash: bytes
    kind: str
    at: int
    gas: int
    wei: int
    succeeded: bool


@dataclass(frozen=True)
class Earned:
    """One event that brought money: 'redeemed' or 'collected' into the contract's books, 'claimed' out of them."""

    tx_hash: bytes
    log_index: int
    at: int
    kind: str
    payer: bytes | None
    pipeline: bytes | None
    operator: int
    protocol: int
    royalties: int


@dataclass(frozen=True)
class Turn:
    """Whose ledgers a round looks at beside the largest: those after `after` by key, and hurried payers'."""

    after: tuple[bytes, bytes, bytes, bytes] = (b"", b"", b"", b"")
    payers: tuple[bytes, ...] = ()


def unpaid(transaction: Transaction, node: bytes, now: int, turn: Turn) -> tuple[list[Unpaid], Turn]:
    """Ledgers with something to redeem, and the next turn. Those seen for the first time are noted as due since `now`.

    However many ledgers there are, each has its turn, so that none outlives its age or its terms unseen.
    """
    open_ones = (
        f"SELECT {LEDGER_COLUMNS} FROM ledgers WHERE node = ? AND voucher IS NOT NULL"  # noqa: S608 - constants
        " AND voucher_value > redeemed"
    )
    largest = transaction.all(f"{open_ones} ORDER BY voucher_value DESC LIMIT ?", node, LARGEST)
    others = transaction.all(
        f"{open_ones} AND (payer, node, signer, pipeline) > (?, ?, ?, ?)"
        " ORDER BY payer, node, signer, pipeline LIMIT ?",
        node,
        *turn.after,
        IN_TURN,
    )
    after = tuple(others[-1][:4]) if len(others) == IN_TURN else Turn().after
    hurried = [row for payer in turn.payers for row in transaction.all(f"{open_ones} AND payer = ?", node, payer)]
    rows = {row[:4]: row for row in (*hurried[:HURRIED], *largest, *others)}
    transaction.write(
        "settlement.paid",
        "DELETE FROM redemptions WHERE node = ? AND EXISTS (SELECT 1 FROM ledgers AS l WHERE l.payer ="
        " redemptions.payer AND l.node = redemptions.node AND l.signer = redemptions.signer AND l.pipeline ="
        " redemptions.pipeline AND l.voucher_value <= l.redeemed)",
        node,
    )
    found = (_unpaid(transaction, ledger_of(row), now) for row in rows.values())
    return [item for item in found if item is not None], Turn(after)


def _unpaid(transaction: Transaction, ledger: Ledger, now: int) -> Unpaid | None:
    key = ledger.key
    known = pipeline_of(transaction, key.pipeline)
    if known is None:
        # Never admitted here: a voucher for it cannot have been taken either.
        return None
    row = transaction.one(
        f"SELECT due_since, intent, sent_value, sent_at, refused FROM redemptions WHERE {_KEY}",  # noqa: S608 - a constant
        *_columns(key),
    )
    if row is None:
        transaction.write(
            "settlement.due",
            "INSERT INTO redemptions (payer, node, signer, pipeline, due_since) VALUES (?, ?, ?, ?, ?)",
            *_columns(key),
            now,
        )
        return Unpaid(ledger, known, now, under_way=False, refused=None)
    since, identity, sent_value, sent_at, refused = row
    intent = find_intent(transaction, identity) if identity else None
    if intent is not None and intent.state is IntentState.FINAL and refused is None:
        # What was due then is paid; what is due now came after it.
        since = max(since, sent_at)
    under_way = intent is not None and intent.state.is_open
    if intent is not None and refused is None and intent.state in (IntentState.FAILED, IntentState.CANCELLED):
        refused = intent.note or intent.state.value
    rests = refused is not None and number(sent_value) == ledger.voucher_value and now - sent_at < RETRY_REFUSED_S
    return Unpaid(ledger, known, since, under_way=under_way, refused=refused if rests else None)


def queue_redemption(
    transaction: Transaction, keys: Sequence[LedgerKey], new_intent: Encode, now: int
) -> tuple[Intent, int] | None:
    """Queue one transaction for the newest vouchers of these ledgers; None if nothing is left to redeem.

    Returns the intent and what its vouchers are worth. Raises ChainError OUTBOX_FULL.
    """
    books = Books(transaction)
    ledgers = [books.ledger(key) for key in keys]
    ledgers = [ledger for ledger in ledgers if ledger.voucher is not None and ledger.voucher_value > ledger.redeemed]
    pipelines: dict[bytes, PipelineTuple] = {}
    vouchers: list[VoucherTuple] = []
    signatures: list[bytes] = []
    carried: list[Ledger] = []
    # Vouchers of one pipeline side by side share its look-up in the contract.
    for ledger in sorted(ledgers, key=lambda one: one.key.pipeline):
        signed, known = ledger.newest_voucher, pipeline_of(transaction, ledger.key.pipeline)
        if signed is None or known is None:
            continue
        value = signed.value
        pipelines[ledger.key.pipeline] = pipeline_tuple(known)
        vouchers.append(
            (
                value.payer,
                value.node,
                value.pipeline_id,
                value.cumulative_tokens,
                value.cumulative_compute,
                value.reference_digest,
            )
        )
        signatures.append(signed.signature)
        carried.append(ledger)
    if not carried:
        return None
    intent = submit_intent(transaction, new_intent(list(pipelines.values()), vouchers, signatures), now)
    for position, ledger in enumerate(carried):
        transaction.write(
            "settlement.sent",
            "UPDATE redemptions SET intent = ?, position = ?, sent_value = ?, sent_at = ?, refused = NULL"  # noqa: S608 - a constant
            f" WHERE {_KEY}",
            intent.id,
            position,
            wei(ledger.voucher_value),
            now,
            *_columns(ledger.key),
        )
    return intent, sum(ledger.voucher_value - ledger.redeemed for ledger in carried)


def pipeline_tuple(known: KnownPipeline) -> PipelineTuple:
    """A pipeline as the contracts take it."""
    parts = known.pipeline
    adapters = [(adapter.id, adapter.terms_version, adapter.weight) for adapter in parts.adapters]
    return parts.base, parts.base_terms_version, adapters, parts.method


def note_refusal(transaction: Transaction, intent: bytes, position: int, reason: str) -> None:
    """Voucher `position` of a batch was left out by the contract."""
    transaction.write(
        "settlement.refused",
        "UPDATE redemptions SET refused = ? WHERE intent = ? AND position = ?",
        reason,
        intent,
        position,
    )


def unaccounted(transaction: Transaction, sender: bytes, chain_id: int, limit: int) -> list[Intent]:
    """Closed intents with a transaction on chain whose cost is not written down yet, oldest first."""
    marks = ", ".join("?" * len(KINDS))
    states = ", ".join(f"'{state.value}'" for state in CLOSED)
    rows = transaction.all(
        f"SELECT id FROM intents WHERE sender = ? AND chain_id = ? AND kind IN ({marks}) AND state IN ({states})"  # noqa: S608 - constants
        " AND tx_hash IS NOT NULL AND tx_hash NOT IN (SELECT tx_hash FROM chain_costs) ORDER BY seq LIMIT ?",
        sender,
        str(chain_id),
        *KINDS,
        limit,
    )
    found = (find_intent(transaction, row[0]) for row in rows)
    return [intent for intent in found if intent is not None]


def write_account(transaction: Transaction, cost: Cost, earned: Sequence[Earned]) -> None:
    """Keep what a transaction cost and brought; a second time changes nothing."""
    transaction.write(
        "settlement.cost",
        "INSERT INTO chain_costs (tx_hash, kind, at, gas, wei, succeeded) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        cost.tx_hash,
        cost.kind,
        cost.at,
        cost.gas,
        wide(cost.wei),
        cost.succeeded,
    )
    for row in earned:
        transaction.write(
            "settlement.earned",
            "INSERT INTO earnings (tx_hash, log_index, at, kind, payer, pipeline, operator, protocol, royalties)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            row.tx_hash,
            row.log_index,
            row.at,
            row.kind,
            row.payer,
            row.pipeline,
            wei(row.operator),
            wei(row.protocol),
            wei(row.royalties),
        )


def under_way(transaction: Transaction, sender: bytes, chain_id: int) -> set[tuple[str, bytes]]:
    """(kind, subject) of every open intent."""
    return {(intent.request.kind, intent.request.subject) for intent in open_intents(transaction, sender, chain_id)}


def newest_anchor(transaction: Transaction, node: bytes) -> int | None:
    """The newest epoch that was queued for anchoring."""
    row = transaction.one("SELECT max(subject) FROM intents WHERE kind = 'anchor' AND substr(subject, 1, 32) = ?", node)
    return None if row is None or row[0] is None else int.from_bytes(row[0][32:40], "big")


def receipts_from(transaction: Transaction, node: bytes, seq: int) -> int:
    """How many receipts of a node have this sequence number or a later one."""
    row = transaction.one("SELECT count(*) FROM receipts WHERE node = ? AND seq >= ?", node, seq)
    return 0 if row is None else int(row[0])


def pipelines_served(transaction: Transaction, node: bytes, limit: int) -> list[bytes]:
    """Pipelines of which the chain has paid something to this node's channels."""
    rows = transaction.all(
        "SELECT DISTINCT pipeline FROM ledgers WHERE node = ? AND redeemed > ? ORDER BY pipeline LIMIT ?",
        node,
        wei(0),
        limit,
    )
    return [row[0] for row in rows]


def subject_of(data: bytes, now: int) -> bytes:
    """What a call does, and when it was wanted: the same may be wanted again later."""
    return hashlib.sha256(data).digest() + now.to_bytes(8, "big")


def _columns(key: LedgerKey) -> tuple[bytes, bytes, bytes, bytes]:
    return key.payer, key.node, key.signer, key.pipeline
