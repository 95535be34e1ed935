"""Signatures: the one form that contracts accept, equal to eth-account's, everything else refused."""

from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.crypto import (
    CURVE_ORDER,
    LocalSigner,
    check_signature,
    keccak256,
    parse_signature,
    recover,
)
from openlora_node.protocol.errors import ErrorCode, ProtocolError
from support.strategies import bytes32

secrets = st.integers(1, CURVE_ORDER - 1).map(lambda n: n.to_bytes(32, "big"))


@given(secret=secrets, digest=bytes32)
def test_sign_equals_eth_account(secret: bytes, digest: bytes) -> None:
    signer = LocalSigner(secret)
    theirs = Account.unsafe_sign_hash(digest, secret)
    assert signer.sign_digest(digest) == bytes(theirs.signature)
    assert signer.address == bytes.fromhex(Account.from_key(secret).address[2:])
    assert recover(digest, signer.sign_digest(digest)) == signer.address


@given(secret=secrets, digest=bytes32)
def test_high_s_twin_is_refused_though_it_recovers(secret: bytes, digest: bytes) -> None:
    good = LocalSigner(secret).sign_digest(digest)
    s = CURVE_ORDER - int.from_bytes(good[32:64], "big")
    twin = good[:32] + s.to_bytes(32, "big") + bytes((55 - good[64],))
    assert Account._recover_hash(digest, signature=twin) == Account._recover_hash(digest, signature=good)
    with pytest.raises(ProtocolError) as caught:
        recover(digest, twin)
    assert caught.value.code == ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize("v", [v for v in range(256) if v not in (27, 28)])
def test_v_is_27_or_28(v: int) -> None:
    good = LocalSigner(b"\x01" * 32).sign_digest(bytes(32))
    with pytest.raises(ProtocolError):
        check_signature(good[:64] + bytes((v,)))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 66, 130, 10_000])
def test_length_is_65(length: int) -> None:
    with pytest.raises(ProtocolError):
        recover(bytes(32), (LocalSigner(b"\x01" * 32).sign_digest(bytes(32)) * 200)[:length])


@given(signature=st.binary(min_size=65, max_size=65), digest=bytes32)
def test_random_bytes_recover_or_are_refused(signature: bytes, digest: bytes) -> None:
    try:
        assert len(recover(digest, signature[:64] + bytes((27 + signature[64] % 2,)))) == 20
    except ProtocolError as error:
        assert error.code == ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize("convert", [bytearray, list, memoryview, bytes.hex, lambda _: None])
def test_a_signature_is_bytes(convert: object) -> None:
    good = LocalSigner(b"\x01" * 32).sign_digest(bytes(32))
    with pytest.raises(ProtocolError):
        check_signature(convert(good))  # type: ignore[operator]


def test_r_and_s_lie_in_range() -> None:
    good = LocalSigner(b"\x01" * 32).sign_digest(bytes(32))
    for r in (0, CURVE_ORDER, 2**256 - 1):
        with pytest.raises(ProtocolError):
            check_signature(r.to_bytes(32, "big") + good[32:])
    with pytest.raises(ProtocolError):
        check_signature(good[:32] + bytes(32) + good[64:])


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\x01" * 31, b"\x01" * 33, CURVE_ORDER.to_bytes(32, "big")])
def test_bad_private_keys_are_refused_without_showing_them(secret: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        LocalSigner(secret)
    assert not secret or secret.hex() not in str(caught.value)


def test_signer_never_shows_its_key() -> None:
    secret = bytes(range(1, 33))
    assert secret.hex() not in repr(LocalSigner(secret))
    assert "0x" in repr(LocalSigner(secret))


def test_only_digests_are_signed_and_recovered() -> None:
    signer = LocalSigner(b"\x01" * 32)
    for digest in (b"", bytes(31), bytes(33)):
        with pytest.raises(ProtocolError):
            signer.sign_digest(digest)
        with pytest.raises(ProtocolError):
            recover(digest, signer.sign_digest(bytes(32)))


def test_keccak_is_the_original_padding() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@pytest.mark.parametrize("text", ["", "0x", "0x" + "00" * 64, "00" * 65, "0x" + " 0" * 65, None, 5, b"\x00" * 65])
def test_signature_text_is_strict(text: object) -> None:
    with pytest.raises(ProtocolError):
        parse_signature(text)
