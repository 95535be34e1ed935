"""The signed structs' own rules: lifetimes, order of vouchers, size of adverts, what a failed response may cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol import structs
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from support.strategies import adverts, receipts, requests, vouchers


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


@given(request=requests, lifetime=st.sampled_from([-1, 0, 301, 2**32]))
def test_requests_live_at_most_300_seconds(request: structs.Request, lifetime: int) -> None:
    issued = request.issued_at % 2**60 + 1
    changed(request, issued_at=issued, expires_at=issued + 300)
    with pytest.raises(ProtocolError):
        changed(request, issued_at=issued, expires_at=issued + lifetime)


@given(first=vouchers, tokens=st.integers(0, 2**64 - 1), compute=st.integers(0, 2**128 - 1))
def test_vouchers_out_of_order(first: structs.Voucher, tokens: int, compute: int) -> None:
    second = changed(first, cumulative_tokens=tokens, cumulative_compute=compute)
    grows = (tokens >= first.cumulative_tokens, compute >= first.cumulative_compute)
    falls = (tokens <= first.cumulative_tokens, compute <= first.cumulative_compute)
    if all(grows) or all(falls):
        assert second.covers(first) == all(grows)
        assert first.covers(second) == all(falls)
    else:
        with pytest.raises(ProtocolError) as caught:
            second.covers(first)
        assert caught.value.code == ErrorCode.VOUCHER_CONFLICT


@given(receipt=receipts())
def test_receipts_state_what_they_cost(receipt: structs.Receipt) -> None:
    assert receipt.fee == receipt.compute + receipt.royalties
    assert receipt.tokens == receipt.prompt_tokens + receipt.completion_tokens
    for wrong in (
        {"status": 3},
        {"finished_at": receipt.started_at - 1},
        {"status": structs.ReceiptStatus.FAILED, "compute": 1},
        {"status": structs.ReceiptStatus.COMPLETE, "compute": 2**127, "royalties": 2**127},
    ):
        with pytest.raises(ProtocolError):
            changed(receipt, **wrong)


@given(advert=adverts)
def test_adverts_are_small(advert: structs.NodeAdvert) -> None:
    assert len(advert.pack()) + 65 <= structs.MAX_ADVERT_BYTES
    with pytest.raises(ProtocolError) as caught:
        changed(advert, addresses=("/dns4/" + "x" * 400,))
    assert caught.value.code == ErrorCode.FRAME_TOO_LARGE
    for wrong in ({"state": 4}, {"reach": 3}, {"expires_at": advert.issued_at}, {"memory_total": 0, "memory_free": 1}):
        with pytest.raises(ProtocolError):
            changed(advert, **wrong)


def test_quotes_expire() -> None:
    royalty = structs.Royalty(artifact=bytes(32), terms_version=0, rate=0, owner=bytes(20))
    with pytest.raises(ProtocolError):
        structs.Quote(
            payer=bytes(20), node=bytes(32), pipeline_id=bytes(32), input_rate=0, output_rate=0,
            royalties=(royalty,), settlement_charge=0, issued_at=5, expires_at=5,
        )  # fmt: skip


@given(tokens=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_output_hash_binds_order_and_value(tokens: list[int]) -> None:
    assert structs.output_hash(tokens) == structs.output_hash(tuple(tokens))
    assert structs.output_hash([*tokens, 0]) != structs.output_hash(tokens)


@pytest.mark.parametrize("token", [-1, 2**32, 1.5, "1", None])
def test_output_hash_refuses_what_is_no_token_id(token: Any) -> None:
    with pytest.raises(ProtocolError):
        structs.output_hash([token])


def test_body_hash_is_over_exact_bytes() -> None:
    assert structs.body_hash(b'{"a":1}') != structs.body_hash(b'{"a": 1}')
