"""What must hold in every journal at every commit, checked from the outside. Changes nothing.

The structure is SQLite's to judge; the meaning is judged here: receipts chain, ledgers equal the sum of their receipts,
reservations belong to running requests, and every column equals what the signed bytes beside it say.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ProtocolError
from ..protocol.ids import ZERO32
from ..protocol.structs import Receipt, Request, Voucher
from .books import LEDGER_COLUMNS, OPEN, Account, ledger_of, number, wei
from .values import Binding, Ledger, LedgerKey, Role

SHALLOW_ROWS = 1_000
"""How many of the newest requests and receipts have their signed bytes compared when the check is not deep."""
_KEY = "payer = ? AND node = ? AND signer = ? AND pipeline = ?"


def violations(connection: sqlite3.Connection, binding: Binding, deep: bool) -> Iterator[str]:
    """Everything that is wrong, each as what and where. `deep` reads every page and every signed row, and recovers
    every payer's signature. Run inside one read transaction for a verdict on one state."""
    yield from structure(connection, deep)
    if binding.role == Role.NODE:
        yield from chain(connection, binding.owner)
    yield from pairs(connection)
    yield from ledgers(connection, binding.domain if deep else None)
    yield from accounts(connection)
    yield from signed_requests(connection, binding, deep)
    yield from signed_receipts(connection, binding, deep)


def structure(connection: sqlite3.Connection, deep: bool) -> Iterator[str]:
    """Pages, indices, constraints, references."""
    for (finding,) in connection.execute(f"PRAGMA {'integrity_check' if deep else 'quick_check'}(10)"):
        if finding != "ok":
            yield f"sqlite: {finding}"
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"{table} row {rowid}: its row in {parent} is missing"


def chain(connection: sqlite3.Connection, node: bytes) -> Iterator[str]:
    """Each receipt names the one before; the first names 32 zero bytes."""
    expected = ZERO32
    rows = connection.execute("SELECT seq, digest, previous FROM receipts WHERE node = ? ORDER BY seq", (node,))
    for seq, digest, previous in rows:
        if previous != expected:
            yield f"receipt {seq}: does not name the receipt before it"
        expected = digest


def pairs(connection: sqlite3.Connection) -> Iterator[str]:
    """A request is done if and only if it has a receipt, and both count in one ledger."""
    for (digest,) in connection.execute(
        "SELECT digest FROM requests WHERE state = 'done' AND digest NOT IN (SELECT request_digest FROM receipts)"
    ):
        yield f"request {digest.hex()}: done without a receipt"
    for seq, state in connection.execute(
        "SELECT c.seq, r.state FROM receipts c JOIN requests r ON r.digest = c.request_digest WHERE r.state <> 'done'"
        " OR (c.payer, c.node, c.signer, c.pipeline) <> (r.payer, r.node, r.signer, r.pipeline)"
    ):
        yield f"receipt {seq}: its request is {state} or counts in another ledger"


def ledgers(connection: sqlite3.Connection, domain: Domain | None) -> Iterator[str]:
    """Sums of receipts and reservations, and the newest voucher; its signature too where a domain is given."""
    for row in connection.execute(f"SELECT {LEDGER_COLUMNS} FROM ledgers"):  # noqa: S608 - a constant
        try:
            ledger = ledger_of(row)
        except ProtocolError as error:
            yield f"ledger of payer {row[0].hex()}: does not decode: {error.message}"
            continue
        for finding in _ledger(connection, ledger, domain):
            yield f"ledger of payer {row[0].hex()}, pipeline {row[3].hex()}: {finding}"


def _ledger(connection: sqlite3.Connection, ledger: Ledger, domain: Domain | None) -> Iterator[str]:
    key = ledger.key
    where = (key.payer, key.node, key.signer, key.pipeline)
    tokens = compute = royalties = 0
    for row in connection.execute(f"SELECT tokens, compute, royalties FROM receipts WHERE {_KEY}", where):  # noqa: S608
        tokens, compute, royalties = tokens + row[0], compute + number(row[1]), royalties + number(row[2])
    if (tokens, compute, compute + royalties) != (ledger.tally.tokens, ledger.tally.compute, ledger.fee):
        yield "tokens, compute or fee differ from the sum of its receipts"
    running = connection.execute(
        f"SELECT max_fee FROM requests WHERE {_KEY} AND state = 'running' AND {OPEN}",  # noqa: S608 - constants
        where,
    )
    if sum(number(max_fee) for (max_fee,) in running) != ledger.reserved:
        yield "its reservation differs from the sum over its running requests"
    yield from _voucher(ledger, domain)


def _voucher(ledger: Ledger, domain: Domain | None) -> Iterator[str]:
    if ledger.voucher is None:
        if ledger.voucher_value:
            yield "a voucher's value without a voucher"
        return
    try:
        signed = Signed.unpack(Voucher, ledger.voucher)
        if LedgerKey.of(signed.value, ledger.key.signer) != ledger.key:
            yield "its voucher belongs to another ledger"
        if signed.value.cumulative_compute > ledger.voucher_value:
            yield "its voucher is worth more than stored"
        if domain is not None and signed.signer(domain) != ledger.key.signer:
            yield "its voucher was signed by another key"
    except ProtocolError as error:
        yield f"its voucher does not decode: {error.message}"


def accounts(connection: sqlite3.Connection) -> Iterator[str]:
    """Accounts equal the sums over their ledgers."""
    stored = {
        (payer, node): Account(number(exposure), number(owed))
        for payer, node, exposure, owed in connection.execute("SELECT payer, node, exposure, owed FROM accounts")
    }
    rows = connection.execute(f"SELECT {LEDGER_COLUMNS} FROM ledgers ORDER BY payer, node")  # noqa: S608 - a constant
    for (payer, node), group in groupby(rows, key=lambda row: (row[0], row[1])):
        held = stored.pop((payer, node), Account())
        try:
            sums = [(ledger.exposure, ledger.owed) for ledger in map(ledger_of, group)]
        except ProtocolError:
            continue  # `ledgers` says what is wrong with it
        if held != Account(sum(exposure for exposure, _ in sums), sum(owed for _, owed in sums)):
            yield f"account of payer {payer.hex()}: differs from the sum over its ledgers"
    for payer, _ in stored:
        yield f"account of payer {payer.hex()}: has no ledger"


def signed_requests(connection: sqlite3.Connection, binding: Binding, deep: bool) -> Iterator[str]:
    """Digest and columns of requests equal their signed bytes; their signatures the signer's, if `deep`."""
    rows = connection.execute(
        "SELECT digest, signed, signer, payer, node, pipeline, nonce, max_fee, expires_at FROM requests"
        " ORDER BY rowid DESC LIMIT ?",
        (-1 if deep else SHALLOW_ROWS,),
    )
    for row in rows:
        yield from _judge(f"request {row[0].hex()}", partial(_request_agrees, binding, deep, row))


def _request_agrees(binding: Binding, deep: bool, row: tuple[Any, ...]) -> bool:
    digest, packed, signer, *columns = row
    signed = Signed.unpack(Request, packed)
    value = signed.value
    said = [value.payer, value.node, value.pipeline_id, value.nonce, wei(value.max_fee), value.expires_at]
    return (
        (value.digest(binding.domain), said) == (digest, columns)
        and binding.covers(value.payer, value.node)
        and not (deep and signed.signer(binding.domain) != signer)
    )


def signed_receipts(connection: sqlite3.Connection, binding: Binding, deep: bool) -> Iterator[str]:
    """Digest and columns of receipts equal their signed bytes. A node's keys rotate: who signed is not judged."""
    rows = connection.execute(
        "SELECT digest, signed, node, seq, previous, request_digest, payer, pipeline, status, tokens, compute,"
        " royalties FROM receipts ORDER BY seq DESC LIMIT ?",
        (-1 if deep else SHALLOW_ROWS,),
    )
    for row in rows:
        yield from _judge(f"receipt {row[3]}", partial(_receipt_agrees, binding, row))


def _receipt_agrees(binding: Binding, row: tuple[Any, ...]) -> bool:
    digest, packed, *columns = row
    value = Signed.unpack(Receipt, packed).value
    said = [
        value.node, value.seq, value.previous, value.request_digest, value.payer, value.pipeline_id,
        value.status, value.tokens, wei(value.compute), wei(value.royalties),
    ]  # fmt: skip
    return (value.digest(binding.domain), said) == (digest, columns) and binding.covers(value.payer, value.node)


def _judge(where: str, agrees: Callable[[], bool]) -> Iterator[str]:
    try:
        if not agrees():
            yield f"{where}: its columns differ from its signed bytes"
    except ProtocolError as error:
        yield f"{where}: {error.message}"
