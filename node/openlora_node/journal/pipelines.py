"""The pipelines that requests were admitted for: what a pipeline id stands for, and its royalty rates for ever."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pipeline import Pipeline
from ..protocol.pricing import RoyaltySchedule
from .books import number, wei
from .database import Transaction

RATE_BYTES = 16


@dataclass(frozen=True)
class KnownPipeline:
    """A pipeline and the royalty rates of its artifacts under its terms: base first, wei per 1,000,000 tokens."""

    pipeline: Pipeline
    rates: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.rates) != 1 + len(self.pipeline.adapters):
            raise OpenLoraError(ErrorCode.BAD_PIPELINE, "a pipeline has one rate for each of its artifacts")

    @property
    def schedule(self) -> RoyaltySchedule:
        """How its royalties grow with tokens."""
        base, *adapters = self.rates
        return RoyaltySchedule.of(self.pipeline, base, tuple(adapters))


def remember(transaction: Transaction, pipeline: bytes, known: KnownPipeline) -> None:
    """Keep a pipeline under its id; one that is held stays as it is. Raises BAD_PIPELINE for another's id."""
    if transaction.one("SELECT 1 FROM pipelines WHERE id = ?", pipeline) is not None:
        return
    if known.pipeline.id != pipeline:
        raise OpenLoraError(ErrorCode.BAD_PIPELINE, "the request names another pipeline")
    transaction.write(
        "admit.pipelines",
        "INSERT INTO pipelines (id, packed, rates) VALUES (?, ?, ?)",
        pipeline, known.pipeline.pack(), b"".join(map(wei, known.rates)),
    )  # fmt: skip


def pipeline_of(transaction: Transaction, pipeline: bytes) -> KnownPipeline | None:
    """The pipeline under an id, if a request was ever admitted for it."""
    row = transaction.one("SELECT packed, rates FROM pipelines WHERE id = ?", pipeline)
    if row is None:
        return None
    packed, rates = row
    return KnownPipeline(
        Pipeline.unpack(packed),
        tuple(number(rates[at : at + RATE_BYTES]) for at in range(0, len(rates), RATE_BYTES)),
    )
