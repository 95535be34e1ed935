"""`openlora tx`: the transactions that the outbox carries: look, and order a bump, a cancellation, a resend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes
from .chain_errors import translated
from .options import NOUN, AsJson, load_config
from .output import print_json, print_table

if TYPE_CHECKING:
    from openlora_chain.store import Intent, Order

app = typer.Typer(help="Look at the chain transactions under way and steer them.", no_args_is_help=True, **NOUN)

JournalFile = Annotated[
    Path | None,
    typer.Option("--journal", metavar="FILE", help="The journal that holds them. Default: of this machine's node."),
]
Identity = Annotated[str, typer.Argument(metavar="ID", help="The id, or its first digits, as `tx list` prints it.")]
MAX_LISTED = 1_000
SHORT_ID = 12


@app.command("list")
def list_(
    journal: JournalFile = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED)] = 50,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are not done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the newest transactions, newest first."""
    intents = [intent for intent in _recent(journal, limit) if intent.state.is_open or not open_only]
    if as_json:
        print_json([_as_json(intent) for intent in intents])
        return
    rows = [
        (
            intent.id.hex()[:SHORT_ID],
            intent.request.kind,
            intent.state.value,
            "" if intent.nonce is None else str(intent.nonce),
            str(len(intent.attempts)),
            intent.note or "",
        )
        for intent in intents
    ]
    print_table(("id", "kind", "state", "nonce", "attempts", "note"), rows)


@app.command()
def show(identity: Identity, journal: JournalFile = None, as_json: AsJson = False) -> None:
    """Print one transaction with every attempt."""
    intent = _find(journal, identity)
    if as_json:
        print_json(_as_json(intent))
        return
    for name, value in _as_json(intent).items():
        if name != "attempts":
            print(f"{name}: {'-' if value is None else value}")
    print_table(
        ("attempt", "nonce", "max fee (wei)", "hash"),
        [
            (str(number), str(attempt.nonce), str(attempt.max_fee), format_bytes(attempt.hash))
            for number, attempt in enumerate(intent.attempts, 1)
        ],
    )


@app.command()
def bump(identity: Identity, journal: JournalFile = None, as_json: AsJson = False) -> None:
    """Send it again now with higher fees, under the same nonce."""
    _order("bump", identity, journal, as_json)


@app.command()
def cancel(identity: Identity, journal: JournalFile = None, as_json: AsJson = False) -> None:
    """Withdraw it; in flight, its nonce is spent on an empty transfer if that arrives first."""
    _order("cancel", identity, journal, as_json)


@app.command()
def resend(identity: Identity, journal: JournalFile = None, as_json: AsJson = False) -> None:
    """Hand it to the node again; a failed or cancelled one is queued anew."""
    _order("resend", identity, journal, as_json)


def _order(name: str, identity: str, journal: Path | None, as_json: bool) -> None:
    """Leave the order in the journal; the outbox carries it out at its next step, also after a restart."""
    from openlora_chain.errors import ChainError
    from openlora_chain.policy import check_order
    from openlora_chain.store import Order

    from ..journal.outbox import write_order

    order: Order = Order(name)
    journal = _of_this_node(journal)
    intent = _find(journal, identity)
    try:
        check_order(intent, order)
        write_order(journal, intent.id, order)
    except ChainError as error:
        raise translated(error) from None
    if as_json:
        print_json({"id": format_bytes(intent.id), "order": name})
    else:
        print(f"{name} ordered for {intent.id.hex()[:SHORT_ID]}: carried out within seconds while the node runs")


def _recent(journal: Path | None, limit: int) -> list[Intent]:
    from ..journal.outbox import read_intents

    return read_intents(_of_this_node(journal), limit)


def _of_this_node(journal: Path | None) -> Path:
    from ..datadir import JOURNAL_NAME

    return journal or load_config(None, None).config.state_dir / JOURNAL_NAME


def _find(journal: Path | None, identity: str) -> Intent:
    wanted = identity.lower().removeprefix("0x")
    found = [intent for intent in _recent(journal, MAX_LISTED) if wanted and intent.id.hex().startswith(wanted)]
    if len(found) != 1:
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, f"{'no' if not found else 'more than one'} transaction has an id that begins so"
        )
    return found[0]


def _as_json(intent: Intent) -> dict[str, object]:
    return {
        "id": format_bytes(intent.id),
        "kind": intent.request.kind,
        "subject": format_bytes(intent.request.subject),
        "state": intent.state.value,
        "sender": format_address(intent.request.sender),
        "to": format_address(intent.request.to),
        "value": str(intent.request.value),
        "nonce": intent.nonce,
        "order": intent.order.value if intent.order else None,
        "note": intent.note,
        "transaction": format_bytes(intent.inclusion.tx_hash) if intent.inclusion else None,
        "block": intent.inclusion.block_number if intent.inclusion else None,
        "attempts": [
            {"nonce": attempt.nonce, "hash": format_bytes(attempt.hash), "maxFee": str(attempt.max_fee)}
            for attempt in intent.attempts
        ],
    }
