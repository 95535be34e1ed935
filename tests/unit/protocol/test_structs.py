"""The signed structs' own rules: lifetimes, order of vouchers, size of adverts, what a failed response may cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol import structs
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from support.strategies import adverts, quotes, receipts, requests, vouchers


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


@given(request=requests, lifetime=st.sampled_from([-1, 0, 301, 2**32]))
def test_requests_live_at_most_300_seconds(request: structs.Request, lifetime: int) -> None:
    issued = request.issued_at % 2**60 + 1
    changed(request, issued_at=issued, expires_at=issued + 300)
    with pytest.raises(ProtocolError):
        changed(request, issued_at=issued, expires_at=issued + lifetime)


@given(first=vouchers, tokens=st.integers(0, 2**63 - 1), compute=st.integers(0, 2**128 - 1))
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
        {"status": structs.ReceiptStatus.FAILED, "compute": 1, "prompt_tokens": 0, "completion_tokens": 0},
        {"status": structs.ReceiptStatus.FAILED, "compute": 0, "royalties": 0, "prompt_tokens": 1},
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
    for wrong in ({"device": "gpu\x1b[2J"}, {"addresses": ("/ip4/1.2.3.4\n",)}, {"version": "\u202e"}):
        with pytest.raises(ProtocolError):
            changed(advert, **wrong)
    for wrong in ({"state": 4}, {"reach": 3}, {"expires_at": advert.issued_at}, {"memory_total": 0, "memory_free": 1}):
        with pytest.raises(ProtocolError):
            changed(advert, **wrong)


@given(quote=quotes)
def test_quotes_expire_and_list_an_artifact_once(quote: structs.Quote) -> None:
    issued = quote.issued_at % 2**60
    for wrong in (
        {"issued_at": issued, "expires_at": issued},
        {"issued_at": issued, "expires_at": issued + structs.MAX_QUOTE_LIFETIME_S + 1},
        {"royalties": (quote.royalties[0], quote.royalties[0])},
        {"royalties": ()},
    ):
        with pytest.raises(ProtocolError):
            changed(quote, **wrong)


def test_voucher_tokens_stay_below_2_63() -> None:
    with pytest.raises(ProtocolError) as caught:
        structs.Voucher(
            payer=bytes(20), node=bytes(32), pipeline_id=bytes(32),
            cumulative_tokens=2**63, cumulative_compute=0, reference_digest=bytes(32),
        )  # fmt: skip
    assert caught.value.code == ErrorCode.BAD_AMOUNT


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
