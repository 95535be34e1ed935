"""Requests a second that the door judges on one core: the checks with signature recovery, and with the journal behind.

`python benchmarks/admission.py [--count N] [--body BYTES] [--directory DIR] [--json]`. Each request is another, signed
by one of 16 payers, on a pipeline of two adapters. The process keeps to one core, the journal's writer thread included;
journal figures are durable (one fsync a commit, 64 requests wait at once).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from openlora_node.admission import (
    Admitted,
    House,
    Knock,
    LedgerState,
    OpenQuote,
    PartStanding,
    Purse,
    Rates,
    Refusal,
    Standing,
    Visitor,
    can_pay,
    examine,
    may_use,
)
from openlora_node.chainview.values import FOREVER
from openlora_node.journal import Binding, EscrowSnapshot, Journal, KnownPipeline, LedgerKey, VoucherEntry
from openlora_node.network.buckets import Allowance
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge, max_fee
from openlora_node.protocol.structs import Quote, Request, Royalty, Voucher, body_hash

TARGET = 1_500
CALLERS = 64
PAYERS = 16
DOMAIN = Domain(chain_id=1612, verifying_contract=b"\x5e" * 20)
NODE = b"\x11" * 32
NODE_KEY = LocalSigner(b"\x01" * 32)
SIGNERS = [LocalSigner(bytes([2 + number]) * 32) for number in range(PAYERS)]
HOUSE = House(DOMAIN, NODE)
PIPELINE = Pipeline.of(
    b"\xb0" * 32,
    Adapter(id=b"\xa1" * 32, terms_version=1, weight=7_000),
    Adapter(id=b"\xa2" * 32, terms_version=1, weight=3_000),
    base_terms_version=1,
)
RATE = 5 * 10**16
RATES = (RATE, RATE, RATE)
SCHEDULE = RoyaltySchedule.of(PIPELINE, RATE, (RATE, RATE))
COMPUTE = ComputeRates(2 * 10**17, 6 * 10**17)
CHARGE = 10**15
PROMPT, MAX_TOKENS = 200, 256
WIDE = Allowance(1e9, 1e9)
NOW = int(time.time())


@dataclass(frozen=True)
class Figure:
    """Requests a second by the clock, and a second of this process's own time: neighbours slow down the first only."""

    what: str
    per_second: float
    per_cpu_second: float


def quote_for(payer: LocalSigner) -> OpenQuote:
    """The node's quote for a payer."""
    parts = [(PIPELINE.base, 1), *((adapter.id, 1) for adapter in PIPELINE.adapters)]
    quote = Quote(
        payer=payer.address,
        node=NODE,
        pipeline_id=PIPELINE.id,
        input_rate=COMPUTE.input_rate,
        output_rate=COMPUTE.output_rate,
        royalties=tuple(Royalty(artifact=a, terms_version=v, rate=RATE, owner=b"\x0f" * 20) for a, v in parts),
        settlement_charge=CHARGE,
        issued_at=NOW,
        expires_at=NOW + 180,
    )
    return OpenQuote(quote.sign(DOMAIN, NODE_KEY), Digest(quote.digest(DOMAIN)), PIPELINE, SCHEDULE, PIPELINE.pack())


def knocks(count: int, body: bytes, quotes: list[OpenQuote], opened: bool) -> list[Knock]:
    """That many requests; `opened` gives each an opening voucher for its prompt."""
    fee = max_fee(SCHEDULE, COMPUTE, PROMPT, MAX_TOKENS, CHARGE)
    due = charge(Tally(), SCHEDULE, COMPUTE, PROMPT, 0, CHARGE).after
    made = []
    for number in range(count):
        payer, quote = SIGNERS[number % PAYERS], quotes[number % PAYERS]
        request = Request(
            payer=payer.address,
            node=NODE,
            pipeline_id=PIPELINE.id,
            quote_digest=quote.digest,
            body_hash=body_hash(body),
            max_fee=fee,
            max_tokens=MAX_TOKENS,
            nonce=os.urandom(32),
            issued_at=NOW,
            expires_at=NOW + 300,
        )
        voucher = Voucher(
            payer=payer.address,
            node=NODE,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=due.tokens,
            cumulative_compute=due.compute,
            reference_digest=ZERO32,
        )
        packed = voucher.sign(DOMAIN, payer).pack() if opened else b""
        made.append(
            Knock(request.sign(DOMAIN, payer).pack(), PIPELINE.pack(), body, packed, f"peer {number % PAYERS}", "::1")
        )
    return made


class Door:
    """The checks as serving runs them, with what it would have looked up."""

    def __init__(self, quotes: list[OpenQuote], prepaid: bool) -> None:
        self._quotes = {quote.digest: quote for quote in quotes}
        self._rates = Rates(peer=WIDE, ip=WIDE, signer=WIDE)
        parts = [
            PartStanding(artifact, True, FOREVER) for artifact in (PIPELINE.base, *(a.id for a in PIPELINE.adapters))
        ]
        self._standing = Standing(True, parts)
        paid = Voucher(
            payer=SIGNERS[0].address,
            node=NODE,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=PROMPT + MAX_TOKENS,
            cumulative_compute=10**18,
            reference_digest=ZERO32,
        )
        self._ledger = LedgerState(SCHEDULE, Tally(), paid if prepaid else None)

    def judge(self, knock: Knock) -> Admitted:
        """All that happens before the journal."""
        visitor = examine(knock, HOUSE, self._rates, self._quotes.get, now=NOW, instant=float(NOW))
        assert isinstance(visitor, Visitor), visitor
        refusal = may_use(visitor, self._standing, HOUSE, NOW)
        assert refusal is None, refusal
        verdict = can_pay(visitor, Purse(PROMPT, 1, MAX_TOKENS, 8_192, self._ledger))
        assert not isinstance(verdict, Refusal), verdict
        return verdict


def measure(what: str, door: Door, work: list[Knock]) -> Figure:
    """The best of three rounds over the work."""
    rounds = [_round(door, work) for _ in range(3)]
    return Figure(what, len(work) / min(wall for wall, _ in rounds), len(work) / min(cpu for _, cpu in rounds))


def _round(door: Door, work: list[Knock]) -> tuple[float, float]:
    start, began = time.perf_counter(), time.process_time()
    for knock in work:
        door.judge(knock)
    return time.perf_counter() - start, time.process_time() - began


async def measure_journal(what: str, door: Door, work: list[Knock], directory: Path) -> Figure:
    """Judge and reserve, `CALLERS` at once."""
    escrow, known = EscrowSnapshot(10**30), KnownPipeline(PIPELINE, RATES)
    todo = iter(work)
    async with Journal.open(directory / "journal.sqlite", Binding.to_node(DOMAIN, NODE), lambda: NOW) as journal:

        async def caller() -> None:
            for knock in todo:
                admitted = door.judge(knock)
                visitor = admitted.visitor
                opening = visitor.opening
                entry = VoucherEntry(opening, visitor.signer, SCHEDULE.value(opening.value)) if opening else None
                await journal.admit(visitor.request, visitor.signer, escrow, opening=entry, pipeline=known)

        start, began = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        elapsed, used = time.perf_counter() - start, time.process_time() - began
        key = LedgerKey(SIGNERS[0].address, NODE, SIGNERS[0].address, PIPELINE.id)
        assert (await journal.ledger(key)).reserved > 0
    return Figure(what, len(work) / elapsed, len(work) / used)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="requests of a round")
    parser.add_argument("--body", type=int, default=1_024, help="bytes of each request's body")
    parser.add_argument("--directory", type=Path, default=None, help="where the journal lies; the disk is what counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    quotes = [quote_for(signer) for signer in SIGNERS]
    body = os.urandom(options.body)
    plain = knocks(options.count, body, quotes, opened=False)
    opened = knocks(options.count, body, quotes, opened=True)
    figures = [
        measure("checks and signature", Door(quotes, prepaid=True), plain),
        measure("with an opening voucher", Door(quotes, prepaid=False), opened),
    ]
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        figures.append(
            asyncio.run(
                measure_journal("with voucher and journal", Door(quotes, prepaid=False), opened, Path(directory))
            )
        )
    if options.json:
        print(json.dumps({"admission": [asdict(figure) for figure in figures], "target": TARGET}))
        return
    print(f"{'on one core':<28}{'per second':>12}{'per CPU second':>16}{'target':>10}")
    for figure in figures:
        print(f"{figure.what:<28}{figure.per_second:>12,.0f}{figure.per_cpu_second:>16,.0f}{TARGET:>10,}")


if __name__ == "__main__":
    main()
