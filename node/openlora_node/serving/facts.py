"""What the chain and the artifact store say about a request, looked up once it is known who signed it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..admission import PartStanding, Standing, Visitor
from ..attribution import Behind, Part
from ..chainview.values import Kind, Scope, Terms
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id, parse_artifact_id
from ..protocol.manifest import AdapterManifest, AnyManifest
from ..protocol.pipeline import WEIGHT_ONE, Pipeline
from .ports import ArtifactsLike, ChainLike


def parts_of(pipeline: Pipeline) -> tuple[tuple[bytes, int, int], ...]:
    """(artifact, terms version, weight) of a pipeline, base first."""
    adapters = ((adapter.id, adapter.terms_version, adapter.weight) for adapter in pipeline.adapters)
    return ((pipeline.base, pipeline.base_terms_version, WEIGHT_ONE), *adapters)


class Facts:
    """Look-ups for the door and for receipts. Keeps nothing: the chain view does."""

    def __init__(self, chain: ChainLike, artifacts: ArtifactsLike) -> None:
        self._chain = chain
        self._artifacts = artifacts

    async def terms(self, artifact: bytes, version: int, kind: Kind) -> Terms:
        """The terms of one artifact of a quote. Raises BAD_PIPELINE for a version or kind that does not exist."""
        terms = await self._chain.terms_at(artifact, version)
        if terms is None and version == 0:
            terms = Terms(artifact)
        if terms is None or terms.version != version:
            raise OpenLoraError(
                ErrorCode.BAD_PIPELINE, f"{format_artifact_id(artifact)} has no terms of version {version}"
            )
        if terms.kind not in (Kind.NONE, kind):
            raise OpenLoraError(
                ErrorCode.BAD_PIPELINE, f"{format_artifact_id(artifact)} is registered as another kind of artifact"
            )
        return terms

    async def accepted_until(self, pipeline: Pipeline) -> int:
        """Unix seconds until which all terms of a pipeline are honoured."""
        return min([await self._chain.accepted_until(artifact, version) for artifact, version, _ in parts_of(pipeline)])

    async def standing(self, visitor: Visitor) -> Standing:
        """Signer, access and terms of a request, all at once."""
        may_sign = visitor.signer == visitor.payer or await self._chain.may_sign(visitor.payer, visitor.signer)
        if not may_sign:
            return Standing(False, ())
        parts = parts_of(visitor.pipeline)
        if len(parts) == 1:
            return Standing(True, (await self._part_standing(visitor.payer, *parts[0][:2]),))
        return Standing(True, await asyncio.gather(*(self._part_standing(visitor.payer, *part[:2]) for part in parts)))

    async def _part_standing(self, payer: bytes, artifact: bytes, version: int) -> PartStanding:
        return PartStanding(
            artifact,
            await self._chain.has_access(artifact, Scope.USE, payer),
            await self._chain.accepted_until(artifact, version),
        )

    async def parts(self, pipeline: Pipeline, owners: Sequence[bytes]) -> tuple[Part, ...]:
        """Everything that a receipt names of a pipeline; `owners` of its artifacts as they were quoted."""
        return tuple(
            [
                Part(artifact, version, weight, owner, await self._behind(artifact, version))
                for (artifact, version, weight), owner in zip(parts_of(pipeline), owners, strict=True)
            ]
        )

    def check_base(self, pipeline: Pipeline) -> None:
        """Raises BAD_PIPELINE for an adapter that is here and was made for another base."""
        for adapter in pipeline.adapters:
            manifest = self._artifacts.manifest(adapter.id)
            if manifest is not None and not _fits(manifest, pipeline.base):
                raise OpenLoraError(
                    ErrorCode.BAD_PIPELINE, f"{format_artifact_id(adapter.id)} is no adapter of this pipeline's base"
                )

    async def _behind(self, artifact: bytes, version: int) -> tuple[Behind, ...]:
        manifest = self._artifacts.manifest(artifact)
        terms = await self._chain.terms_at(artifact, version) or Terms(artifact)
        registered = dict(terms.components)
        declared = (
            [bytes(parse_artifact_id(text)) for text in manifest.datasets]
            if isinstance(manifest, AdapterManifest)
            else []
        )
        behind = []
        for other in (*registered, *(name for name in declared if name not in registered)):
            theirs = await self._chain.terms(other)
            kind = "base" if theirs.kind == Kind.BASE else "dataset"
            behind.append(Behind(other, registered.get(other, 0), theirs.shares_root, kind, theirs.credits_bps))
        return tuple(behind)


def _fits(manifest: AnyManifest, base: bytes) -> bool:
    return isinstance(manifest, AdapterManifest) and parse_artifact_id(manifest.base) == base
