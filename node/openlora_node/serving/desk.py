"""What all requests of a node share: its rooms, its books, its bounds."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..admission import House
from ..attribution import Outcome, build_receipt
from ..journal import Journal, ReceiptDraft, ReceiptSlot, StoredReceipt
from ..protocol.crypto import Signer
from ..protocol.errors import OpenLoraError
from ..protocol.ids import Digest
from .capacity import Capacity
from .facts import Facts
from .ledgers import Ledgers
from .meter import Meter
from .ports import ArtifactsLike, ChainLike, EngineChoice, ServingOptions, Tracing, only_declared

_log = logging.getLogger(__name__)


@dataclass
class Desk:
    """The rooms around a request, and what serving keeps of all requests together."""

    house: House
    key: Signer
    chain: ChainLike
    journal: Journal
    engines: Mapping[bytes, EngineChoice]
    artifacts: ArtifactsLike
    options: ServingOptions
    clock: Callable[[], int]
    instant: Callable[[], float]
    facts: Facts
    ledgers: Ledgers
    capacity: Capacity
    trace: Tracing = only_declared
    tokens: Meter = field(default_factory=Meter)
    receipts: int = 0
    refused: int = 0
    newest_finish: int = 0
    """Unix second of the newest receipt: receipts finish in the order of their numbers, whatever the clock does."""
    unreleased: set[Digest] = field(default_factory=set)
    """Requests whose reservation could not be released when they failed."""

    async def commit(self, digest: Digest, outcome: Outcome) -> tuple[StoredReceipt, ReceiptDraft]:
        """The receipt of a request, and what was kept with it. Raises STORAGE_* and what the journal raises."""
        drafts: list[ReceiptDraft] = []

        def build(slot: ReceiptSlot) -> ReceiptDraft:
            # In the writer's thread, one at a time: nothing else touches newest_finish once serving has begun.
            self.newest_finish = max(self.newest_finish, self.clock(), outcome.started_at)
            draft = build_receipt(slot, replace(outcome, finished_at=self.newest_finish), self.house.domain, self.key)
            drafts.append(draft)
            return draft

        stored = await self.journal.commit_receipt(digest, build)
        if not drafts:
            raise AssertionError("a request has one task")
        self.receipts += 1
        return stored, drafts[-1]

    async def release(self, digest: Digest) -> None:
        """Give a request's reservation back: it gets no receipt. Where the disk refuses, it is tried again later."""
        try:
            await self.journal.interrupt(digest)
        except OpenLoraError as error:
            _log.warning("the reservation of request %s is not released yet: %s", digest.hex()[:12], error.code.value)
            self.unreleased.add(digest)
        else:
            self.unreleased.discard(digest)

    async def release_late(self) -> None:
        """Try once more what could not be released."""
        for digest in list(self.unreleased):
            await self.release(digest)


def new_salt() -> bytes:
    """32 random bytes for a receipt's leaf."""
    return secrets.token_bytes(32)
