"""The anchor: roots of receipts, and judgement over two receipts with one number."""

from __future__ import annotations

from typing import Any

from .contract import Calldata, Contract


class ReceiptAnchor(Contract):
    """Roots of receipts, and judgement over two receipts with one number."""

    name = "ReceiptAnchor"

    async def root_of(self, node: bytes, epoch: int) -> bytes:
        """The anchored root, 32 zero bytes if none."""
        return bytes((await self._read("rootOf", node, epoch))[0])

    def anchor(self, node: bytes, epoch: int, root: bytes, totals: tuple[int, int, int, int, int, int]) -> Calldata:
        """Anchor an epoch: totals are (count, firstSeq, lastSeq, tokens, compute, royalties)."""
        return self._write("anchor", node, epoch, root, totals)

    def challenge_equivocation(
        self, a: tuple[Any, ...], signature_a: bytes, b: tuple[Any, ...], signature_b: bytes
    ) -> Calldata:
        """Prove that a node signed two receipts under one number."""
        return self._write("challengeEquivocation", a, signature_a, b, signature_b)
