"""Which tensor of an adapter's file goes where: names, shapes and ranks held against the base and the configuration.

Every tensor must have a place and every selected linear its tensors; what is wrong is refused with all offenders named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import Code, EngineError
from .blob import Storage
from .folder import WEIGHTS_FILE
from .header import Reader, TensorInfo, parse_header, read_header
from .patterns import Matcher
from .peft_config import LoraConfig
from .problems import invalid, listed, refuse
from .targets import LoraTargets

_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_HEADER_BASE = 1 << 18
_HEADER_PER_TENSOR = 1 << 10

Placed = tuple[TensorInfo, int, bool]
"""A tensor, its target, and whether it is lora_B."""


@dataclass(frozen=True)
class WeightPlan:
    """A file whose every tensor has its place: tensors in the file's order, ranks and scales per target."""

    tensors: tuple[Placed, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]


def plan_weights(file: Reader, file_size: int, config: LoraConfig, storage: Storage) -> WeightPlan:
    """Read the header and find every tensor's place; reads no weights.

    Raises ADAPTER_INVALID (the file contradicts itself or its configuration), ADAPTER_MISMATCH (made for another base)
    or RANK_TOO_LARGE, naming the offenders.
    """
    header = read_header(file, file_size, _HEADER_BASE + 2 * len(storage.targets) * _HEADER_PER_TENSOR)
    return _plan(header, file_size, config, storage)


@lru_cache(maxsize=16)
def _plan(header: bytes, file_size: int, config: LoraConfig, storage: Storage) -> WeightPlan:
    """Adapters of one shape from one tool have the same header: their plan is made once."""
    targets, matcher = storage.targets, Matcher()
    tensors = parse_header(header, file_size)
    found = _by_target(tensors, targets)
    ranks = [0] * len(targets)
    for t in found:
        ranks[t] = config.rank_of(targets.items[t].path, matcher)
    _refuse_shapes(found, ranks, targets)
    check_rank(max(ranks), storage.max_lora_rank)
    _refuse_selection(found, config, targets, matcher)
    scales = [
        config.scale_of(target.path, rank, matcher) if rank else 0.0
        for target, rank in zip(targets, ranks, strict=True)
    ]
    order = {info.name: (t, is_b) for t, pair in found.items() for is_b, info in zip((False, True), pair, strict=True)}
    return WeightPlan(tuple((info, *order[info.name]) for info in tensors), tuple(ranks), tuple(scales))


def check_rank(rank: int, limit: int, what: str = "rank") -> None:
    """Raise RANK_TOO_LARGE, saying how to raise the limit."""
    if rank > limit:
        raise EngineError(
            Code.RANK_TOO_LARGE,
            f"{what} {rank} is above the limit of {limit}: start the engine with --max-lora-rank {rank}",
        )


def _by_target(tensors: Sequence[TensorInfo], targets: LoraTargets) -> dict[int, tuple[TensorInfo, TensorInfo]]:
    """lora_A and lora_B of each target. Raises for names that are none of this base's."""
    pairs: dict[str, dict[str, TensorInfo]] = {}
    foreign = []
    for info in tensors:
        suffix = next((suffix for suffix in _SUFFIXES if info.name.endswith(suffix)), None)
        if suffix is None or not info.name.startswith(_PREFIX):
            foreign.append(info.name)
            continue
        pairs.setdefault(info.name[len(_PREFIX) : -len(suffix)], {})[suffix] = info
    refuse([f"{name} is neither lora_A nor lora_B of a linear" for name in foreign], WEIGHTS_FILE)
    unknown = [path for path in pairs if path not in targets.by_path]
    if unknown:
        raise EngineError(
            Code.ADAPTER_MISMATCH,
            f"the base has no linear that takes LoRA at {listed(unknown)}: the adapter is for another base, or changes "
            "its embeddings or head",
        )
    lone = [f"{path} has only {next(iter(pair))[1:7]}" for path, pair in pairs.items() if len(pair) < 2]
    refuse(lone, WEIGHTS_FILE)
    if not pairs:
        raise invalid(f"{WEIGHTS_FILE} has no tensors")
    return {targets.by_path[path]: (pair[_SUFFIXES[0]], pair[_SUFFIXES[1]]) for path, pair in pairs.items()}


def _refuse_selection(
    found: dict[int, tuple[TensorInfo, TensorInfo]], config: LoraConfig, targets: LoraTargets, matcher: Matcher
) -> None:
    """PEFT would leave a linear without weights at its initial values, and ignore weights that it did not select."""
    selected = {t for t, target in enumerate(targets) if config.selects(target.path, matcher)}
    missing = [targets.items[t].path for t in sorted(selected - found.keys())]
    refuse([f"no weights for {path}, which target_modules selects" for path in missing], WEIGHTS_FILE)
    extra = [targets.items[t].path for t in sorted(found.keys() - selected)]
    refuse([f"weights for {path}, which target_modules does not select" for path in extra], WEIGHTS_FILE)


def _refuse_shapes(found: dict[int, tuple[TensorInfo, TensorInfo]], ranks: Sequence[int], targets: LoraTargets) -> None:
    """Raise ADAPTER_MISMATCH for other features than the base's, ADAPTER_INVALID for another rank than configured."""
    features, rank = [], []
    for t, (a, b) in found.items():
        target, r = targets.items[t], ranks[t]
        k, n = target.in_features, target.out_features
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != k or b.shape[0] != n:
            features.append(f"{target.path} is [{n}, {k}], lora_A {list(a.shape)}, lora_B {list(b.shape)}")
        elif a.shape[0] != r or b.shape[1] != r:
            rank.append(f"{target.path} has rank {a.shape[0]} in lora_A and {b.shape[1]} in lora_B, {r} by the config")
    if features:
        raise EngineError(Code.ADAPTER_MISMATCH, f"the adapter is for another base: {listed(features)}")
    refuse(rank, WEIGHTS_FILE)
