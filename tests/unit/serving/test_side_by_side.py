"""Many responses of one ledger at once: one bound, one voucher for all, and no talk that grows with their square."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from openlora_node.protocol import messages
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import Receipt
from support.serving_world import DOMAIN, OPTIONS, FakeInbound, World

COUNT, EACH = 24, 16


class Book:
    """A payer's book: prompts that were sent, tokens that came; its vouchers cover exactly that."""

    def __init__(self, world: World, prompt: int) -> None:
        self.world, self.prompt = world, prompt
        self.sent = self.received = self.asked = self.paid = 0

    def voucher(self, answers: bytes = bytes(32)) -> bytes:
        due = self.world.due(Tally(), self.prompt * self.sent, self.received)
        return self.world.payer.voucher(self.world.pipeline.id, due.tokens, due.compute, answers=answers)

    def take(self, inbound: FakeInbound, message: messages.InferMessage) -> None:
        if isinstance(message, messages.Tokens):
            self.received += len(message.token_ids)
        elif isinstance(message, messages.Paused):
            self.asked += 1
            inbound.pay(self.voucher())
        elif isinstance(message, messages.Done):
            inbound.pay(self.voucher(Signed.unpack(Receipt, message.receipt).value.digest(DOMAIN)))


async def test_many_responses_of_a_ledger_are_paid_by_one_voucher_a_round(tmp_path: Path) -> None:
    steps: list[str] = []
    options = replace(OPTIONS, in_flight_per_payer=COUNT, unpaid_tokens=64, answer_s=20)
    async with World(tmp_path / "j.sqlite", options, on_step=steps.append) as world:
        body = world.body()
        book = Book(world, world.prompt_of(body))
        quote = (await world.quote()).value

        def listen(inbound: FakeInbound) -> None:
            send = inbound.send

            async def heard(message: messages.InferMessage) -> None:
                await send(message)
                book.take(inbound, message)

            inbound.send = heard  # type: ignore[method-assign]

        handlers = []
        for _ in range(COUNT):
            book.sent += 1
            message = world.infer(world.request(quote, body, max_tokens=EACH), body, book.voucher())
            inbound = FakeInbound(message)
            listen(inbound)
            handlers.append(asyncio.create_task(world.serving.handle(inbound)))
        await asyncio.gather(*handlers)
        assert book.received == COUNT * EACH
        ledger = await world.ledger()
        assert (ledger.owed, ledger.reserved) == (0, 0)
        assert ledger.tally == world.due(Tally(), book.prompt * COUNT, COUNT * EACH)
        rounds = COUNT * EACH / 64
        assert book.asked <= COUNT * (rounds + 1)
        vouchers = steps.count("voucher.ledgers")
        assert vouchers <= 3 * COUNT + 2 * rounds, "what is no news is not written"


async def test_what_is_no_news_costs_no_signature_check_and_no_write(tmp_path: Path) -> None:
    steps: list[str] = []
    async with World(tmp_path / "j.sqlite", on_step=steps.append) as world:
        world.engine.hold = 3
        inbound = await world.ask()
        await world.engine.held.wait()
        before = steps.count("voucher.ledgers")
        forged = bytearray(world.payer.voucher(world.pipeline.id, 1, 1))
        forged[-2] ^= 1
        for _ in range(5):
            inbound.pay(bytes(forged))
        while not inbound._inbox.empty():
            await asyncio.sleep(0)
        world.engine.release.set()
        await inbound.until(messages.Done)
        assert steps.count("voucher.ledgers") == before
        await world.settle(inbound)
