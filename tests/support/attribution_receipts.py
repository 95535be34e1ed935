"""Receipts, epochs and bundles for tests: a journal filled by real serving, and receipts made without one."""

from __future__ import annotations

from pathlib import Path

from openlora_node.attribution import Behind, Outcome, Output, Part, Sampling, build_receipt
from openlora_node.journal import ReceiptDraft, ReceiptSlot
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally
from openlora_node.protocol.structs import ReceiptStatus
from support.journal import DOMAIN, NODE_KEY, NOW, digest_of, request, signer
from support.serving_world import World

BASE, ADAPTER, DATASET = b"\xb0" * 32, b"\xa1" * 32, b"\xd0" * 32
PIPELINE = Pipeline.of(BASE, Adapter(id=ADAPTER, terms_version=1, weight=-5_000), base_terms_version=2)
RATES = (3_000_000, 7_000_001)
SCHEDULE = RoyaltySchedule.of(PIPELINE, RATES[0], RATES[1:])
COMPUTE = ComputeRates(1_500_000, 2_500_003)
PARTS = (
    Part(BASE, 2, 10_000, b"\x01" * 20),
    Part(ADAPTER, 1, -5_000, b"\x02" * 20, (Behind(DATASET, 3_333, b"\x05" * 32), Behind(BASE, 1_000, kind="base"))),
)


def outcome(
    prompt: int = 7, choices: tuple[tuple[int, ...], ...] = ((1, 2, 3),), status: ReceiptStatus = ReceiptStatus.COMPLETE
) -> Outcome:
    """How a response on `PIPELINE` ended."""
    return Outcome(
        status=status,
        signer=signer(0).address,
        rates=COMPUTE,
        schedule=SCHEDULE,
        settlement_charge=11,
        parts=PARTS,
        sampling=Sampling(b"\x06" * 32, seed=42),
        output=Output(choices, ("stop",) * len(choices)),
        prompt_tokens=prompt,
        engine_digest=b"\x07" * 32,
        started_at=NOW,
        finished_at=NOW + 2,
        salt=b"\x08" * 32,
    )


def slot(before: Tally | None = None, nonce: int = 1) -> ReceiptSlot:
    """The next place in a chain."""
    signed = request(nonce, pipeline=PIPELINE.id, max_fee=10**9)
    return ReceiptSlot(signed, digest_of(signed), 5, Digest(ZERO32), before or Tally())


def draft(before: Tally | None = None, **changes: object) -> ReceiptDraft:
    """A receipt for that place."""
    return build_receipt(slot(before), outcome(**changes), DOMAIN, NODE_KEY)  # type: ignore[arg-type]


async def fill(path: Path, times: list[int]) -> World:
    """A journal with one served and paid response at each of these seconds after the start; its world, closed."""
    async with World(path) as world:
        start = world.clock.now
        for time in times:
            world.clock.now = start + time
            await world.paid(max_tokens=3 + time % 5)
    return world
