"""`openlora artifacts buy`: what its plan says, whom it lets in, and when it takes no money."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import decode
from typer.testing import CliRunner

from openlora_node.cli import artifacts_access
from openlora_node.cli.app import app
from openlora_node.protocol.ids import format_address
from support.desk_fake import NOW, fake_desk

ARTIFACT = bytes(range(32))
ID = f"sha256:{ARTIFACT.hex()}"
OWNER, PAYER = b"\x0a" * 20, b"\x0b" * 20
USE, HOST, DAY = 0, 1, 86_400
PRICE = 3 * 10**18
FOR_SALE = {
    "ownerOf": (OWNER,), "policyOf": ((2, 7 * DAY, PRICE),), "licensedUntil": (0,), "isListed": (False,),
}  # fmt: skip


@pytest.fixture
def buy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command on a chain that answers so: (exit code, JSON)."""

    def run(*arguments: str, sender: bytes = PAYER, **answers: Any) -> tuple[int, Any]:
        monkeypatch.setattr(artifacts_access, "open_desk", fake_desk(FOR_SALE | answers))
        line = ["artifacts", "buy", ID, *arguments, "--from", format_address(sender), "--calldata", "--json"]
        result = CliRunner().invoke(app, [*line, "--set", f"node.data_dir={tmp_path}"])
        return result.exit_code, json.loads(result.stdout)

    return run


def bought(told: Any) -> tuple[Any, ...]:
    """The arguments of the one call: artifact, scope, subject, highest price, shortest duration."""
    (call,) = told["calls"]
    assert call["value"] == told["price"].split()[0], "what is sent is the price, and the most that is accepted"
    data = bytes.fromhex(call["data"][2:])
    return decode(["bytes32", "uint8", "bytes32", "uint256", "uint48"], data[4:])


def test_the_sender_gets_access_for_the_price_of_the_plan(buy: Any) -> None:
    code, told = buy()
    assert code == 0
    assert bought(told) == (ARTIFACT, USE, PAYER.rjust(32, b"\0"), PRICE, 7 * DAY)
    assert (told["for"], told["paidTo"]) == (format_address(PAYER), format_address(OWNER))
    assert (told["lasts"], told["until"]) == (f"{7 * DAY} s", str(NOW + 7 * DAY))
    assert told["calls"][0]["step"] == "buy a licence"


def test_a_licence_that_still_runs_is_prolonged(buy: Any) -> None:
    _, told = buy(licensedUntil=(NOW + DAY,))
    assert told["calls"][0]["step"] == "prolong the licence"
    assert told["until"] == str(NOW + 8 * DAY)
    _, told = buy(licensedUntil=(NOW - DAY,))
    assert told["until"] == str(NOW + 7 * DAY), "one that ended begins anew"


def test_for_another_payer_or_a_node(buy: Any) -> None:
    _, told = buy("--for", format_address(b"\x0c" * 20))
    assert bought(told)[2] == (b"\x0c" * 20).rjust(32, b"\0")
    node = "0x" + "0d" * 32
    _, told = buy("--scope", "host", "--for", node)
    assert bought(told)[1:3] == (HOST, b"\x0d" * 32)
    assert told["for"] == node
    code, refused = buy("--scope", "host", "--for", format_address(PAYER))
    assert (code, "a node is meant" in refused["error"]["message"]) == (2, True)
    code, refused = buy("--scope", "host")
    assert (code, "name the node" in refused["error"]["message"]) == (2, True), "no node key here, none named"


@pytest.mark.parametrize(
    ("answers", "status", "code", "says"),
    [
        ({"policyOf": ((0, 0, 0),)}, 5, "CHAIN_FAILED", "open to all"),
        ({"policyOf": ((1, 0, 0),)}, 8, "ACCESS_DENIED", f"ask {format_address(OWNER)}"),
        ({"isListed": (True,)}, 5, "CHAIN_FAILED", "is on its owner's list"),
        ({"sender": OWNER}, 5, "CHAIN_FAILED", "owns it"),
    ],
)
def test_no_money_where_none_is_needed_or_none_helps(
    buy: Any, answers: dict[str, Any], status: int, code: str, says: str
) -> None:
    found, told = buy(**answers)
    assert (found, told["error"]["code"]) == (status, code)
    assert says in told["error"]["message"]


def test_no_more_than_the_buyer_said(buy: Any) -> None:
    assert buy("--most", "3 OPEN")[0] == 0
    code, told = buy("--most", "2.9 OPEN")
    assert code == 5
    assert f"costs {PRICE} wei" in told["error"]["message"]
