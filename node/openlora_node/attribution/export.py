"""Out of a journal: bundles of receipts whose epoch is closed."""

from __future__ import annotations

from ..journal import Reader, StoredReceipt
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import Digest
from .bundle import Bundle
from .epochs import Epochs
from .evidence import Evidence


def evidence_of(reader: Reader, stored: StoredReceipt) -> Evidence:
    """The leaves behind a receipt's roots; none for one that was kept without."""
    receipt = stored.receipt.value
    return Evidence.unpack(reader.evidence(receipt.node, receipt.seq), stored.salt)


def export(reader: Reader, stored: StoredReceipt, epochs: Epochs, now: int) -> Bundle:
    """The bundle of a receipt at unix second `now`.

    Raises NOT_FOUND while its epoch is open, or where the journal lacks the request or the pipeline.
    """
    receipt = stored.receipt.value
    number = epochs.number_at(receipt.finished_at)
    if number > epochs.newest_closed(now):
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, f"epoch {number} of this receipt is still open: export it once the epoch is anchored"
        )
    request = reader.request(Digest(receipt.request_digest))
    pipeline = reader.pipeline(receipt.pipeline_id)
    if request is None or pipeline is None:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "the journal lacks the request or the pipeline of this receipt")
    return Bundle(
        request=request[0],
        pipeline=pipeline.pipeline,
        receipt=stored.receipt,
        salt=stored.salt,
        proof=epochs.proof(stored),
        evidence=evidence_of(reader, stored),
    )
