"""`openlora receipts`: what this node served, and proofs of it for others. Reads the journal only, beside a daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes, parse_address, parse_bytes32
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from ..attribution import Epochs, Evidence
    from ..journal import Reader, StoredReceipt
    from ..protocol.eip712 import Domain
    from ..protocol.structs import Receipt

app = typer.Typer(help="Look at receipts, and prove them to others.", no_args_is_help=True, **NOUN)

JournalFile = Annotated[
    Path | None, typer.Option("--journal", metavar="FILE", help="The journal. Default: that of the configured node.")
]
Identity = Annotated[
    str, typer.Argument(metavar="ID", help="Digest of the receipt or of its request, or the first digits; or its seq.")
]
MAX_LISTED = 10_000
SHORT_ID = 12
MAX_FOUND = 3


@dataclass(frozen=True)
class _Books:
    """An open journal of a node and its epochs."""

    reader: Reader
    epochs: Epochs
    node: bytes


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED, help="At most so many.")] = 20,
    payer: Annotated[str | None, typer.Option("--payer", metavar="ADDRESS", help="Of this payer only.")] = None,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print the newest receipts, newest first."""
    wanted = None if payer is None else parse_address(payer)
    with open_books(journal, config, sets) as books:
        found = books.reader.newest_receipts(books.node, MAX_LISTED if wanted else limit)
        found = [stored for stored in found if wanted in (None, stored.receipt.value.payer)][:limit]
        rows = [_summary(stored, books) for stored in found]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "finished", "status", "payer", "tokens", "fee (wei)", "epoch"),
        [
            (
                row["digest"][2 : 2 + SHORT_ID], _time(row["finishedAt"]), row["status"], row["payer"],
                str(row["promptTokens"] + row["completionTokens"]), row["fee"], str(row["epoch"]),
            )
            for row in rows
        ],
    )  # fmt: skip


@app.command()
def show(
    identity: Identity,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print one receipt: what it cost, who it was made with, who earns what."""
    from ..attribution import evidence_of

    with open_books(journal, config, sets) as books:
        stored = _find(books, identity)
        summary = _summary(stored, books)
        evidence = evidence_of(books.reader, stored)
    receipt = stored.receipt.value
    details = summary | {
        "request": format_bytes(receipt.request_digest),
        "node": format_bytes(receipt.node),
        "pipeline": format_bytes(receipt.pipeline_id),
        "engine": format_bytes(receipt.engine_digest),
        "outputHash": format_bytes(receipt.output_hash),
        "previous": format_bytes(receipt.previous),
        "startedAt": receipt.started_at,
        "attribution": _readable(evidence, "attribution"),
        "commitment": _readable(evidence, "commitment"),
    }
    if as_json:
        print_json(details)
        return
    lines = [f"{name}: {value}" for name, value in details.items() if name not in ("attribution", "commitment")]
    print_text("\n".join(lines))
    for group in ("attribution", "commitment"):
        print_table((group, ""), list(details[group].items()))


@app.command()
def explain(
    identity: Identity,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="The response's text. Default: as the gateway kept it."),
    ] = None,
    index: Annotated[
        list[Path] | None,
        typer.Option("--index", metavar="DIR", help="A dataset's index; repeatable. Default: those made here."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="The base's tokenizer.json. Default: as named.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else.")
    ] = None,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Show which words of a response came from whose data, and what each earned. ID may be an exported file."""
    from .explaining import print_told, tell, to_html
    from .sources import sources_of

    receipt, evidence, digest = _with_evidence(identity, journal, config, sets)
    found = sources_of(receipt, evidence, load_config(config, sets).config, text, index, tokenizer)
    told = tell(receipt, evidence, found.indexes, found.text, found.tokenizer)
    if html is not None:
        _write_new(html, to_html(digest, told).encode())
    if as_json:
        print_json({"receipt": digest, "datasets": [one.to_json() for one in told]})
        return
    print_told(told)
    if not told:
        print_text("no dataset behind this response has an index")


@app.command()
def export(
    identity: Identity,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: receipt-SEQ.json here.")] = None,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Write a receipt with its proof to a file that anyone checks offline. Replaces no file."""
    from ..attribution import export as export_bundle

    now = int(time.time())
    with open_books(journal, config, sets) as books:
        stored = _find(books, identity)
        bundle = export_bundle(books.reader, stored, books.epochs, now)
        epoch = books.epochs.number_at(stored.receipt.value.finished_at)
        root = books.epochs.root(epoch)
        domain = books.reader.binding.domain
    assert root is not None
    file = out or Path(f"receipt-{stored.receipt.value.seq}.json")
    _write_new(file, bundle.encode())
    result = {
        "file": str(file),
        "epoch": epoch,
        "root": format_bytes(root.root),
        "key": format_address(stored.receipt.signer(domain)),
        "chainId": domain.chain_id,
        "contract": format_address(domain.verifying_contract),
    }
    if as_json:
        print_json(result)
        return
    print_text(
        f"{file}\nepoch {epoch}, root {result['root']}: compare it with the chain's\n"
        f"openlora receipts verify {file} --root {result['root']} --key {result['key']}"
        f" --chain-id {domain.chain_id} --contract {result['contract']}"
    )


@app.command()
def fetch(
    identity: Annotated[str, typer.Argument(metavar="ID", help="The receipt's digest, as each answer names it: 0x….")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: receipt-SEQ.json here.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """As the payer, fetch a receipt's proof from the node that signed it, check it, and write it to a file."""
    import asyncio

    from ..attribution import Bundle
    from ..gateway.client import reach_gateway

    digest = parse_bytes32(identity)

    async def ask() -> dict[str, Any]:
        async with reach_gateway(load_config(config, sets).config) as gateway:
            return await gateway.proof(digest)

    data = asyncio.run(ask())["bundle"].encode()
    seq = Bundle.decode(data).receipt.value.seq
    file = out or Path(f"receipt-{seq}.json")
    _write_new(file, data)
    if as_json:
        print_json({"file": str(file), "seq": seq})
    else:
        print_text(f"{file}: `openlora receipts verify` proves it, `receipts explain` shows whose data it repeats")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `receipts export` wrote.")],
    root: Annotated[str, typer.Option("--root", metavar="0x…", help="The root that the chain holds for its epoch.")],
    key: Annotated[str, typer.Option("--key", metavar="ADDRESS", help="The node's key when the response finished.")],
    chain_id: Annotated[int | None, typer.Option("--chain-id", min=1, help="Default: the deployment's.")] = None,
    contract: Annotated[
        str | None, typer.Option("--contract", metavar="ADDRESS", help="The Settlement. Default: the deployment's.")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Check a receipt offline. Needs the root, the node's key and the domain from somewhere that you trust."""
    from ..attribution import verify as verify_bundle

    anchored, address = parse_bytes32(root), parse_address(key)
    domain = _domain(chain_id, contract, config, sets)
    bundle = verify_bundle(_read(file), anchored, domain, address)
    receipt = bundle.receipt.value
    result = {
        "ok": True,
        "digest": format_bytes(receipt.digest(domain)),
        "node": format_bytes(receipt.node),
        "payer": format_address(receipt.payer),
        "seq": receipt.seq,
        "fee": str(receipt.fee),
        "attribution": _readable(bundle.evidence, "attribution"),
    }
    if as_json:
        print_json(result)
        return
    print_text(f"proven: receipt {receipt.seq} of node {result['node']}, {receipt.fee} wei by {result['payer']}")
    print_table(("attribution", ""), list(_readable(bundle.evidence, "attribution").items()))


@contextmanager
def open_books(journal: Path | None, config: Path | None, sets: list[str] | None) -> Iterator[_Books]:
    """The journal of a node, for as long as it is looked at. Raises JOURNAL_MISMATCH for a payer's."""
    from ..attribution import Epochs
    from ..datadir import JOURNAL_NAME
    from ..journal import Reader, Role

    settings = load_config(config, sets).config
    with Reader(journal or settings.state_dir / JOURNAL_NAME) as reader:
        if reader.binding.role != Role.NODE:
            raise OpenLoraError(ErrorCode.JOURNAL_MISMATCH, "this is a payer's journal: see `openlora spend`")
        node = reader.binding.owner
        yield _Books(reader, Epochs(reader, node, int(settings.settlement.epoch.total_seconds())), node)


def _with_evidence(
    identity: str, journal: Path | None, config: Path | None, sets: list[str] | None
) -> tuple[Receipt, Evidence, str]:
    """A receipt, its leaves and a name for it, out of an exported file or the journal."""
    from ..attribution import Bundle, evidence_of

    if identity.endswith(".json"):
        bundle = Bundle.decode(_read(Path(identity)))
        return bundle.receipt.value, bundle.evidence, f"{bundle.receipt.value.seq} of {Path(identity).name}"
    with open_books(journal, config, sets) as books:
        stored = _find(books, identity)
        return stored.receipt.value, evidence_of(books.reader, stored), format_bytes(stored.digest)


def _find(books: _Books, identity: str) -> StoredReceipt:
    if identity.isdecimal() and len(identity) > SHORT_ID:
        stored = books.reader.receipt_at(books.node, int(identity))
        if stored is not None and stored.receipt.value.seq == int(identity):
            return stored
    digits = identity.lower().removeprefix("0x")
    try:
        prefix = bytes.fromhex(digits[: len(digits) // 2 * 2])
    except ValueError:
        prefix = b""
    if not prefix or len(prefix) > 32:
        raise OpenLoraError(ErrorCode.BAD_ID, "name a receipt by the first digits of its digest, two or more")
    found = [
        stored
        for stored in books.reader.find_receipts(prefix, MAX_LISTED)
        if stored.digest.hex().startswith(digits) or stored.receipt.value.request_digest.hex().startswith(digits)
    ][:MAX_FOUND]
    if len(found) != 1:
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, f"{'no' if not found else 'more than one'} receipt has a digest that begins so"
        )
    return found[0]


def _summary(stored: StoredReceipt, books: _Books) -> dict[str, Any]:
    from ..protocol.structs import ReceiptStatus

    receipt = stored.receipt.value
    return {
        "digest": format_bytes(stored.digest),
        "seq": receipt.seq,
        "status": ReceiptStatus(receipt.status).name.lower(),
        "payer": format_address(receipt.payer),
        "promptTokens": receipt.prompt_tokens,
        "completionTokens": receipt.completion_tokens,
        "compute": str(receipt.compute),
        "royalties": str(receipt.royalties),
        "fee": str(receipt.fee),
        "finishedAt": receipt.finished_at,
        "epoch": books.epochs.number_at(receipt.finished_at),
    }


def _readable(evidence: Evidence, group: str) -> dict[str, str]:
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


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _domain(chain_id: int | None, contract: str | None, config: Path | None, sets: list[str] | None) -> Domain:
    from ..protocol.crypto import Address
    from ..protocol.eip712 import Domain

    if chain_id is None or contract is None:
        from ..chainview import read_deployment

        deployment = read_deployment(load_config(config, sets).config.deployment_file)
        chain_id = chain_id or deployment.chain_id
        contract = contract or format_address(deployment.settlement)
    return Domain(chain_id=chain_id, verifying_contract=Address(parse_address(contract)))


def _read(file: Path) -> bytes:
    from ..attribution.bundle import MAX_BUNDLE_BYTES

    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BUNDLE_BYTES + 1)
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{file.name} cannot be read") from None


def _write_new(file: Path, data: bytes) -> None:
    try:
        with file.open("xb") as opened:
            opened.write(data)
    except FileExistsError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, f"{file.name} exists: name another file with --out") from None
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, f"{file.name} cannot be written here") from None
