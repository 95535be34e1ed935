"""A pipeline: one base model, up to four adapters with signed mix weights, and how they are mixed.

`pipelineId` is the EIP-712 struct hash of exactly that, so a node, a payer and a contract compute the same id from the
same choice. There is one way to write a pipeline: adapters in ascending id order, each once, no zero weight.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import pairwise

from .eip712 import TypedStruct
from .errors import ErrorCode, ProtocolError
from .ids import PipelineId
from .solidity import Bytes32, Int32, Uint8, Uint32

MAX_ADAPTERS = 4
WEIGHT_ONE = 10_000
"""Mix weights count ten-thousandths: 10,000 is 1.0."""
WEIGHT_QUANTUM = 500
"""Mix weights are multiples of 0.05, so that near-equal mixes share an id, a cached mix and one settlement charge."""


class MixMethod(IntEnum):
    """How adapters are combined; the names are those of PEFT's `add_weighted_adapter`.

    Numbers are append-only. The methods that drop values use density 0.5; DARE draws its mask from a generator seeded
    with the first 8 bytes of the pipeline id, so that a mix is reproducible from its id.
    """

    CAT = 0
    """Exact composition: ranks concatenated, Σ wᵢ·sᵢ·BᵢAᵢ. The default, and the only method for fewer than two."""
    LINEAR = 1
    SVD = 2
    TIES = 3
    DARE_LINEAR = 4
    DARE_TIES = 5
    MAGNITUDE_PRUNE = 6


class Adapter(TypedStruct, frozen=True, kw_only=True):
    """One adapter of a pipeline: artifact id, terms version (0 while unregistered), weight in ten-thousandths."""

    id: Bytes32
    terms_version: Uint32
    weight: Int32


class Pipeline(TypedStruct, frozen=True, kw_only=True):
    """Base, adapters and method. Raises ProtocolError BAD_PIPELINE for every non-canonical form."""

    base: Bytes32
    base_terms_version: Uint32
    adapters: tuple[Adapter, ...] = ()
    method: Uint8 = MixMethod.CAT

    def validate(self) -> None:
        """One canonical form for one choice."""
        if len(self.adapters) > MAX_ADAPTERS:
            raise _refuse(f"{len(self.adapters)} adapters; a pipeline mixes at most {MAX_ADAPTERS}")
        if any(adapter.weight == 0 or adapter.weight % WEIGHT_QUANTUM for adapter in self.adapters):
            raise _refuse(f"a mix weight is a non-zero multiple of {WEIGHT_QUANTUM} ten-thousandths")
        ids = [adapter.id for adapter in self.adapters]
        if any(left >= right for left, right in pairwise(ids)):
            raise _refuse("adapters stand in ascending order of their ids, each once")
        if self.base in ids:
            raise _refuse("the base is not an adapter of itself")
        if self.method not in MixMethod.__members__.values():
            raise _refuse(f"mix method {self.method} is not known; 0 to {max(MixMethod)} are")
        if len(ids) < 2 and self.method != MixMethod.CAT:
            raise _refuse("fewer than two adapters are not mixed: method is 0")

    @property
    def id(self) -> PipelineId:
        """The pipeline's id, 32 bytes: its EIP-712 struct hash."""
        return PipelineId(self.struct_hash())

    @classmethod
    def of(
        cls, base: bytes, *adapters: Adapter, base_terms_version: int = 0, method: MixMethod = MixMethod.CAT
    ) -> Pipeline:
        """The canonical pipeline of these parts: sorts the adapters; below two adapters the method falls to CAT."""
        return cls(
            base=base,
            base_terms_version=base_terms_version,
            adapters=tuple(sorted(adapters, key=lambda adapter: adapter.id)),
            method=method if len(adapters) > 1 else MixMethod.CAT,
        )


def _refuse(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_PIPELINE, message)
