"""Share tables: read back as written, every share proven, nothing that does not come to the whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.artifacts import ShareTable
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.merkle import amount_leaf, verify_proof

accounts = st.binary(min_size=20, max_size=20).map(Address)


@given(st.sets(accounts, min_size=1, max_size=20), st.data())
def test_a_table_reads_back_and_every_share_proves(people: set[Address], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, 9_999), min_size=len(people) - 1, max_size=len(people) - 1)))
    parts = [after - before for before, after in zip([0, *cuts], [*cuts, 10_000], strict=True)]
    table = ShareTable.of(zip(sorted(people, reverse=True), parts, strict=True))
    assert ShareTable.decode(table.encode()) == table
    for account, bps in table.shares:
        assert table.bps(account) == bps
        assert verify_proof(table.root, amount_leaf(account, bps), table.proof(account))
    stranger = Address(bytes(20)) if Address(bytes(20)) not in people else Address(b"\xff" * 20)
    if stranger not in people:
        assert table.bps(stranger) == 0
        with pytest.raises(OpenLoraError) as error:
            table.proof(stranger)
        assert error.value.code is ErrorCode.NOT_FOUND


A, B = "0x" + "01" * 20, "0x" + "02" * 20
BAD = [
    b"",
    b"{}",
    b"[]",
    b"[" * 100_000,
    json.dumps([{"account": A, "bps": 9_999}]).encode(),
    json.dumps([{"account": A, "bps": 10_001}]).encode(),
    json.dumps([{"account": A, "bps": 10_000}, {"account": B, "bps": 0}]).encode(),
    json.dumps([{"account": A, "bps": 15_000}, {"account": B, "bps": -5_000}]).encode(),
    json.dumps([{"account": A, "bps": 5_000}, {"account": A, "bps": 5_000}]).encode(),
    json.dumps([{"account": A, "bps": 10_000.0}]).encode()[:-1] + b'x"]',
    json.dumps([{"account": A, "bps": 10_000, "more": 1}]).encode(),
    json.dumps([{"account": "0x01", "bps": 10_000}]).encode(),
]


@pytest.mark.parametrize("data", BAD)
def test_a_table_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(OpenLoraError) as error:
        ShareTable.decode(data)
    assert error.value.code in (ErrorCode.BAD_MANIFEST, ErrorCode.BAD_ID)
