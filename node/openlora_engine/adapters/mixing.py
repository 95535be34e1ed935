"""Several adapters → one: PEFT's `add_weighted_adapter`, target by target, on blobs. Pure functions of weights.

All but `cat` compute in float32 from the stored weights and are rounded to the storage dtype once, at the end.
`cat` moves weights untouched; scale and mix weight go into the result's per-rank scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .blob import Blob, Storage
from .finite import bits_of, is_number, magnitude
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
    blob.write_scales([1.0 if rank else 0.0 for rank in placement.ranks])
    generator = torch.Generator().manual_seed(recipe.mask_seed)
    for t in range(len(targets)):
        present = [(use.weight, member) for use, member in zip(recipe.uses, members, strict=True) if _has(member, t)]
        if not present:
            continue
        weighted = [
            (weight * float(member.scales(targets, t)[0]), _factors(member, targets, t)) for weight, member in present
        ]
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
    for t in range(len(targets)):
        a, b, scales = blob.a(targets, t), blob.b(targets, t), blob.scales(targets, t)
        start = 0
        for use, member in zip(recipe.uses, members, strict=True):
            end = start + member.placement.ranks[t]
            a[start:end] = member.a(targets, t)
            b[start:end] = member.b(targets, t)
            scales[start:end] = use.weight * member.scales(targets, t)
            start = end


def _has(member: Blob, t: int) -> bool:
    return member.placement.ranks[t] > 0


def _factors(member: Blob, targets: LoraTargets, t: int) -> Factors:
    # B in PEFT's order of elements: which of equal values topk keeps, and what DARE draws, depend on it.
    return member.a(targets, t).float(), member.b(targets, t).float().t().contiguous()


def _check_finite(blob: Blob) -> None:
    bits = bits_of(blob.elements.view(torch.uint8).numpy(), blob.dtype)
    for first, count in blob.placement.regions:
        if not is_number(magnitude(bits[first : first + count]), blob.dtype):
            raise invalid_mix(
                "the mix's values exceed the storage dtype: lower its weights, or use --lora-dtype float32"
            )
