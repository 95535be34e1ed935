"""What stands beside requests and receipts: what a pipeline id stands for, and a receipt's evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.journal import KnownPipeline, Reader, ReceiptDraft, ReceiptSlot
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import RoyaltySchedule
from support.journal import NODE, Builder, admit, digest_of, open_journal, request, respond

PIPELINE = Pipeline.of(b"\x01" * 32, Adapter(id=b"\x02" * 32, terms_version=3, weight=500), base_terms_version=4)
KNOWN = KnownPipeline(PIPELINE, ((1 << 96) - 1, 7))


async def test_a_pipeline_is_kept_with_its_rates_when_its_first_request_is_admitted(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.sqlite") as journal:
        assert await journal.pipeline(PIPELINE.id) is None
        for nonce in (1, 2):
            await admit(journal, request(nonce, pipeline=PIPELINE.id), pipeline=KNOWN)
        assert await journal.pipeline(PIPELINE.id) == KNOWN
        with Reader(journal.path) as reader:
            assert reader.pipeline(PIPELINE.id) == KNOWN
        assert KNOWN.schedule == RoyaltySchedule.of(PIPELINE, (1 << 96) - 1, (7,))
        await journal.check_integrity(deep=True)


async def test_a_pipeline_that_the_request_does_not_name_is_refused_whole(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.sqlite") as journal:
        with pytest.raises(OpenLoraError) as caught:
            await admit(journal, request(1), pipeline=KNOWN)
        assert caught.value.code is ErrorCode.BAD_PIPELINE
        with Reader(journal.path) as reader:
            assert reader.request_state(digest_of(request(1))) is None


def test_a_pipeline_has_one_rate_an_artifact() -> None:
    with pytest.raises(OpenLoraError):
        KnownPipeline(PIPELINE, (1,))


async def test_evidence_is_kept_beside_its_receipt(tmp_path: Path) -> None:
    def build(slot: ReceiptSlot) -> ReceiptDraft:
        return replace(Builder()(slot), evidence=b"leaves")

    async with open_journal(tmp_path / "j.sqlite") as journal:
        stored = await respond(journal, request(1), build)
        bare = await respond(journal, request(2), debt_allowed=10**9)
        with Reader(journal.path) as reader:
            assert reader.evidence(NODE, stored.receipt.value.seq) == b"leaves"
            assert reader.evidence(NODE, bare.receipt.value.seq) == b""
        assert await journal.receipt(digest_of(request(1))) == stored
        assert await journal.receipt(digest_of(request(9))) is None


async def test_receipts_are_found_by_place_by_age_and_by_the_first_digits(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j.sqlite") as journal:
        stored = [await respond(journal, request(nonce), debt_allowed=10**9) for nonce in range(5)]
        with Reader(journal.path) as reader:
            assert reader.newest_receipt(NODE) == stored[-1]
            assert reader.newest_receipts(NODE, 2) == stored[:-3:-1]
            seq = stored[2].receipt.value.seq
            assert reader.receipt_at(NODE, seq) == stored[2]
            assert reader.receipt_at(NODE, seq + 100) is None
            for one in stored:
                for whole in (one.digest, one.receipt.value.request_digest):
                    for length in (4, 31, 32):
                        assert reader.find_receipts(bytes(whole[:length]), 9) == [one]
            assert reader.find_receipts(b"", 9) == stored
            assert [one for one in stored if one.digest[:1] == b"\xff"] == reader.find_receipts(b"\xff" * 32, 9)
            found = reader.request(digest_of(request(3)))
            assert found is not None
            assert found[0] == request(3)
            assert reader.request(digest_of(request(9))) is None
