"""The credits: dataset pools divided by use."""

from __future__ import annotations

from collections.abc import Sequence

from .contract import Calldata, Contract


class Credits(Contract):
    """Dataset pools credited by use."""

    name = "Credits"

    async def active_root(self, node: bytes, dataset: bytes) -> bytes:
        """The root of the credits in force, 32 zero bytes before the first."""
        ((root, _total, _reach, _epoch),) = await self._read("activeOf", node, dataset)
        return bytes(root)

    async def paid_to(self, node: bytes, dataset: bytes, contributor: bytes) -> int:
        """Wei of credits that a contributor was paid."""
        return int((await self._read("paidTo", node, dataset, contributor))[0])

    def post(
        self, node: bytes, dataset: bytes, epoch: int, root: bytes, leaves: bytes, total: int, through: int
    ) -> Calldata:
        """Post a cumulative credits root."""
        return self._write("post", node, dataset, epoch, root, leaves, total, through)

    def veto(self, node: bytes, dataset: bytes) -> Calldata:
        """Refuse a posted root."""
        return self._write("veto", node, dataset)

    def activate(self, node: bytes, dataset: bytes) -> Calldata:
        """Make a root claimable after its timelock."""
        return self._write("activate", node, dataset)

    def lapse(self, node: bytes, dataset: bytes) -> Calldata:
        """Give a pool that nobody credited to the static shares."""
        return self._write("lapse", node, dataset)

    def claim(
        self,
        node: bytes,
        dataset: bytes,
        contributor: bytes,
        cumulative: int,
        credit_proof: Sequence[bytes],
        bps: int,
        share_proof: Sequence[bytes],
    ) -> Calldata:
        """Pay a contributor's credits."""
        return self._write("claim", node, dataset, contributor, cumulative, list(credit_proof), bps, list(share_proof))
