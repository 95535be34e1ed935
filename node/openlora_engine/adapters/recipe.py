"""Which adapters a request mixes, with what weights and how: one canonical form a choice, so that equal mixes share.

Knows ranks, never weights. What a method computes is in mixing.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ..errors import Code, EngineError
from .digest import digest_of, mix_hash
from .targets import LoraTargets

DEFAULT_DENSITY = 0.5
DEFAULT_MAJORITY = "total"
MAX_WEIGHT = 1e4


class MixMethod(StrEnum):
    """How adapters are combined; names and meaning are those of PEFT's `add_weighted_adapter`."""

    CAT = "cat"
    """Exact: ranks concatenated, the sum of w_i s_i B_i A_i. Any ranks."""
    LINEAR = "linear"
    """A and B summed apart, each with sqrt(w_i s_i): cross terms B_i A_j come in. Equal ranks."""
    SVD = "svd"
    """The best approximation of the exact sum at a given rank. Any ranks."""
    TIES = "ties"
    """Small values dropped, signs elected, agreeing values summed (arXiv 2306.01708). Equal ranks."""
    DARE_LINEAR = "dare_linear"
    """Values dropped at random, the rest rescaled, then linear (arXiv 2311.03099). Equal ranks."""
    DARE_TIES = "dare_ties"
    """DARE's dropping, then TIES' election. Equal ranks."""
    MAGNITUDE_PRUNE = "magnitude_prune"
    """Small values dropped, then linear. Equal ranks."""


DROPPING = frozenset({MixMethod.TIES, MixMethod.DARE_LINEAR, MixMethod.DARE_TIES, MixMethod.MAGNITUDE_PRUNE})
ELECTING = frozenset({MixMethod.TIES, MixMethod.DARE_TIES})
RANDOM = frozenset({MixMethod.DARE_LINEAR, MixMethod.DARE_TIES})
ANY_RANKS = frozenset({MixMethod.CAT, MixMethod.SVD})


@dataclass(frozen=True)
class AdapterUse:
    """One adapter of a mix. `weight` may be negative; 0 is no use."""

    digest: str
    weight: float


@dataclass(frozen=True)
class MixRecipe:
    """A mix in its canonical form (`of`): uses in ascending order of digest, settings of other methods left None.

    `density` is the share of values kept. `seed` (64 bits) draws DARE's masks; without one given it comes from the
    rest of the recipe, so that a recipe always gives the same adapter.
    """

    uses: tuple[AdapterUse, ...]
    method: MixMethod
    density: float | None = None
    majority_sign_method: str | None = None
    svd_rank: int | None = None
    seed: int | None = None

    @classmethod
    def of(
        cls,
        uses: Sequence[AdapterUse],
        method: str = MixMethod.CAT,
        *,
        density: float | None = None,
        majority_sign_method: str | None = None,
        svd_rank: int | None = None,
        seed: int | None = None,
        max_adapters: int = 4,
    ) -> MixRecipe:
        """The canonical recipe. One adapter is never mixed: its method is `cat`, as in PEFT. Raises MIX_INVALID."""
        _check_uses(uses, max_adapters)
        chosen = _method(method) if len(uses) > 1 else MixMethod.CAT
        return cls(
            tuple(sorted(uses, key=lambda use: use.digest)),
            chosen,
            _density(density) if chosen in DROPPING else None,
            _majority(majority_sign_method) if chosen in ELECTING else None,
            _svd_rank(svd_rank) if chosen is MixMethod.SVD else None,
            _seed(seed) if chosen in RANDOM else None,
        )

    @property
    def digest(self) -> str:
        """Identity of what the mix computes, for given adapters' digests."""
        return digest_of(mix_hash(self._canonical(self.seed)))

    @property
    def mask_seed(self) -> int:
        """What DARE's generator is seeded with."""
        if self.seed is not None:
            return self.seed
        return int(mix_hash(self._canonical(None)).hexdigest()[:16], 16)

    def ranks(self, members: Sequence[Sequence[int]], targets: LoraTargets) -> tuple[int, ...]:
        """Rank at each target of the mix, from those of its members in order. Raises MIX_INVALID."""
        if self.method is MixMethod.CAT:
            return tuple(sum(ranks) for ranks in zip(*members, strict=True))
        if self.method is MixMethod.SVD:
            rank = self.svd_rank or max(max(ranks, default=0) for ranks in members)
            return tuple(
                min(rank, target.in_features, target.out_features) if any(ranks) else 0
                for target, ranks in zip(targets, zip(*members, strict=True), strict=True)
            )
        unequal = [t for t, ranks in enumerate(zip(*members, strict=True)) if len(set(ranks) - {0}) > 1]
        if unequal:
            path = targets.items[unequal[0]].path
            differing = ", ".join(str(ranks[unequal[0]]) for ranks in members)
            raise invalid_mix(
                f"method {self.method} needs adapters of equal rank, {path} has {differing}: use cat or svd"
            )
        return tuple(max(ranks) for ranks in zip(*members, strict=True))

    def _canonical(self, seed: int | None) -> bytes:
        fields = {
            "uses": [[use.digest, float(use.weight).hex()] for use in self.uses],
            "method": self.method.value,
            "density": None if self.density is None else self.density.hex(),
            "majority_sign_method": self.majority_sign_method,
            "svd_rank": self.svd_rank,
            "seed": seed,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def invalid_mix(message: str) -> EngineError:
    """The error for a mix that cannot be made."""
    return EngineError(Code.MIX_INVALID, message, param="adapters")


def _check_uses(uses: Sequence[AdapterUse], most: int) -> None:
    if not uses:
        raise invalid_mix("a mix needs at least one adapter")
    if len(uses) > most:
        raise invalid_mix(f"{len(uses)} adapters in one mix, at most {most}: start the engine with --max-mix-adapters")
    for use in uses:
        if not math.isfinite(use.weight) or not 0 < abs(use.weight) <= MAX_WEIGHT:
            raise invalid_mix(f"weight {use.weight} of {use.digest} is zero, too large or no number")
    for left, right in pairwise(sorted(use.digest for use in uses)):
        if left == right:
            raise invalid_mix(f"{left} is named twice: add its weights up")


def _method(name: str) -> MixMethod:
    try:
        return MixMethod(name)
    except ValueError:
        raise invalid_mix(f"method {name[:40]!r} is not known; {', '.join(MixMethod)} are") from None


def _density(density: float | None) -> float:
    if density is None:
        return DEFAULT_DENSITY
    if not 0 < density <= 1:
        raise invalid_mix(f"density {density} is not above 0 and at most 1")
    return float(density)


def _majority(method: str | None) -> str:
    if method not in (None, "total", "frequency"):
        raise invalid_mix('majority_sign_method is "total" or "frequency"')
    return method or DEFAULT_MAJORITY


def _svd_rank(rank: int | None) -> int | None:
    if rank is not None and rank < 1:
        raise invalid_mix(f"svd_rank {rank} is below 1")
    return rank


def _seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < 1 << 64:
        raise invalid_mix("seed is a whole number of at most 64 bits")
    return seed
