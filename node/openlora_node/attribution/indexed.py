"""From traces to leaves and back: what a receipt says of a dataset with an index, and what that is worth. Pure.

A receipt holds, for each dataset that was traced, its index, the coverage, and at most MAX_CREDITED contributors with
their parts; so credits are paid out of receipts alone, and replayed by whoever has the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import ZERO32
from ..protocol.merkle import MerkleTree, amount_leaf
from .parts import Indexed
from .tracing import ALGORITHM, PPM, Trace

MAX_CREDITED = 16
"""Contributors of one dataset that one receipt credits: the largest parts. What the others had goes by shares."""
BPS = 10_000
UNIT = BPS * PPM * PPM
"""Credits are counted in wei / UNIT, exact, and rounded down once, when they are cumulative."""


@dataclass(frozen=True)
class DatasetFacts:
    """The leaves of one dataset with an index. `name` is their common beginning, such as adapter/0/dataset/1."""

    name: str
    dataset: bytes
    royalty: int
    """What the dataset earned with the response, in wei."""
    assigned: int
    """Basis points of it that go by use."""
    indexed: Indexed

    def credited(self) -> tuple[tuple[bytes, int], ...]:
        """(contributor, wei · UNIT) of this response."""
        whole = self.royalty * self.assigned * self.indexed.coverage
        return tuple((owner, whole * part) for owner, part in self.indexed.credits)


def to_indexed(index: bytes, owners: Sequence[bytes], traces: Sequence[Trace]) -> Indexed:
    """What the traces of all choices come to. `owners` are the addresses that the traces number.

    Coverage is the mean over all tokens of all choices. Parts are of what is credited; of equal parts the lower address
    counts as larger.
    """
    length = sum(found.length for found in traces)
    weights: dict[bytes, int] = {}
    for found in traces:
        for owner, part in found.parts:
            address = bytes(owners[owner])
            weights[address] = weights.get(address, 0) + found.coverage * found.length * part
    coverage = sum(found.coverage * found.length for found in traces) // length if length else 0
    parts = _largest_remainder({owner: weight for owner, weight in weights.items() if weight})
    chosen = sorted(parts, key=lambda owner: (-parts[owner], owner))[:MAX_CREDITED]
    return Indexed(index, ALGORITHM, coverage, tuple((owner, parts[owner]) for owner in sorted(chosen)))


def _largest_remainder(weights: Mapping[bytes, int]) -> dict[bytes, int]:
    whole = sum(weights.values())
    parts = {owner: weight * PPM // whole for owner, weight in weights.items()}
    order = sorted(weights, key=lambda owner: (-(weights[owner] * PPM % whole), owner))
    for owner in order[: PPM - sum(parts.values())]:
        parts[owner] += 1
    return {owner: part for owner, part in parts.items() if part}


def credits_root(credited: Sequence[tuple[bytes, int]]) -> bytes:
    """Merkle root over (contributor, part); 32 zero bytes where nothing is credited."""
    return MerkleTree(amount_leaf(owner, part) for owner, part in credited).root if credited else ZERO32


def read_datasets(facts: Mapping[str, bytes]) -> Iterator[DatasetFacts]:
    """The datasets with an index among a receipt's attribution leaves.

    Raises RECEIPT_INVALID for leaves that contradict each other, KeyError where one is missing.
    """
    for name in sorted(facts):
        inner = name.removesuffix("/index")
        if inner == name:
            continue
        credited: list[tuple[bytes, int]] = []
        while (value := facts.get(f"{inner}/credit/{len(credited)}")) is not None:
            credited.append((value[12:], int.from_bytes(value[:12], "big")))
        royalty, algorithm, assigned, coverage = (
            int.from_bytes(facts[f"{inner}/{what}"], "big", signed=True)
            for what in ("royalty", "algorithm", "assigned", "coverage")
        )
        _check(royalty, assigned, coverage, credited)
        if credits_root(credited) != facts[f"{inner}/credits"]:
            raise _invalid("its credits do not lead to the root that it states for them")
        indexed = Indexed(facts[name], algorithm, coverage, tuple(credited))
        yield DatasetFacts(inner, facts[inner], royalty, assigned, indexed)


def _check(royalty: int, assigned: int, coverage: int, credited: list[tuple[bytes, int]]) -> None:
    owners = [owner for owner, _ in credited]
    whole = (
        royalty >= 0
        and 0 <= assigned <= BPS
        and 0 <= coverage <= PPM
        and len(credited) <= MAX_CREDITED
        and owners == sorted(set(owners))
        and all(part > 0 for _, part in credited)
        and sum(part for _, part in credited) <= PPM
    )
    if not whole:
        raise _invalid("what it states of a dataset's index is impossible")


def _invalid(why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.RECEIPT_INVALID, f"the receipt is not proven: {why}")
