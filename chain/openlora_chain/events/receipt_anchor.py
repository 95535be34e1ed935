"""What the anchor tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Anchored:
    """ReceiptAnchor: an epoch's root; totals are (count, firstSeq, lastSeq, tokens, compute, royalties)."""

    node: bytes
    epoch: int
    root: bytes
    totals: tuple[int, ...]


EVENTS = (Anchored,)
