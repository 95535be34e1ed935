"""`openlora escrow signer`: the signer's agreement, what is sent for it, and what a key's state is called."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import decode
from typer.testing import CliRunner

from openlora_chain import keystore
from openlora_chain.password import Password
from openlora_node.cli import escrow_signer
from openlora_node.cli.app import app
from openlora_node.protocol.ids import format_address
from openlora_node.protocol.structs import SignerProof
from support.chain_world import fresh_wallet
from support.desk_fake import DOMAIN, NOW, fake_desk

WALLET, STRANGER = b"\x0a" * 20, b"\x0b" * 20
SIGNER = fresh_wallet("escrow signer")
NOBODY = ((bytes(20), 0),)
THAW_S = 172_800


@pytest.fixture
def signer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `escrow signer` where the gateway's key is SIGNER, on a chain that says so of it: (exit code, JSON)."""
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    key = tmp_path / "payer.json"
    asyncio.run(keystore.store(key, SIGNER.reveal(), Password("correct horse"), work_factor=2))

    def run(*arguments: str, of: Any = NOBODY) -> tuple[int, Any]:
        answers = {"authorizationOf": of, "SIGNER_THAW": (THAW_S,)}
        monkeypatch.setattr(escrow_signer, "open_desk", fake_desk(answers))
        here = (f"keys.keystore_file={key}", f"keys.password_file={password}", f"node.data_dir={tmp_path}")
        line = ["escrow", "signer", *arguments, "--json", *(word for one in here for word in ("--set", one))]
        result = CliRunner().invoke(app, line)
        return result.exit_code, json.loads(result.stdout)

    return run


def cold(wallet: bytes = WALLET) -> tuple[str, ...]:
    return ("--from", format_address(wallet), "--calldata")


def test_the_gateways_key_agrees_to_sign_for_the_wallet(signer: Any) -> None:
    code, told = signer("authorize", *cold())
    assert code == 0
    (call,) = told["calls"]
    key, deadline, proof = decode(["address", "uint64", "bytes"], bytes.fromhex(call["data"][10:]))
    assert bytes.fromhex(key[2:]) == SIGNER.address
    assert deadline == int(told["sendBefore"]) == NOW + 86_400
    assert proof == SignerProof(payer=WALLET, deadline=deadline).sign(DOMAIN, SIGNER).signature
    assert told["then"] == f"set gateway.payer to {format_address(WALLET)} where the signer's key is"
    again = signer("authorise", *cold(), of=((WALLET, NOW + 5),))
    assert again[0] == 0, "a revocation can be called off"


@pytest.mark.parametrize(
    ("wallet", "of", "status", "says"),
    [
        (SIGNER.address, NOBODY, 2, "a payer signs for itself"),
        (WALLET, ((STRANGER, 0),), 5, f"belongs to {format_address(STRANGER)} for ever"),
        (WALLET, ((STRANGER, 1),), 5, "belongs to"),
        (WALLET, ((WALLET, 0),), 5, "signs for this payer already"),
    ],
)
def test_what_the_chain_would_refuse_or_not_need_is_not_sent(
    signer: Any, wallet: bytes, of: Any, status: int, says: str
) -> None:
    code, told = signer("authorize", *cold(wallet), of=of)
    assert code == status
    assert says in told["error"]["message"]


def test_revoking_says_until_when_it_signs(signer: Any) -> None:
    address = format_address(SIGNER.address)
    for name in ("thaw", "revoke"):
        code, told = signer(name, address, *cold(), of=((WALLET, 0),))
        assert (code, told["endsAt"], told["thawsFor"]) == (0, str(NOW + THAW_S), f"{THAW_S} s")
        (call,) = told["calls"]
        assert bytes.fromhex(call["data"][2:])[-20:] == SIGNER.address
    for of, says in ((NOBODY, "nobody"), (((STRANGER, 0),), format_address(STRANGER)), (((WALLET, 9),), "already")):
        code, told = signer("thaw", address, *cold(), of=of)
        assert code == 5
        assert says in told["error"]["message"]


@pytest.mark.parametrize(
    ("of", "payer", "state"),
    [
        (NOBODY, SIGNER.address, "not authorized: signs for itself alone"),
        (((WALLET, 0),), WALLET, "authorized"),
        (((WALLET, NOW + 1),), WALLET, "thawing"),
        (((WALLET, NOW),), WALLET, "revoked"),
    ],
)
def test_show_names_payer_and_state_of_the_gateways_key(signer: Any, of: Any, payer: bytes, state: str) -> None:
    code, told = signer("show", of=of)
    assert code == 0
    assert (told["signer"], told["payer"]) == (format_address(SIGNER.address), format_address(payer))
    assert (told["state"], told["endsAt"]) == (state, str(of[0][1]))
