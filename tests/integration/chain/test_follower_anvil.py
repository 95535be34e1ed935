"""The log follower on a real chain: a reorg undoes what was delivered, a restart goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_chain.bindings import Settlement
from openlora_chain.deploy import Parameters, deploy
from openlora_chain.follower import LogBatch, LogFollower
from openlora_chain.rpc import Rpc
from openlora_chain.store import LogRecord
from openlora_chain.transaction import UnsignedTransaction
from openlora_node.journal.logs import JournalLogs
from support.anvil import CHAIN_ID, ETHER
from support.journal import open_journal
from support.simchain import HOT

pytestmark = pytest.mark.slow


async def test_reorg_and_restart(start_anvil, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    anvil = await start_anvil()
    async with Rpc(anvil.url) as rpc:
        await rpc.request("anvil_setBalance", f"0x{HOT.address.hex()}", hex(100 * ETHER))
        deployment = await deploy(rpc, HOT, Parameters(HOT.address, HOT.address, HOT.address), "test")
        settlement = Settlement(rpc, deployment)

        async def authorise(number: int) -> None:
            call = settlement.set_recipient(number.to_bytes(20, "big"))
            nonce = await rpc.nonce(HOT.address)
            tx = UnsignedTransaction(CHAIN_ID, nonce, call.to, 0, call.data, 200_000, 10**10, 10**9)
            signed = await HOT.sign_transaction(tx)
            await rpc.send_raw(signed.raw)
            await rpc.mined(signed.hash)

        seen: list[LogRecord] = []

        async def deliver(batch: LogBatch) -> None:
            for log in batch.removed:
                seen.remove(log)
            seen.extend(batch.added)

        async def read(path: Path = tmp_path / "node.sqlite") -> None:
            async with open_journal(path) as journal:  # a restart each time
                reader = LogFollower(
                    "settlement", rpc, JournalLogs(journal), [settlement.address], deliver, start=deployment.block
                )
                while await reader.step():
                    pass

        for number in range(1, 4):
            await authorise(number)
            await read()
        before = list(seen)
        assert len(before) >= 3
        await read()
        assert seen == before
        await rpc.request("anvil_reorg", 2, [])
        await read()
        assert seen == before[:-2]
        await authorise(9)
        await read()
        assert seen[:-1] == before[:-2]
        head = await rpc.head()
        assert seen == await rpc.logs(deployment.block, head.number, [settlement.address])
