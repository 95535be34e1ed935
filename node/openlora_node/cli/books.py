"""A journal as `receipts` and `attribution` look at it: a node's, or that of the gateway that paid. Beside a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes
from .options import load_config

if TYPE_CHECKING:
    from ..attribution import Epochs, Evidence
    from ..config import Config
    from ..journal import Reader, Role, StoredReceipt
    from ..protocol.structs import Receipt

JournalFile = Annotated[
    Path | None,
    typer.Option("--journal", metavar="FILE", help="The journal. Default: the configured node's, else the gateway's."),
]
OfGateway = Annotated[bool, typer.Option("--gateway", help="The gateway's journal, where a node's is here too.")]
Identity = Annotated[
    str, typer.Argument(metavar="ID", help="Digest of the receipt or of its request, or the first digits; or its seq.")
]
MAX_LISTED = 10_000
SHORT_ID = 12


@dataclass(frozen=True)
class Books:
    """An open journal."""

    reader: Reader
    epochs: Epochs
    """Of the node. A payer's journal holds single receipts of many nodes, whose epochs may have any length."""

    @property
    def node(self) -> bytes:
        """Whose journal a node's is."""
        return self.reader.binding.owner

    @property
    def is_payers(self) -> bool:
        """Whether it is a gateway's."""
        from ..journal import Role

        return self.reader.binding.role == Role.PAYER

    def newest(self, limit: int) -> list[StoredReceipt]:
        """The newest receipts, newest first."""
        return self.reader.newest_paid(limit) if self.is_payers else self.reader.newest_receipts(self.node, limit)

    def summary(self, stored: StoredReceipt) -> dict[str, Any]:
        """What a list shows of a receipt. `epoch` is None in a payer's journal."""
        from ..protocol.structs import ReceiptStatus

        receipt = stored.receipt.value
        return {
            "digest": format_bytes(stored.digest),
            "seq": receipt.seq,
            "status": ReceiptStatus(receipt.status).name.lower(),
            "node": format_bytes(receipt.node),
            "payer": format_address(receipt.payer),
            "promptTokens": receipt.prompt_tokens,
            "completionTokens": receipt.completion_tokens,
            "compute": str(receipt.compute),
            "royalties": str(receipt.royalties),
            "fee": str(receipt.fee),
            "finishedAt": receipt.finished_at,
            "epoch": None if self.is_payers else self.epochs.number_at(receipt.finished_at),
        }

    def find(self, identity: str) -> StoredReceipt:
        """The one receipt that is meant. Raises BAD_ID, NOT_FOUND."""
        if identity.isdecimal() and len(identity) > SHORT_ID and (found := self._numbered(int(identity))):
            return found
        digits = identity.lower().removeprefix("0x")
        try:
            prefix = bytes.fromhex(digits[: len(digits) // 2 * 2])
        except ValueError:
            prefix = b""
        if not prefix or len(prefix) > 32:
            raise OpenLoraError(ErrorCode.BAD_ID, "name a receipt by the first digits of its digest, two or more")
        matching = [
            stored
            for stored in self.reader.find_receipts(prefix, MAX_LISTED)
            if stored.digest.hex().startswith(digits) or stored.receipt.value.request_digest.hex().startswith(digits)
        ]
        if len(matching) != 1:
            raise OpenLoraError(
                ErrorCode.NOT_FOUND, f"{'no' if not matching else 'more than one'} receipt has a digest that begins so"
            )
        return matching[0]

    def _numbered(self, seq: int) -> StoredReceipt | None:
        for node in self.reader.nodes() if self.is_payers else [self.node]:
            stored = self.reader.receipt_at(node, seq)
            if stored is not None and stored.receipt.value.seq == seq:
                return stored
        return None


@dataclass(frozen=True)
class Told:
    """A receipt and the leaves behind its roots, out of a journal or a file."""

    receipt: Receipt
    evidence: Evidence
    name: str
    """For people."""
    digest: bytes | None
    """None out of a file, which does not say for which chain it was signed."""


@contextmanager
def open_books(
    journal: Path | None,
    config: Path | None,
    sets: list[str] | None,
    *,
    gateway: bool = False,
    only: Role | None = None,
) -> Iterator[Books]:
    """A journal for as long as it is looked at. Raises JOURNAL_MISMATCH for one that is not `only`'s."""
    from ..attribution import Epochs
    from ..journal import Reader

    settings = load_config(config, sets).config
    with Reader(journal or _default(settings, gateway=gateway)) as reader:
        if only is not None and reader.binding.role != only:
            raise OpenLoraError(
                ErrorCode.JOURNAL_MISMATCH, f"this is a {reader.binding.role}'s journal, not a {only}'s"
            )
        yield Books(reader, Epochs(reader, reader.binding.owner, int(settings.settlement.epoch.total_seconds())))


def _default(config: Config, *, gateway: bool) -> Path:
    from ..datadir import JOURNAL_NAME, PAYER_JOURNAL_NAME

    nodes, payers = config.state_dir / JOURNAL_NAME, config.gateway_dir / PAYER_JOURNAL_NAME
    return payers if gateway or (payers.is_file() and not nodes.is_file()) else nodes


def receipt_named(
    identity: str, journal: Path | None, config: Path | None, sets: list[str] | None, *, gateway: bool
) -> Told:
    """A receipt with its leaves, out of an exported file (a name that ends in .json) or out of a journal."""
    from ..attribution import Bundle, evidence_of

    if identity.endswith(".json"):
        bundle = Bundle.decode(read_bundle(Path(identity)))
        value = bundle.receipt.value
        return Told(value, bundle.evidence, f"{value.seq} of {Path(identity).name}", None)
    with open_books(journal, config, sets, gateway=gateway) as books:
        stored = books.find(identity)
        evidence = evidence_of(books.reader, stored)
        return Told(stored.receipt.value, evidence, format_bytes(stored.digest), stored.digest)


def read_bundle(file: Path) -> bytes:
    """An exported file, at most a byte more than one may have. Raises NOT_FOUND."""
    from ..attribution.bundle import MAX_BUNDLE_BYTES

    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{file.name} cannot be read") from None


def readable(evidence: Evidence, group: str) -> dict[str, str]:
    """Leaves of `attribution` or `commitment` as people read them."""
    return {leaf.name: _leaf_text(leaf.name, leaf.value) for leaf in getattr(evidence, group)}


def _leaf_text(name: str, value: bytes) -> str:
    from ..attribution.leaves import number

    parent, last = (["", *name.split("/")])[-2:]
    if last in {"owner", "signer"}:
        text = format_address(value[12:])
    elif last in {"royalty", "compute", "undivided"}:
        text = f"{number(value)} wei"
    elif last in {"terms", "weight", "bps", "tokens", "seed", "algorithm", "assigned", "coverage"}:
        text = str(number(value))
    elif last == "finish":
        text = value.rstrip(b"\0").decode("ascii", "replace")
    elif parent == "credit":
        text = f"{int.from_bytes(value[:12], 'big')} of 1,000,000 to {format_address(value[12:])}"
    elif name == "base" or parent in {"adapter", "dataset", "base"}:
        text = format_artifact_id(value)
    else:
        text = format_bytes(value)
    return text
