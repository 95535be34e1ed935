"""What was spent, as rows that people and programs read: requests, fees, who earned what, what is left of the caps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..journal import spending
from ..journal.database import Transaction
from ..journal.receipts import receipt_of
from ..protocol.eip712 import Domain
from ..protocol.ids import Digest, format_address, format_artifact_id, format_bytes
from ..protocol.structs import Receipt
from .offers import Offer, reopen_offer


@dataclass(frozen=True)
class Share:
    """What one artifact's owner earns of a response, in wei."""

    artifact: bytes
    owner: bytes
    wei: int


def shares_of(receipt: Receipt, offer: Offer) -> tuple[Share, ...]:
    """A response's royalties by artifact, base first. What rounding leaves stays undivided."""
    parts = offer.schedule.shares(receipt.royalties)
    return tuple(
        Share(royalty.artifact, royalty.owner, wei) for royalty, wei in zip(offer.quote.royalties, parts, strict=True)
    )


def receipt_facts(digest: bytes, receipt: Receipt, offer: Offer) -> dict[str, Any]:
    """The `openlora` field of a response: receipt, fee and who earns what. Amounts are wei as decimal text."""
    return {
        "receipt": format_bytes(digest),
        "request": format_bytes(receipt.request_digest),
        "node": format_bytes(receipt.node),
        "pipeline": format_bytes(receipt.pipeline_id),
        "fee": str(receipt.fee),
        "compute": str(receipt.compute),
        "royalties": str(receipt.royalties),
        "earns": [
            {
                "artifact": format_artifact_id(share.artifact),
                "owner": format_address(share.owner),
                "wei": str(share.wei),
            }
            for share in shares_of(receipt, offer)
        ],
    }


def summary(tx: Transaction, now: int, per_request: int, per_day: int) -> dict[str, Any]:
    """What is left of the caps. Amounts are wei as decimal text."""
    spent = spending.spent_since(tx, now - spending.DAY_S)
    return {
        "spentLast24h": str(spent),
        "leftOfDay": str(max(0, per_day - spent)),
        "perDay": str(per_day),
        "perRequest": str(per_request),
    }


def rows(tx: Transaction, domain: Domain, after: int, limit: int) -> list[dict[str, Any]]:
    """The newest requests since `after` (unix seconds), newest first."""
    return [_row(tx, domain, spend) for spend in spending.listed(tx, after, limit)]


def _row(tx: Transaction, domain: Domain, spend: spending.Spend) -> dict[str, Any]:
    stored = receipt_of(tx, Digest(spend.request_digest))
    row: dict[str, Any] = {
        "at": spend.at,
        "state": spend.state.value,
        "model": spend.model,
        "node": format_bytes(spend.node),
        "wei": str(spend.amount),
        "promptTokens": spend.prompt_tokens,
        "completionTokens": None,
        "request": format_bytes(spend.request_digest),
        "receipt": None,
        "note": spend.note,
    }
    if stored is not None:
        receipt = stored.receipt.value
        facts = receipt_facts(stored.digest, receipt, reopen_offer(spend.quote, spend.preimage, domain))
        row |= {"receipt": facts["receipt"], "completionTokens": receipt.completion_tokens}
        row |= {"compute": facts["compute"], "royalties": facts["royalties"], "earns": facts["earns"]}
    return row
