"""What an adapter may touch: the base's linears by module path, and where each lies in the kernels' LoRA groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from openlora_kernels.lora import LoraGroup


@dataclass(frozen=True)
class LoraTarget:
    """One linear of the base, y [N] = W x [K].

    `path` is its module path in the Hugging Face model ("model.layers.0.self_attn.q_proj"), as PEFT names it in files
    and patterns. `group` is the LoRA group whose input it shares, `index` its place in that group. Shapes are those of
    the linear map, whatever the weight is stored as: for GPT-2's Conv1D (`fan_in_fan_out`) PEFT's lora_A is [r, K] and
    lora_B [N, r] like anywhere else.
    """

    path: str
    group: int
    index: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class LoraTargets:
    """All targets of a base, in the order of the model's modules; targets of a group stand together, groups ascend."""

    items: tuple[LoraTarget, ...]

    def __post_init__(self) -> None:
        places = [(target.group, target.index) for target in self.items]
        expected = [
            (group, index)
            for group, (_, members) in enumerate(groupby(self.items, key=lambda target: target.group))
            for index, _ in enumerate(members)
        ]
        assert places == expected, "targets must stand group by group, index by index"
        assert len(self.by_path) == len(self.items), "two targets have one path"

    def __hash__(self) -> int:
        # A cache's key is hashed at every look-up: once over all targets is enough.
        return self._hash

    def __iter__(self) -> Iterator[LoraTarget]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def _hash(self) -> int:
        return hash(self.items)

    @cached_property
    def by_path(self) -> dict[str, int]:
        """Position of each path."""
        return {target.path: position for position, target in enumerate(self.items)}

    @cached_property
    def groups(self) -> tuple[LoraGroup, ...]:
        """The kernels' view of the same targets."""
        by_group = [tuple(members) for _, members in groupby(self.items, key=lambda target: target.group)]
        return tuple(
            LoraGroup(members[0].in_features, tuple(target.out_features for target in members)) for members in by_group
        )

    def ranks_by_group(self, ranks: Sequence[int]) -> list[list[int]]:
        """One rank a target → `ranks[g][j]`, as `BlobLayout.of` takes them."""
        rows: list[list[int]] = [[] for _ in self.groups]
        for target, rank in zip(self.items, ranks, strict=True):
            rows[target.group].append(rank)
        return rows
