"""The credits: dataset pools divided by use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contract import Calldata, Contract


@dataclass(frozen=True, slots=True)
class ActiveCredits:
    """The credits in force, amounts in wei; 32 zero bytes and zeros before the first."""

    root: bytes
    total: int
    must_reach: int
    """The next post decides at least so much of what accrued."""
    epoch: int


@dataclass(frozen=True, slots=True)
class PendingCredits:
    """Credits in their timelock, amounts in wei; `activates_at` is unix seconds, 0 where there are none."""

    root: bytes
    total: int
    through: int
    epoch: int
    activates_at: int


class Credits(Contract):
    """Dataset pools credited by use."""

    name = "Credits"

    async def active_of(self, node: bytes, dataset: bytes, at: int | None = None) -> ActiveCredits:
        """The credits in force, now or after block `at`."""
        return ActiveCredits(*(await self._read("activeOf", node, dataset, at=at))[0])

    async def pending_of(self, node: bytes, dataset: bytes, at: int | None = None) -> PendingCredits | None:
        """The credits in their timelock, now or after block `at`; None where there are none."""
        found = PendingCredits(*(await self._read("pendingOf", node, dataset, at=at))[0])
        return found if found.activates_at else None

    async def post_window(self) -> int:
        """Seconds that a pool waits for a post before anyone may send it to static shares."""
        return int((await self._read("POST_WINDOW"))[0])

    async def active_root(self, node: bytes, dataset: bytes) -> bytes:
        """The root of the credits in force, 32 zero bytes before the first."""
        return (await self.active_of(node, dataset)).root

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
