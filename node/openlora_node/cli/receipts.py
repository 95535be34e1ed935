"""`openlora receipts`: what was served or paid, and proofs of it. Reads a node's journal, a gateway's, or a file."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes, parse_address, parse_bytes32
from .books import (
    MAX_LISTED,
    SHORT_ID,
    Identity,
    JournalFile,
    OfGateway,
    open_books,
    read_bundle,
    readable,
    receipt_named,
)
from .chaindesk import Reading, open_desk, with_options
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text
from .sources import IndexFolders, TextFile, TokenizerFolder, sources_of

if TYPE_CHECKING:
    from ..attribution import Bundle
    from ..protocol.eip712 import Domain

app = typer.Typer(help="Look at receipts, and prove them to others.", no_args_is_help=True, **NOUN)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED, help="At most so many.")] = 20,
    payer: Annotated[str | None, typer.Option("--payer", metavar="ADDRESS", help="Of this payer only.")] = None,
    journal: JournalFile = None,
    gateway: OfGateway = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print the newest receipts, newest first: those that a node signed, or those that a gateway paid."""
    wanted = None if payer is None else parse_address(payer)
    with open_books(journal, config, sets, gateway=gateway) as books:
        found = books.newest(MAX_LISTED if wanted else limit)
        found = [stored for stored in found if wanted in (None, stored.receipt.value.payer)][:limit]
        rows = [books.summary(stored) for stored in found]
        paid = books.is_payers
    if as_json:
        print_json(rows)
        return
    other, last = ("node", "seq") if paid else ("payer", "epoch")
    print_table(
        ("id", "finished", "status", other, "tokens", "fee (wei)", last),
        [
            (
                row["digest"][2 : 2 + SHORT_ID], _time(row["finishedAt"]), row["status"], row[other][:42],
                str(row["promptTokens"] + row["completionTokens"]), row["fee"], str(row[last]),
            )
            for row in rows
        ],
    )  # fmt: skip


@app.command()
def show(
    identity: Identity,
    journal: JournalFile = None,
    gateway: OfGateway = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print one receipt: what it cost, who it was made with, who earns what."""
    from ..attribution import evidence_of

    with open_books(journal, config, sets, gateway=gateway) as books:
        stored = books.find(identity)
        summary = books.summary(stored)
        evidence = evidence_of(books.reader, stored)
    receipt = stored.receipt.value
    details = summary | {
        "request": format_bytes(receipt.request_digest),
        "pipeline": format_bytes(receipt.pipeline_id),
        "engine": format_bytes(receipt.engine_digest),
        "outputHash": format_bytes(receipt.output_hash),
        "previous": format_bytes(receipt.previous),
        "startedAt": receipt.started_at,
        "attribution": readable(evidence, "attribution"),
        "commitment": readable(evidence, "commitment"),
    }
    if as_json:
        print_json(details)
        return
    lines = [
        f"{name}: {value}"
        for name, value in details.items()
        if name not in ("attribution", "commitment") and value is not None
    ]
    print_text("\n".join(lines))
    for group in ("attribution", "commitment"):
        print_table((group, ""), list(details[group].items()))


@app.command()
def explain(
    identity: Identity,
    text: TextFile = None,
    index: IndexFolders = None,
    tokenizer: TokenizerFolder = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs nothing else.")
    ] = None,
    journal: JournalFile = None,
    gateway: OfGateway = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Show which words of a response came from whose data, and what each earned. ID may be an exported file."""
    from .explaining import print_told, tell, to_html

    about = receipt_named(identity, journal, config, sets, gateway=gateway)
    found = sources_of(about, load_config(config, sets).config, text, index, tokenizer)
    told = tell(about, found) if found else []
    if html is not None:
        _write_new(html, to_html(about.name, told).encode())
    if as_json:
        print_json({"receipt": about.name, "datasets": [one.to_json() for one in told]})
        return
    print_told(told)
    if not told:
        print_text("no dataset behind this response was traced: what it earns goes by static shares")


@app.command()
def export(
    identity: Identity,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: receipt-SEQ.json here.")] = None,
    journal: JournalFile = None,
    gateway: OfGateway = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Write a receipt with its proof to a file that anyone checks offline. Replaces no file.

    A payer's journal lacks the path to the anchored root alone: the gateway asks the node that signed for it.
    """
    from ..attribution import export as export_bundle

    now = int(time.time())
    with open_books(journal, config, sets, gateway=gateway) as books:
        stored, domain = books.find(identity), books.reader.binding.domain
        bundle: Bundle | None = None
        more: dict[str, Any] = {}
        if not books.is_payers:
            bundle = export_bundle(books.reader, stored, books.epochs, now)
            more = {"epoch": books.epochs.number_at(stored.receipt.value.finished_at)}
    if bundle is None:
        bundle, more = _completed(stored.digest, config, sets)
    file = out or Path(f"receipt-{stored.receipt.value.seq}.json")
    _write_new(file, bundle.encode())
    result = {
        "file": str(file),
        **more,
        "root": format_bytes(bundle.root(domain)),
        "key": format_address(stored.receipt.signer(domain)),
        "chainId": domain.chain_id,
        "contract": format_address(domain.verifying_contract),
    }
    if as_json:
        print_json(result)
        return
    print_text(
        f"{file}\nepoch {result['epoch']}, root {result['root']}: compare it with the chain's\n"
        f"openlora receipts verify {file} --epoch {result['epoch']}\n"
        f"openlora receipts verify {file} --root {result['root']} --key {result['key']}"
        f" --chain-id {domain.chain_id} --contract {result['contract']}"
    )


def _completed(digest: bytes, config: Path | None, sets: list[str] | None) -> tuple[Bundle, dict[str, Any]]:
    """A payer's bundle by way of its gateway, which runs here or for this call alone, and where its root stands."""
    import asyncio

    from ..attribution import Bundle
    from ..gateway.client import reach_gateway

    async def ask() -> dict[str, Any]:
        async with reach_gateway(load_config(config, sets).config) as gateway:
            return await gateway.proof(digest)

    told = asyncio.run(ask())
    return Bundle.decode(str(told["bundle"]).encode()), {"epoch": told["epoch"], "anchored": told["anchored"]}


@app.command()
@with_options(Reading)
async def verify(
    options: Reading,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `receipts export` wrote.")],
    epoch: Annotated[
        int | None,
        typer.Option("--epoch", min=0, metavar="N", help="Its epoch, as `export` says. Default: by settlement.epoch."),
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", metavar="0x…", help="Its epoch's root, from a source that you trust.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="ADDRESS", help="The node's key when the response finished, likewise."),
    ] = None,
    chain_id: Annotated[int | None, typer.Option("--chain-id", min=1, help="Default: the deployment's.")] = None,
    contract: Annotated[
        str | None, typer.Option("--contract", metavar="ADDRESS", help="The Settlement. Default: the deployment's.")
    ] = None,
) -> None:
    """Check a receipt: against the chain, or with --root and --key offline."""
    from ..attribution import Bundle
    from ..attribution import verify as verify_bundle

    data = read_bundle(file)
    if root is not None and key is not None:
        domain = _domain(chain_id, contract, options)
        bundle = verify_bundle(data, parse_bytes32(root), domain, parse_address(key))
        more: dict[str, Any] = {}
    else:
        from .anchored import anchored

        async with open_desk(options) as desk:
            domain = desk.domain
            found = await anchored(desk, Bundle.decode(data).receipt, epoch)
        trusted = found.root if root is None else parse_bytes32(root)
        bundle = verify_bundle(data, trusted, domain, found.key if key is None else parse_address(key))
        more = {"epoch": found.epoch, "root": format_bytes(found.root)}
    receipt = bundle.receipt.value
    result = {
        "ok": True,
        "digest": format_bytes(receipt.digest(domain)),
        "node": format_bytes(receipt.node),
        "payer": format_address(receipt.payer),
        "seq": receipt.seq,
        "fee": str(receipt.fee),
        **more,
        "attribution": readable(bundle.evidence, "attribution"),
    }
    if options.as_json:
        print_json(result)
        return
    print_text(f"proven: receipt {receipt.seq} of node {result['node']}, {receipt.fee} wei by {result['payer']}")
    if more:
        print_text(f"the chain holds its root for epoch {more['epoch']}, and the key that signed was the node's")
    print_table(("attribution", ""), list(readable(bundle.evidence, "attribution").items()))


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _domain(chain_id: int | None, contract: str | None, options: Reading) -> Domain:
    from ..protocol.crypto import Address
    from ..protocol.eip712 import Domain

    if chain_id is None or contract is None:
        from ..chainview import read_deployment

        deployment = read_deployment(options.deployment or options.config.deployment_file)
        chain_id = chain_id or deployment.chain_id
        contract = contract or format_address(deployment.settlement)
    return Domain(chain_id=chain_id, verifying_contract=Address(parse_address(contract)))


def _write_new(file: Path, data: bytes) -> None:
    try:
        with file.open("xb") as opened:
            opened.write(data)
    except FileExistsError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, f"{file.name} exists: name another file with --out") from None
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, f"{file.name} cannot be written here") from None
