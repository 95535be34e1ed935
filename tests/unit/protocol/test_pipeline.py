"""Pipelines: one canonical form, refused otherwise; the id is the struct hash of exactly that."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given

from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.pipeline import Adapter, MixMethod, Pipeline
from support.strategies import pipelines

BASE = b"\xbb" * 32


def adapter(n: int, weight: int = 10_000) -> Adapter:
    return Adapter(id=bytes((n,)) * 32, terms_version=1, weight=weight)


def refused(**fields: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        Pipeline(**({"base": BASE, "base_terms_version": 1} | fields))  # type: ignore[arg-type]
    assert caught.value.code == ErrorCode.BAD_PIPELINE


@given(pipeline=pipelines())
def test_order_of_naming_does_not_matter(pipeline: Pipeline) -> None:
    for order in permutations(pipeline.adapters):
        method = MixMethod(pipeline.method)
        again = Pipeline.of(pipeline.base, *order, base_terms_version=pipeline.base_terms_version, method=method)
        assert again.id == pipeline.id


def test_five_adapters_are_refused() -> None:
    Pipeline(base=BASE, base_terms_version=1, adapters=tuple(adapter(n) for n in range(4)))
    refused(adapters=tuple(adapter(n) for n in range(5)))


@pytest.mark.parametrize("weight", [1, -1, 499, 501, 9_999, -10_001, 0, 2**31 - 1])
def test_weights_off_the_quantum_are_refused(weight: int) -> None:
    refused(adapters=(adapter(1, weight),))


def test_duplicates_are_refused() -> None:
    refused(adapters=(adapter(1), adapter(1)))
    refused(adapters=(adapter(1, 500), adapter(1, 1_000)))
    refused(adapters=(Adapter(id=BASE, terms_version=1, weight=500),))


def test_unsorted_adapters_are_refused() -> None:
    refused(adapters=(adapter(2), adapter(1)))


def test_methods() -> None:
    refused(adapters=(adapter(1), adapter(2)), method=7)
    refused(adapters=(adapter(1),), method=MixMethod.TIES)
    refused(method=MixMethod.LINEAR)
    assert Pipeline.of(BASE, adapter(1), method=MixMethod.TIES).method == MixMethod.CAT


def test_every_part_changes_the_id() -> None:
    mixed = Pipeline.of(BASE, adapter(1), adapter(2), base_terms_version=1)
    others = [
        Pipeline.of(b"\xbc" * 32, adapter(1), adapter(2), base_terms_version=1),
        Pipeline.of(BASE, adapter(1), adapter(2), base_terms_version=2),
        Pipeline.of(BASE, adapter(1), adapter(3), base_terms_version=1),
        Pipeline.of(BASE, adapter(1), adapter(2, -10_000), base_terms_version=1),
        Pipeline.of(BASE, adapter(1), base_terms_version=1),
        Pipeline.of(BASE, adapter(1), adapter(2), base_terms_version=1, method=MixMethod.LINEAR),
        Pipeline.of(BASE, adapter(1), Adapter(id=b"\2" * 32, terms_version=2, weight=10_000), base_terms_version=1),
    ]
    assert len({pipeline.id for pipeline in (mixed, *others)}) == 1 + len(others)
