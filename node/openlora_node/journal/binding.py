"""To whom a journal belongs, and from which sequence number and time it goes on. Read and written once, at opening."""

from __future__ import annotations

import sqlite3

from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.structs import CLOCK_SKEW_S, Receipt
from .books import OPEN
from .database import OnStep, scalar
from .values import Binding, Role

SEQ_SHIFT = 20
"""An opened journal goes on at unix seconds · 2^20 at least: past whatever a lost or newer copy of it can have used."""

_COLUMNS = "chain_id, contract, domain_name, domain_version, role, owner"


def read_binding(connection: sqlite3.Connection) -> Binding | None:
    """What the journal is bound to; None if it was never opened to the end."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM meta").fetchone()  # noqa: S608 - a constant
    if row is None:
        return None
    chain_id, contract, name, version, role, owner = row
    if (name, version) != (Domain.name, Domain.version):
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "the journal belongs to another version of the protocol")
    return Binding(Domain(chain_id=int(chain_id), verifying_contract=contract), Role(role), owner)


def bind(connection: sqlite3.Connection, binding: Binding, on_step: OnStep) -> None:
    """Bind a new journal; refuse one that belongs to another. Raises JOURNAL_MISMATCH."""
    held = read_binding(connection)
    if held == binding:
        return
    if held is not None:
        raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, f"the journal belongs to another {_difference(held, binding)}")
    domain = binding.domain
    on_step("bind.meta")
    connection.execute(
        f"INSERT INTO meta (id, {_COLUMNS}) VALUES (1, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
        (str(domain.chain_id), domain.verifying_contract, domain.name, domain.version, binding.role, binding.owner),
    )


def _difference(held: Binding, wanted: Binding) -> str:
    if held.domain.chain_id != wanted.domain.chain_id:
        return f"chain: {held.domain.chain_id}, not {wanted.domain.chain_id}"
    if held.domain != wanted.domain:
        return f"contract: 0x{held.domain.verifying_contract.hex()}, not 0x{wanted.domain.verifying_contract.hex()}"
    if held.role != wanted.role:
        return f"role: {held.role}, not {wanted.role}"
    return f"{held.role}: 0x{held.owner.hex()}, not 0x{wanted.owner.hex()}"


def check_clock(connection: sqlite3.Connection, binding: Binding, now: int) -> None:
    """Refuse to go on in the past of what is written. Raises CLOCK_WRONG.

    Open requests and the newest receipt stand for all: every other request has an older receipt.
    """
    newest = scalar(connection, f"SELECT max(admitted_at) FROM requests WHERE {OPEN}") or 0  # noqa: S608 - a constant
    if binding.role == Role.NODE:
        signed = scalar(
            connection, "SELECT signed FROM receipts WHERE node = ? ORDER BY seq DESC LIMIT 1", (binding.owner,)
        )
        if signed is not None:
            newest = max(newest, Signed.unpack(Receipt, signed).value.finished_at)
    if newest > now + CLOCK_SKEW_S:
        raise OpenLoraError(
            ErrorCode.CLOCK_WRONG, f"set the clock: the journal holds entries {newest - now} s ahead of it"
        )


def seq_floor(now: int) -> int:
    """The least sequence number for a journal opened at `now`."""
    return now << SEQ_SHIFT
