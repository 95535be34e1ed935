"""Credits tables from other people's files: what is no table is refused with its fix."""

from __future__ import annotations

import pytest

from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.merkle import amount_leaf, verify_proof
from openlora_node.settlement.credits import CreditTable

A, B = "0x" + "aa" * 20, "0x" + "bb" * 20


def test_a_table_proves_its_rows() -> None:
    table = CreditTable.decode(f'[{{"account": "{B}", "wei": "7"}}, {{"account": "{A}", "wei": "0"}}]'.encode())
    account = bytes.fromhex("bb" * 20)
    assert table.wei(account) == 7
    assert verify_proof(table.root, amount_leaf(account, 7), table.proof(account))
    with pytest.raises(ProtocolError, match="NOT_FOUND"):
        table.proof(bytes(20))


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "\xff", "[1]", f'[{{"account": "{A}"}}]', f'[{{"account": "{A}", "wei": 5}}]',
        f'[{{"account": "{A}", "wei": "-5"}}]', f'[{{"account": "{A}", "wei": "5.0"}}]',
        '[{"account": "0x12", "wei": "5"}]', f'[{{"account": "{A}", "wei": "5", "x": 1}}]',
        f'[{{"account": "{A}", "wei": "{"9" * 40}"}}]', "[" * 5_000,
        f'[{{"account": "{A}", "wei": "1"}}, {{"account": "{A}", "wei": "2"}}]',
        f'[{{"account": "{A}", "wei": "\u0665"}}]',
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        CreditTable.decode(text.encode("utf-8", "surrogateescape"))
