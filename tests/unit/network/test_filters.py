"""Adapter filters: nothing missed, few taken wrongly, sizes kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.filters import MAX_FILTER_BYTES, MAX_IDS, AdapterFilter
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.messages import ADVERT, Filter
from support.network_adverts import adapter


@given(st.sets(st.integers(0, 1 << 40), max_size=300))
def test_no_member_is_missed_and_the_bytes_round_trip(numbers: set[int]) -> None:
    ids = [adapter(n) for n in numbers]
    packed = AdapterFilter.build(ids).pack()
    received = AdapterFilter.unpack(packed)
    assert all(i in received for i in ids)
    assert received.pack() == packed == AdapterFilter.build(reversed(ids)).pack()


def test_ten_thousand_adapters_fit_16_kib_with_less_than_one_false_positive_in_a_hundred() -> None:
    packed = AdapterFilter.build(adapter(n) for n in range(10_000)).pack()
    assert len(packed) <= 12_400
    assert ADVERT.encode(Filter(data=packed))
    known = AdapterFilter.unpack(packed)
    assert all(adapter(n) in known for n in range(10_000))
    wrong = sum(adapter(n) in known for n in range(10**6, 10**6 + 20_000))
    assert 30 < wrong < 130  # 1/256 of 20,000 is 78


def test_the_largest_filter_fits_and_a_larger_one_is_refused() -> None:
    assert len(AdapterFilter.build(adapter(n) for n in range(MAX_IDS)).pack()) <= MAX_FILTER_BYTES
    with pytest.raises(ProtocolError):
        AdapterFilter.build(adapter(n) for n in range(MAX_IDS + 1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_filter_or_malformed(data: bytes) -> None:
    try:
        _ = adapter(1) in AdapterFilter.unpack(data)
    except ProtocolError as error:
        assert error.code is ErrorCode.MALFORMED


def test_filters_of_other_versions_and_sizes_are_malformed() -> None:
    good = AdapterFilter.build([adapter(1)]).pack()
    for data in (
        b"",
        good[:-1],
        good + b"\x00",
        b"\x02" + good[1:],
        b"\x01" + bytes(8),
        good + bytes(MAX_FILTER_BYTES),
    ):
        with pytest.raises(ProtocolError):
            AdapterFilter.unpack(data)
