"""Several adapters → one: PEFT's `add_weighted_adapter`, target by target, on blobs. Pure functions of weights.

All but `cat` compute in float32 from the stored weights and are rounded to the storage dtype once, at the end.
`cat` moves weights untouched; scale and mix weight go into the result's per-rank scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .blob import Blob, Storage
from .finite import is_number, magnitude
from .recipe import MixMethod, MixRecipe, invalid_mix
from .targets import LoraTargets

Factors = tuple[Tensor, Tensor]
"""A [r, K] and B [N, r]."""


def build_mix(recipe: MixRecipe, members: Sequence[Blob], storage: Storage) -> Blob:
    """The mix of `members`, which are in the order of `recipe.uses`. Raises MIX_INVALID."""
    targets = storage.targets
    placement = storage.place(recipe.ranks([member.placement.ranks for member in members], targets))
    blob = storage.allocate(placement)
    if recipe.method is MixMethod.CAT:
        _concatenate(recipe, members, blob, targets)
        return blob
    blob.write_scales([1.0] * len(targets))
    scales = [_target_scales(member) for member in members]
    generator = torch.Generator().manual_seed(recipe.mask_seed)
    for t in range(len(targets)):
        weighted = [
            (use.weight * its[t], _factors(member, targets, t))
            for use, member, its in zip(recipe.uses, members, scales, strict=True)
            if member.placement.ranks[t]
        ]
        if not weighted:
            continue
        if recipe.method is MixMethod.SVD:
            a, b = best_approximation(weighted, placement.ranks[t])
        else:
            a, b = merge_factors(recipe, weighted, generator)
        blob.a(targets, t).copy_(a)
        blob.b(targets, t).copy_(b.t())
    _check_finite(blob)
    return blob


def merge_factors(recipe: MixRecipe, weighted: Sequence[tuple[float, Factors]], generator: torch.Generator) -> Factors:
    """The A of all adapters merged, and apart from it the B: sqrt|w s| weighs both, the sign goes to A."""
    roots = [math.sqrt(abs(weight)) for weight, _ in weighted]
    signed = [math.copysign(root, weight) for root, (weight, _) in zip(roots, weighted, strict=True)]
    a = _merge(recipe, [factors[0] for _, factors in weighted], signed, generator)
    return a, _merge(recipe, [factors[1] for _, factors in weighted], roots, generator)


def best_approximation(weighted: Sequence[tuple[float, Factors]], rank: int) -> Factors:
    """The truncated SVD of the exact sum of w B A; by QR of the stacked factors, never forming the [N, K] sum.

    B = U S, A = V^T, as in PEFT. The signs of singular vectors are the library's; the product does not depend on them.
    """
    a = torch.cat([weight * a for weight, (a, _) in weighted])
    b = torch.cat([b for _, (_, b) in weighted], dim=1)
    q_a, r_a = torch.linalg.qr(a.t())
    q_b, r_b = torch.linalg.qr(b)
    u, s, vh = torch.linalg.svd(r_b @ r_a.t())
    k = min(rank, len(s))
    whole_a, whole_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
    whole_a[:k] = vh[:k] @ q_a.t()
    whole_b[:, :k] = (q_b @ u[:, :k]) * s[:k]
    return whole_a, whole_b


def _merge(recipe: MixRecipe, tensors: list[Tensor], weights: list[float], generator: torch.Generator) -> Tensor:
    """One factor of all adapters, [n, ...] stacked, pruned, elected and summed as the method says."""
    method, density = recipe.method, recipe.density
    if density is not None and density < 1:
        if method in (MixMethod.DARE_LINEAR, MixMethod.DARE_TIES):
            tensors = [_drop_at_random(tensor, density, generator) for tensor in tensors]
        else:
            tensors = [_keep_largest(tensor, density) for tensor in tensors]
    stacked = torch.stack(tensors)
    weighted = stacked * torch.tensor(weights).view(-1, *[1] * tensors[0].dim())
    if recipe.majority_sign_method is None:
        return weighted.sum(dim=0)
    agreeing = _agrees(stacked, recipe.majority_sign_method)
    return (weighted * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def _keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The share `density` of values that are largest in magnitude. Among equals topk decides, as it does in PEFT."""
    kept = tensor.abs().flatten().topk(int(density * tensor.numel()), sorted=False).indices
    mask = torch.zeros(tensor.numel()).index_fill_(0, kept, 1.0)
    return tensor * mask.view(tensor.shape)


def _drop_at_random(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each value kept with probability `density` and rescaled; drawn in the order in which PEFT draws."""
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * mask / density


def _agrees(stacked: Tensor, method: str) -> Tensor:
    """Which values have the sign that most of them (by number, or by sum) have at their place; zeros never do."""
    sign = stacked.sign()
    votes = stacked.sum(dim=0) if method == "total" else sign.sum(dim=0)
    return sign == torch.where(votes >= 0, 1.0, -1.0)


def _concatenate(recipe: MixRecipe, members: Sequence[Blob], blob: Blob, targets: LoraTargets) -> None:
    """Copy each member's rows behind those of the one before, target by target; no arithmetic on weights."""
    place, places = blob.placement, blob.bits
    sources = [member.bits for member in members]
    for t, target in enumerate(targets):
        a, b = place.a[t], place.b[t]
        for source, member in zip(sources, members, strict=True):
            its, rank = member.placement, member.placement.ranks[t]
            size_a, size_b = rank * target.in_features, rank * target.out_features
            places[a : a + size_a] = source[its.a[t] : its.a[t] + size_a]
            places[b : b + size_b] = source[its.b[t] : its.b[t] + size_b]
            a, b = a + size_a, b + size_b
    owners = np.concatenate([np.repeat(np.arange(len(targets)), member.placement.ranks) for member in members])
    weights = [np.float32(use.weight) * member.rank_scales() for use, member in zip(recipe.uses, members, strict=True)]
    blob.write_rank_scales(np.concatenate(weights)[owners.argsort(kind="stable")])


def _target_scales(member: Blob) -> list[float]:
    """An adapter's one scale at each target (its ranks there share it); 0 where it has none."""
    ranks = np.asarray(member.placement.ranks)
    first = np.cumsum(ranks) - ranks
    scales = np.append(member.rank_scales(), np.float32(0))
    return [float(scale) for scale in np.where(ranks > 0, scales[first], 0)]


def _factors(member: Blob, targets: LoraTargets, t: int) -> Factors:
    # B in PEFT's order of elements: which of equal values topk keeps, and what DARE draws, depend on it.
    return member.a(targets, t).float(), member.b(targets, t).float().t().contiguous()


def _check_finite(blob: Blob) -> None:
    bits = blob.bits
    for first, count in blob.placement.regions:
        if not is_number(magnitude(bits[first : first + count]), blob.dtype):
            raise invalid_mix(
                "the mix's values exceed the storage dtype: lower its weights, or use --lora-dtype float32"
            )
