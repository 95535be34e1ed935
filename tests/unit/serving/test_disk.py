"""A disk that refuses: nothing is sent that is not on it, and what was reserved is released once it works again."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.pricing import Tally
from support.serving_world import World, receipt_of, refused


@dataclass
class Disk:
    """Refuses the write steps that it is told to."""

    broken: set[str] = field(default_factory=set)

    def __call__(self, step: str) -> None:
        if step in self.broken:
            raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize("step", ["admit.requests", "admit.pipelines", "receipt.receipts", "receipt.evidence"])
async def test_a_refused_write_costs_nothing_and_the_request_may_be_sent_again(tmp_path: Path, step: str) -> None:
    disk = Disk()
    async with World(tmp_path / "j.sqlite", on_step=disk) as world:
        body = world.body()
        signed = world.request((await world.quote()).value, body)
        message = world.infer(signed, body, world.opening(Tally(), world.prompt_of(body)))
        disk.broken = {step}
        inbound = world.handle(message)
        assert (await refused(inbound)).code is ErrorCode.STORAGE_FAILED
        assert not inbound.of(messages.Done)
        disk.broken = set()
        ledger = await world.ledger()
        assert (ledger.reserved, ledger.tally) == (0, Tally())
        again = world.handle(message)
        await again.until(messages.Done)
        await world.settle(again)
        assert (await world.tally()).tokens == receipt_of(again).tokens
        await world.journal.check_integrity(deep=True)


async def test_a_reservation_that_could_not_be_released_is_released_before_the_next_admission(tmp_path: Path) -> None:
    disk = Disk()
    async with World(tmp_path / "j.sqlite", on_step=disk) as world:
        body = world.body()
        signed = world.request((await world.quote()).value, body)
        message = world.infer(signed, body, world.opening(Tally(), world.prompt_of(body)))
        disk.broken = {"receipt.receipts", "interrupt.requests"}
        assert (await refused(world.handle(message))).code is ErrorCode.STORAGE_FAILED
        assert (await world.ledger()).reserved == signed.value.max_fee
        disk.broken = set()
        again = world.handle(message)
        await again.until(messages.Done)
        await world.settle(again)
        assert (await world.ledger()).reserved == 0
        await world.journal.check_integrity(deep=True)


async def test_a_voucher_that_the_disk_refuses_is_not_said_to_be_held(tmp_path: Path) -> None:
    disk = Disk()
    async with World(tmp_path / "j.sqlite", on_step=disk) as world:
        inbound = await world.ask()
        await inbound.until(messages.Done)
        held = (await world.ledger()).voucher
        disk.broken = {"voucher.ledgers"}
        tally = await world.tally()
        inbound.pay(world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute))
        assert (await refused(inbound)).code is ErrorCode.STORAGE_FAILED
        assert not inbound.of(messages.Settled)
        assert (await world.ledger()).voucher == held
