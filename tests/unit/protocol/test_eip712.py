"""Typed data: equal to eth-account's digest on random values, three forms that round-trip, nothing odd accepted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol import structs
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed, TypedStruct, layout_of, type_string
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.pipeline import Pipeline
from support.strategies import bytes32, domains, pipelines, receipts, signed_structs, vouchers

DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x11" * 20)
SIGNER = LocalSigner(b"\x07" * 32)
VOUCHER = structs.Voucher(
    payer=b"\x01" * 20,
    node=b"\x02" * 32,
    pipeline_id=b"\x03" * 32,
    cumulative_tokens=5,
    cumulative_compute=7,
    reference_digest=b"\x04" * 32,
)


def plain(value: Any) -> Any:
    """A struct as the dictionary that eth-account takes."""
    if isinstance(value, TypedStruct):
        layout = layout_of(type(value))
        return {name: plain(item) for name, item in zip(layout.json_names, layout.values(value), strict=True)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, int) else value


def described(struct: type[TypedStruct]) -> dict[str, list[dict[str, str]]]:
    """The struct's types as eth-account takes them, read back from the type string alone."""
    return {
        name: [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in members.split(",")]
        for name, members in re.findall(r"(\w+)\(([^)]*)\)", type_string(struct))
    }


@given(domain=domains, value=signed_structs)
def test_digest_equals_eth_account(domain: Domain, value: TypedStruct) -> None:
    message = encode_typed_data(
        {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": domain.verifying_contract,
        },
        described(type(value)),
        plain(value),
    )
    assert value.digest(domain) == _hash_eip191_message(message)


@given(value=signed_structs)
def test_every_form_round_trips(value: TypedStruct) -> None:
    assert type(value).unpack(value.pack()) == value
    assert type(value).from_json(value.to_json()) == value
    signed = value.sign(DOMAIN, SIGNER)
    assert Signed.unpack(type(value), signed.pack()) == signed
    assert Signed.from_json(type(value), signed.to_json()) == signed
    assert signed.signer(DOMAIN) == SIGNER.address


@given(value=signed_structs, data=st.data())
def test_packed_form_is_exact(value: TypedStruct, data: st.DataObject) -> None:
    packed = value.pack()
    cut = data.draw(st.integers(0, len(packed) - 1))
    for wrong in (packed[:cut], packed + b"\x00"):
        with pytest.raises(ProtocolError):
            type(value).unpack(wrong)


@given(value=receipts(), data=st.data())
def test_flipped_bit_is_refused_or_another_value(value: structs.Receipt, data: st.DataObject) -> None:
    packed = bytearray(value.pack())
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        other = structs.Receipt.unpack(bytes(packed))
    except ProtocolError:
        return
    assert other != value
    assert other.digest(DOMAIN) != value.digest(DOMAIN)


@given(data=st.binary(max_size=600))
def test_garbage_raises_only_protocol_error(data: bytes) -> None:
    for struct in (structs.Quote, structs.NodeAdvert, structs.Receipt, Pipeline):
        try:
            Signed.unpack(struct, data)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {"node": b"\x02" * 31},
        {"node": b"\x02" * 33},
        {"node": bytearray(32)},
        {"node": "0x" + "02" * 32},
        {"payer": b"\x01" * 21},
        {"cumulative_tokens": -1},
        {"cumulative_tokens": 2**64},
        {"cumulative_tokens": True},
        {"cumulative_tokens": 1.0},
        {"cumulative_tokens": "5"},
        {"cumulative_compute": 2**128},
        {"cumulative_compute": None},
    ],
)
def test_value_that_a_contract_would_refuse_cannot_exist(change: dict[str, Any]) -> None:
    fields = {name: getattr(VOUCHER, name) for name in VOUCHER.__struct_fields__}
    with pytest.raises(ProtocolError) as caught:
        structs.Voucher(**(fields | change))
    assert caught.value.code == ErrorCode.MALFORMED


@pytest.mark.parametrize(
    "change",
    [
        {"extra": "1"},
        {"node": None},
        {"node": "0x" + "02" * 31},
        {"node": "02" * 32},
        {"node": "0x" + "zz" * 32},
        {"cumulativeTokens": "05"},
        {"cumulativeTokens": "+5"},
        {"cumulativeTokens": "٥"},
        {"cumulativeTokens": "5.0"},
        {"cumulativeTokens": 5.0},
        {"cumulativeTokens": True},
        {"cumulativeTokens": "-1"},
        {"cumulativeCompute": str(2**128)},
        {"cumulativeCompute": "9" * 5000},
        {"payer": "0x" + "aB" * 20},
    ],
)
def test_json_is_strict(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        structs.Voucher.from_json(VOUCHER.to_json() | change)


def test_json_refuses_missing_keys_and_other_shapes() -> None:
    data = VOUCHER.to_json()
    del data["node"]
    for wrong in (data, [], None, "voucher", 5):
        with pytest.raises(ProtocolError):
            structs.Voucher.from_json(wrong)
    for wrong in ({}, {"value": VOUCHER.to_json()}, {"value": VOUCHER.to_json(), "signature": None}):
        with pytest.raises(ProtocolError):
            Signed.from_json(structs.Voucher, wrong)


@given(value=vouchers, other=domains)
def test_another_domain_is_another_digest(value: structs.Voucher, other: Domain) -> None:
    assert (value.digest(DOMAIN) == value.digest(other)) == (other == DOMAIN)


@given(value=pipelines(), salt=bytes32)
def test_values_are_frozen(value: Pipeline, salt: bytes) -> None:
    with pytest.raises(AttributeError):
        value.base = salt  # type: ignore[misc]


def test_bad_domains_are_refused() -> None:
    for chain, contract in ((0, b"\x01" * 20), (-1, b"\x01" * 20), (2**256, b"\x01" * 20), (1, b"\x01" * 19)):
        with pytest.raises(ProtocolError):
            Domain(chain_id=chain, verifying_contract=contract)  # type: ignore[arg-type]


def test_arrays_and_strings_are_bounded() -> None:
    quote_fields = {
        "payer": bytes(20), "node": bytes(32), "pipeline_id": bytes(32), "input_rate": 0, "output_rate": 0,
        "settlement_charge": 0, "issued_at": 0, "expires_at": 1,
    }  # fmt: skip
    royalty = structs.Royalty(artifact=bytes(32), terms_version=0, rate=0, owner=bytes(20))
    for royalties in ((), (royalty,) * 6, [royalty], (None,), (VOUCHER,)):
        with pytest.raises(ProtocolError):
            structs.Quote(royalties=royalties, **quote_fields)  # type: ignore[arg-type]
