"""Keys: signatures that the protocol and eth-account accept, files that nobody else reads, and no key in any output."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from openlora_chain import keystore
from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.external import ExternalSigner, command_exchange, describe
from openlora_chain.password import Password, from_credential, from_file, from_prompt
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import CURVE_ORDER, Wallet
from openlora_node.protocol.crypto import LocalSigner, recover

FAST = 4_096
SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe512961708279f2e3e8a5d4b8e3e5a1")
PASSWORD = Password("correct horse")
TX = UnsignedTransaction(1612, 7, b"\x22" * 20, 10**18, b"\x01\x02", 50_000, 3 * 10**9, 10**9)


def code_of(error: pytest.ExceptionInfo[ChainError]) -> ChainErrorCode:
    return error.value.code


@given(st.integers(1, CURVE_ORDER - 1), st.binary(min_size=32, max_size=32))
def test_signatures_are_those_of_the_protocol(secret: int, digest: bytes) -> None:
    key = secret.to_bytes(32, "big")
    wallet = Wallet(key)
    signature = wallet.sign_digest(digest)
    assert signature == LocalSigner(key).sign_digest(digest)
    assert recover(digest, signature) == wallet.address
    assert wallet.address.hex() == Account.from_key(key).address[2:].lower()


async def test_transactions_recover_to_the_sender_and_are_deterministic() -> None:
    wallet = Wallet(SECRET)
    signed = await wallet.sign_transaction(TX)
    assert signed == await wallet.sign_transaction(TX)
    assert Account.recover_transaction(signed.raw)[2:].lower() == wallet.address.hex()


@pytest.mark.parametrize("secret", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), CURVE_ORDER.to_bytes(32, "big")])
def test_what_is_no_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ChainError) as error:
        Wallet(secret)
    assert code_of(error) is ChainErrorCode.KEY_MALFORMED


def test_the_slow_backend_is_refused() -> None:
    script = "from openlora_chain.wallet import Wallet; Wallet(b'\\x01' * 32)"
    environment = os.environ | {"ECC_BACKEND_CLASS": "eth_keys.backends.NativeECCBackend"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "CRYPTO_BACKEND" in result.stderr


async def test_a_key_file_round_trips_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "hot.json"
    created = await keystore.create(path, PASSWORD, work_factor=FAST)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await keystore.load(path, PASSWORD)).address == created.address == keystore.address_of(path)
    assert Account.decrypt(json.loads(path.read_text()), "correct horse") == created.reveal()
    assert sorted(tmp_path.iterdir()) == [path]  # no temporary file is left


async def test_key_files_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "hot.json"
    await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    before = path.read_bytes()
    with pytest.raises(ChainError) as error:
        await keystore.create(path, PASSWORD, work_factor=FAST)
    assert code_of(error) is ChainErrorCode.KEY_EXISTS
    with pytest.raises(ChainError):
        await keystore.back_up(path, path, PASSWORD)
    assert path.read_bytes() == before


async def test_the_password_can_be_changed_and_the_file_backed_up(tmp_path: Path) -> None:
    path, copy = tmp_path / "hot.json", tmp_path / "copy.json"
    wallet = await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    await keystore.change_password(path, PASSWORD, Password("other"), work_factor=FAST)
    with pytest.raises(ChainError) as error:
        await keystore.load(path, PASSWORD)
    assert code_of(error) is ChainErrorCode.PASSWORD_WRONG
    assert (await keystore.back_up(path, copy, Password("other"))).address == wallet.address
    assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
async def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "hot.json"
    await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    path.chmod(mode)
    with pytest.raises(ChainError) as error:
        await keystore.load(path, PASSWORD)
    assert code_of(error) is ChainErrorCode.KEY_UNSAFE


async def test_links_directories_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hot.json"
    await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    for wrong, code in ((link, "KEY_UNSAFE"), (tmp_path, "KEY_UNSAFE"), (tmp_path / "none", "KEY_NOT_FOUND")):
        with pytest.raises(ChainError) as error:
            await keystore.load(wrong, PASSWORD)
        assert code_of(error).value == code


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 30},
        {"n": 3},
        {"n": -2},
        {"n": "many"},
        {"r": 1 << 20},
        {"p": 0},
        {"dklen": 1 << 30},
    ],
)
async def test_a_hostile_key_derivation_is_refused_unrun(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "hot.json"
    await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    document = json.loads(path.read_text())
    document["crypto"]["kdfparams"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ChainError) as error:
        await keystore.load(path, PASSWORD)
    assert code_of(error) is ChainErrorCode.KEY_MALFORMED


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"version":3}', b"[" * 9_000, b" " * 20_000]
)
async def test_what_is_no_keystore_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hot.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ChainError) as error:
        await keystore.load(path, PASSWORD)
    assert code_of(error) is ChainErrorCode.KEY_MALFORMED


async def test_no_output_ever_shows_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[object] = []
    path = tmp_path / "hot.json"
    wallet = await keystore.store(path, SECRET, PASSWORD, work_factor=FAST)
    await wallet.sign_transaction(TX)
    seen += [wallet, PASSWORD, vars(type(wallet)), ExternalSigner(wallet.address, command_exchange(["true"]))]
    attempts = [
        lambda: wallet.sign_digest(b"short"),
        wallet.__reduce__,
        lambda: keystore.parse_secret(SECRET.hex() + "zz"),
        lambda: Wallet(SECRET + b"\x00"),
        lambda: keystore.write_secret(path, wallet),
    ]
    for attempt in attempts:
        with pytest.raises((ChainError, TypeError)) as error:
            attempt()
        seen += [error.value, str(error.getrepr(showlocals=False, style="native"))]
    for bad in (replace(TX, nonce=-1, value=-5, gas=-1), replace(TX, chain_id=0, to=b"x")):
        with pytest.raises(Exception) as error:  # noqa: PT011 - whatever the encoder raises must not show the key
            await wallet.sign_transaction(bad)
        seen.append(error.value)
    with pytest.raises(ChainError) as refused:
        await keystore.load(path, Password("wrong"))
    seen.append(refused.value)
    text = " ".join(f"{item!s} {item!r}" for item in seen).lower() + caplog.text.lower()
    assert SECRET.hex() not in text
    assert repr(SECRET)[2:-1].lower() not in text
    assert str(int.from_bytes(SECRET, "big")) not in text
    assert "correct horse" not in text


def test_password_sources(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("correct horse\nsecond line\n")
    path.chmod(0o600)
    assert from_file(path) == PASSWORD
    path.chmod(0o640)
    with pytest.raises(ChainError) as error:
        from_file(path)
    assert code_of(error) is ChainErrorCode.KEY_UNSAFE
    assert (
        from_credential("password", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == PASSWORD
    )  # systemd shows ACLs as 0440
    here = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    wrong: list[tuple[str, dict[str, str]]] = [("password", {}), ("../password", here), ("none", here)]
    for name, environment in wrong:
        with pytest.raises(ChainError) as error:
            from_credential(name, environment)
        assert code_of(error) is ChainErrorCode.PASSWORD_MISSING
    answers = iter(["a", "b"])
    with pytest.raises(ChainError) as error:
        from_prompt("Password", confirm=True, ask=lambda _: next(answers), is_terminal=True)
    assert code_of(error) is ChainErrorCode.PASSWORD_WRONG
    with pytest.raises(ChainError) as error:
        from_prompt("Password", is_terminal=False)
    assert code_of(error) is ChainErrorCode.PASSWORD_MISSING


async def test_an_external_signer_is_believed_only_for_what_was_asked() -> None:
    wallet = Wallet(SECRET)

    async def honest(request: str) -> str:
        assert json.loads(request) == json.loads(describe(TX, wallet.address))
        return "0x" + (await wallet.sign_transaction(TX)).raw.hex() + "\n"

    assert await ExternalSigner(wallet.address, honest).sign_transaction(TX) == await wallet.sign_transaction(TX)
    others = {
        "chain_id": 1, "nonce": 8, "to": b"\x23" * 20, "value": 1, "data": b"", "gas": 1, "max_fee": 1,
        "priority_fee": 0,
    }  # fmt: skip
    for field, value in others.items():
        raw = (await wallet.sign_transaction(replace(TX, **{field: value}))).raw

        async def dishonest(_: str, raw: bytes = raw) -> str:
            return raw.hex()

        with pytest.raises(ChainError) as error:
            await ExternalSigner(wallet.address, dishonest).sign_transaction(TX)
        assert code_of(error) is ChainErrorCode.SIGNER_REFUSED, field
    for argv in (["false"], ["true"], ["echo", "0x02c0"], ["/nonexistent"]):
        with pytest.raises(ChainError) as error:
            await ExternalSigner(wallet.address, command_exchange(argv)).sign_transaction(TX)
        assert code_of(error) is ChainErrorCode.SIGNER_REFUSED


async def test_an_external_signer_with_another_key_is_refused() -> None:
    async def stranger(_: str) -> str:
        return (await Wallet(b"\x05" * 32).sign_transaction(TX)).raw.hex()

    with pytest.raises(ChainError) as error:
        await ExternalSigner(Wallet(SECRET).address, stranger).sign_transaction(TX)
    assert code_of(error) is ChainErrorCode.SIGNER_REFUSED
