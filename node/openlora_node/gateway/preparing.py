"""A body understood before anything is signed: its base and adapters by id, their terms, its prompt's count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..openai import Body, BodyError
from ..protocol.errors import ErrorCode
from ..protocol.ids import format_address, format_artifact_id
from ..protocol.pipeline import WEIGHT_ONE, Adapter, Pipeline
from ..protocol.pricing import RoyaltySchedule
from .models import Part, Wanted, known, wanted
from .names import Names
from .ports import Chain, Nodes, TermsLike
from .tokenizers import Tokenizers
from .wording import Decode

KIND_BASE, KIND_ADAPTER = 1, 2
"""Numbers of the ArtifactRegistry."""


@dataclass(frozen=True)
class Prepared:
    """A body that was understood: what it runs on under the chain's present terms, and what its prompt counts."""

    body: Body
    pipeline: Pipeline
    terms: tuple[TermsLike, ...]
    label: str
    prompt_tokens: int
    longest_token: int
    """Characters that a token of the base stands for at most."""
    decode: Decode

    @property
    def adapters(self) -> frozenset[bytes]:
        """The adapters' ids."""
        return frozenset(adapter.id for adapter in self.pipeline.adapters)

    @property
    def schedule(self) -> RoyaltySchedule:
        """How its royalties grow."""
        base, *adapters = (entry.rate for entry in self.terms)
        return RoyaltySchedule.of(self.pipeline, base, tuple(adapters))


class Preparer:
    """Understands bodies for one payer."""

    def __init__(self, payer: bytes, chain: Chain, nodes: Nodes, tokenizers: Tokenizers, names: Names) -> None:
        self._payer = payer
        self._chain = chain
        self._nodes = nodes
        self._tokenizers = tokenizers
        self.names = names

    async def prepare(self, body: Body) -> Prepared:
        """Understand a body. Raises BodyError, MODEL_NOT_FOUND, ACCESS_DENIED, CHAIN_FAILED."""
        asked = wanted(body.model, body.adapters, body.adapter_method, self.names)
        base, parts = await self._resolve(asked)
        terms = [await self._chain.terms(artifact) for artifact in (base, *(part.id for part in parts))]
        self._check_kinds(terms)
        for entry in terms:
            if not await self._chain.has_access(entry.artifact, self._payer):
                command = (
                    f"openlora artifacts buy {format_artifact_id(entry.artifact)} --for {format_address(self._payer)}"
                )
                raise BodyError(
                    ErrorCode.ACCESS_DENIED,
                    f"buy or ask for access to {self.names.name_of(entry.artifact)}: `{command}`",
                    "model",
                )
        versions = {entry.artifact: entry.version for entry in terms}
        adapters = [Adapter(id=part.id, terms_version=versions[part.id], weight=part.weight) for part in parts]
        pipeline = Pipeline.of(base, *adapters, base_terms_version=versions[base], method=asked.method)
        await self._nodes.follow(base)
        counter = await self._tokenizers.counter(base)
        by_id = {entry.artifact: entry for entry in terms}
        ordered = (by_id[base], *(by_id[adapter.id] for adapter in pipeline.adapters))
        count = await counter.count(body)
        return Prepared(body, pipeline, ordered, self.label(pipeline), count, counter.longest_token, counter.decode)

    def label(self, pipeline: Pipeline) -> str:
        """The pipeline in names: base+adapter:0.7+adapter:0.3."""
        parts = [self.names.name_of(pipeline.base)]
        for adapter in pipeline.adapters:
            weight = "" if adapter.weight == WEIGHT_ONE else f":{adapter.weight / WEIGHT_ONE:g}"
            parts.append(f"{self.names.name_of(adapter.id)}{weight}")
        return "+".join(parts)

    async def _resolve(self, asked: Wanted) -> tuple[bytes, tuple[Part, ...]]:
        """Base and adapters; where only an id was given, the chain says which of the two it is."""
        if asked.base is not None:
            return asked.base, asked.adapters
        (only,) = asked.adapters
        terms = await self._chain.terms(only.id)
        if terms.kind == KIND_BASE:
            return only.id, ()
        if terms.kind == KIND_ADAPTER:
            for component, _ in terms.components:
                if (await self._chain.terms(component)).kind == KIND_BASE:
                    return component, asked.adapters
            raise BodyError(
                ErrorCode.MODEL_NOT_FOUND, "the chain does not say this adapter's base: write <base>+<adapter>", "model"
            )
        if await self._nodes.offers(only.id):
            return only.id, ()
        raise BodyError(
            ErrorCode.MODEL_NOT_FOUND,
            f"neither names nor chain nor nodes know {format_artifact_id(only.id)[:23]}…: {known(self.names)}",
            "model",
        )

    def _check_kinds(self, terms: Sequence[TermsLike]) -> None:
        for place, entry in enumerate(terms):
            right = KIND_ADAPTER if place else KIND_BASE
            if entry.kind not in (0, right):
                what = "an adapter" if place else "a base"
                raise BodyError(
                    ErrorCode.BAD_PIPELINE, f"{self.names.name_of(entry.artifact)} is not {what} on chain", "model"
                )
