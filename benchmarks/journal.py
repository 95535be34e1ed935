"""Admissions and receipts a second on this machine's disk: one caller at a time, and 64 at once.

Run `python benchmarks/journal.py [--count N] [--directory DIR] [--json]`. Every figure is durable: WAL with
synchronous=FULL, one fsync a commit. The gain is what group commit gives on the same disk in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openlora_node.journal import Binding, EscrowSnapshot, Journal, ReceiptDraft, ReceiptSlot
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import Receipt, ReceiptStatus, Request

CALLERS = 64
PAYERS = 16
DOMAIN = Domain(chain_id=1612, verifying_contract=bytes(20))
NODE = bytes(32)
NODE_KEY = LocalSigner(b"\x01" * 32)
SIGNERS = [LocalSigner(bytes([2 + number]) * 32) for number in range(PAYERS)]


@dataclass(frozen=True)
class Figures:
    """Operations a second, and latencies in milliseconds."""

    operation: str
    callers: int
    per_second: float
    p50_ms: float
    p99_ms: float


def requests(count: int, now: int) -> list[Signed[Request]]:
    """Signed requests of `PAYERS` payers, spread over 64 pipelines."""
    return [
        Request(
            payer=SIGNERS[number % PAYERS].address,
            node=NODE,
            pipeline_id=(number % 64).to_bytes(32, "big"),
            quote_digest=ZERO32,
            body_hash=ZERO32,
            max_fee=10**15,
            max_tokens=1_000,
            nonce=LocalSigner((number + 1).to_bytes(32, "big")).address + bytes(12),
            issued_at=now,
            expires_at=now + 300,
        ).sign(DOMAIN, SIGNERS[number % PAYERS])
        for number in range(count)
    ]


def build(slot: ReceiptSlot) -> ReceiptDraft:
    """A signed receipt, as serving makes one inside the transaction."""
    request, after = slot.request.value, Tally(slot.before.tokens + 200, slot.before.compute_micro_wei + 2 * 10**14)
    receipt = Receipt(
        request_digest=slot.request_digest,
        payer=request.payer,
        node=request.node,
        pipeline_id=request.pipeline_id,
        status=ReceiptStatus.COMPLETE,
        engine_digest=ZERO32,
        prompt_tokens=100,
        completion_tokens=100,
        output_hash=ZERO32,
        attribution_root=ZERO32,
        commitment_root=ZERO32,
        compute=after.compute - slot.before.compute,
        royalties=0,
        started_at=request.issued_at,
        finished_at=request.issued_at,
        seq=slot.seq,
        previous=slot.previous,
    )
    return ReceiptDraft(receipt.sign(DOMAIN, NODE_KEY), ZERO32, after)


async def measure(
    operation: str, run: Callable[[Signed[Request]], Awaitable[object]], work: Sequence[Signed[Request]], callers: int
) -> Figures:
    """Run `work` with `callers` tasks that each await one operation after the other."""
    latencies: list[float] = []
    todo = iter(work)

    async def caller() -> None:
        for item in todo:
            start = time.perf_counter()
            await run(item)
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed = time.perf_counter() - start
    latencies.sort()
    return Figures(
        operation=operation,
        callers=callers,
        per_second=len(work) / elapsed,
        p50_ms=1_000 * latencies[len(latencies) // 2],
        p99_ms=1_000 * latencies[len(latencies) * 99 // 100],
    )


async def benchmark(directory: Path, count: int) -> list[Figures]:
    """Admit and finish `count` requests alone, then ten times as many with 64 callers."""
    now = int(time.time())
    work = requests(11 * count, now)
    escrow = EscrowSnapshot(10**30)
    owners = {signer.address: signer.address for signer in SIGNERS}

    async with Journal.open(directory / "journal.sqlite", Binding.to_node(DOMAIN, NODE), lambda: now) as journal:

        async def admit(item: Signed[Request]) -> object:
            return await journal.admit(item, owners[item.value.payer], escrow, debt_allowed=10**30)

        async def commit(item: Signed[Request]) -> object:
            return await journal.commit_receipt(Digest(item.value.digest(DOMAIN)), build)

        figures = []
        for part, callers in ((work[:count], 1), (work[count:], CALLERS)):
            figures.append(await measure("admit", admit, part, callers))
            figures.append(await measure("commit_receipt", commit, part, callers))
        await journal.check_integrity()
    return figures


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=500, help="operations for one caller; 64 callers do ten times that"
    )
    parser.add_argument("--directory", type=Path, default=None, help="where the journal lies; the disk is what counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        figures = asyncio.run(benchmark(Path(directory), options.count))
    alone = {figure.operation: figure.per_second for figure in figures if figure.callers == 1}
    gains = {f.operation: f.per_second / alone[f.operation] for f in figures if f.callers > 1}
    if options.json:
        print(json.dumps({"journal": [asdict(figure) for figure in figures], "group_commit_gain": gains}))
        return
    print(f"{'operation':<16}{'callers':>8}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for f in figures:
        print(f"{f.operation:<16}{f.callers:>8}{f.per_second:>12,.0f}{f.p50_ms:>9.2f}{f.p99_ms:>9.2f}")
    print("group commit gain: " + ", ".join(f"{name} ×{gain:.1f}" for name, gain in gains.items()))


if __name__ == "__main__":
    main()
