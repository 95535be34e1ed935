"""Many callers at once on a real file: an escrow is never promised twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from openlora_node.journal import Admitted, EscrowSnapshot
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import admit, key_of, open_journal, request


@pytest.mark.parametrize(("balance", "max_fee"), [(100_000, 1_000), (99_999, 700), (0, 1), (10**30, 1)])
async def test_200_concurrent_admits_never_over_reserve_an_escrow(tmp_path: Path, balance: int, max_fee: int) -> None:
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        work = [admit(journal, request(n, max_fee=max_fee), EscrowSnapshot(balance)) for n in range(200)]
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        admitted = [one for one in outcomes if isinstance(one, Admitted)]
        refused = [one for one in outcomes if isinstance(one, OpenLoraError)]
        assert len(admitted) == min(200, balance // max_fee)
        assert len(admitted) + len(refused) == 200
        assert {one.code for one in refused} <= {ErrorCode.ESCROW_TOO_LOW}
        assert (await journal.ledger(key_of())).reserved == len(admitted) * max_fee <= balance
        await journal.check_integrity(deep=True)
