"""Who gets what when a pipeline's royalties are shared out: the contract's division, told before it is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from openlora_chain.bindings import ArtifactRegistry, Part, Settlement

from ..chainview import Kind

BPS = 10_000


@dataclass
class Division:
    """Wei by owner, by dataset for its static shares, and by (node, dataset) for credits. Dust stays undivided."""

    owners: Counter[bytes] = field(default_factory=Counter)
    shares: Counter[bytes] = field(default_factory=Counter)
    credits: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All of it."""
        return self.owners.total() + self.shares.total() + self.credits.total()

    def add(self, other: Division) -> None:
        """Sum two divisions."""
        self.owners += other.owners
        self.shares += other.shares
        self.credits += other.credits


class Royalties:
    """Divides as `Settlement.harvestMany` would now. Methods raise ChainError as reads do."""

    def __init__(self, artifacts: ArtifactRegistry, settlement: Settlement) -> None:
        self._artifacts = artifacts
        self._settlement = settlement

    async def divide(self, node: bytes, pipeline: bytes) -> Division:
        """What harvesting this (node, pipeline) would credit to whom."""
        division = Division()
        accrued, harvested = await self._settlement.accumulator_of(node, pipeline)
        if accrued == harvested:
            return division
        parts = await self._settlement.parts_of(pipeline)
        total = sum(part.numerator for part in parts)
        for part in parts:
            share = accrued * part.numerator // total - harvested * part.numerator // total
            if share:
                await self._divide_part(division, node, part, share)
        return division

    async def _divide_part(self, division: Division, node: bytes, part: Part, share: int) -> None:
        artifact = await self._artifacts.artifact_of(part.artifact)
        components: tuple[tuple[bytes, int], ...] = ()
        if part.terms_version:
            components = (await self._artifacts.terms_of(part.artifact, part.terms_version)).components
        rest = share
        for component, bps in components:
            amount = share * bps // BPS
            rest -= amount
            if amount:
                await self._divide_component(division, node, component, amount)
        if rest:
            division.owners[artifact.owner] += rest

    async def _divide_component(self, division: Division, node: bytes, component: bytes, amount: int) -> None:
        artifact = await self._artifacts.artifact_of(component)
        if artifact.kind != Kind.DATASET or not any(artifact.shares_root):
            division.owners[artifact.owner] += amount
            return
        terms = await self._artifacts.terms_of(component, artifact.latest_version)
        by_use = amount * terms.credits_bps // BPS
        division.credits[node, component] += by_use
        division.shares[component] += amount - by_use
