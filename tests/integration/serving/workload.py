"""Serving under a payer that never gives up, run as a process that kills itself at its n-th journal step.

`python workload.py JOURNAL STEP`. Every start sends the same two requests again, each until it has its receipt, then
pays; it prints what the payer saw. A request that was served comes back as its receipt, whatever happened before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import count
from pathlib import Path

from openlora_node.protocol import messages
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.structs import Receipt
from support.serving_world import DOMAIN, FakeInbound, World

REQUESTS = 2
MAX_TOKENS = 20


def dying_at(step: int):
    """An `OnStep` that kills the process at its `step`-th call; 0 never does."""
    calls = count(1)

    def on_step(_name: str) -> None:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def say(what: str) -> None:
    print(what, flush=True)


async def pay_what_is_due(world: World) -> None:
    """The late door: a voucher for all that was served."""
    tally = await world.tally()
    if tally.tokens:
        voucher = world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute)
        await world.serving.voucher(messages.PutVoucher(voucher=voucher))


async def one(world: World, number: int) -> None:
    body = world.body(f"question {number}")
    quote = (await world.quote()).value
    signed = world.request(
        quote, body, nonce=number.to_bytes(32, "big"), max_tokens=MAX_TOKENS,
        issued_at=quote.issued_at, expires_at=quote.issued_at + 300,
    )  # fmt: skip
    opening = world.opening(await world.tally(), world.prompt_of(body))
    inbound = FakeInbound(world.infer(signed, body, opening))
    handler = asyncio.create_task(world.serving.handle(inbound))
    done = asyncio.create_task(inbound.until(messages.Done))
    await asyncio.wait((handler, done), return_when=asyncio.FIRST_COMPLETED)
    if not done.done():
        await handler
    receipt = Signed.unpack(Receipt, done.result().receipt)
    say(f"done {number} {receipt.value.digest(DOMAIN).hex()} {receipt.value.fee}")
    if inbound.of(messages.Tokens):
        tally = await world.tally()
        inbound.pay(world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute))
    try:
        await handler
    except OpenLoraError as error:
        if error.code is not ErrorCode.RESULT_EXPIRED:
            raise
        await pay_what_is_due(world)
    say(f"settled {number}")


async def main(path: Path, step: int) -> None:
    async with World(path, on_step=dying_at(step)) as world:
        await world.serving.start()
        say("started")
        for number in range(REQUESTS):
            await one(world, number)
        say("finished")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
