"""`openlora attribution`: index datasets, replay what receipts say of them, add up what contributors earned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes, parse_artifact_id
from . import sources
from .books import JournalFile, OfGateway, Told, open_books, receipt_named
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text
from .progress import bytes_bar, size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..attribution.corpusindex import CorpusIndex
    from ..attribution.replay import Replayed

app = typer.Typer(help="Find which data a response came from, and what it earned.", no_args_is_help=True, **NOUN)

TokenizerFolder = Annotated[
    Path, typer.Option("--tokenizer", metavar="FOLDER", help="A folder with the base's tokenizer.json.")
]


@app.command("index")
def index_dataset(
    source: Annotated[Path, typer.Argument(metavar="DATASET.jsonl", help="The dataset's file.")],
    dataset: Annotated[str, typer.Option("--dataset", metavar="ID", help="Its artifact id, from `publish`.")],
    tokenizer: TokenizerFolder,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder. Default: where the node looks for it.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--earlier",
            metavar="FILE",
            help="A dataset registered before: what it holds stays its contributors'. Repeatable, oldest first.",
        ),
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Index a dataset for one tokenizer. The same input gives the same bytes everywhere.

    A running node finds a new index in its folder by itself.
    """
    from ..attribution.background import background_digest
    from ..attribution.corpusindex import build, open_index, save
    from ..attribution.dataset import read_samples
    from ..attribution.encoder import TokenizerEncoder
    from ..attribution.originality import Originals, attributed
    from ..attribution.surprisal import surprisal_table
    from ..attribution.tracer import FOLDER

    artifact = bytes(parse_artifact_id(dataset))
    encoder = TokenizerEncoder.open(tokenizer)
    table = surprisal_table(encoder.digest)
    name = f"{artifact.hex()}-{encoder.digest.hex()[:16]}"
    folder = out or load_config(config, sets).config.state_dir / FOLDER / name
    if folder.exists():
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, f"{folder.name} exists: delete it, or name another with --out")
    with bytes_bar(f"reading {source.name}") as tell:
        originals = Originals()
        for file in earlier or ():
            originals.register(list(read_samples(_lines(file))))
        samples = list(read_samples(_lines(source, tell)))
        verdicts = originals.register(samples)
    own = list(attributed(samples, verdicts))
    with bytes_bar(f"indexing {source.name}") as tell:
        index = build(artifact, own, encoder, table, lambda done: tell(done, len(own)), background_digest())
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        save(index, partial)
        saved = open_index(partial)
        partial.rename(folder)
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, f"{folder.name} cannot be written here") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    others = [verdict for verdict in verdicts if not verdict.is_own(samples[verdict.sample].contributor)]
    result: dict[str, Any] = {
        "index": format_bytes(saved.digest),
        "folder": str(folder),
        "dataset": format_artifact_id(artifact),
        "tokens": len(saved.suffixes),
        "documents": len(saved.documents),
        "contributors": [format_address(owner) for owner in saved.owners],
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "othersFirst": [
            {
                "line": verdict.sample + 1,
                "contributor": format_address(samples[verdict.sample].contributor),
                "why": "nearly the same" if verdict.near else "holds 50 words in a row of theirs",
                "owners": sorted({format_address(piece.owner) for piece in verdict.pieces}),
            }
            for verdict in others
        ],
    }
    if as_json:
        print_json(result)
        return
    print_text(f"index {result['index']}\n{folder}")
    print_text(f"{result['tokens']:,} tokens, {result['documents']:,} documents, {size_text(result['bytes'])}")
    if others:
        print_text("what others gave first counts as theirs:")
        rows = result["othersFirst"]
        cells = [(str(row["line"]), row["contributor"], row["why"], ", ".join(row["owners"])) for row in rows]
        print_table(("line", "contributor", "why", "whose"), cells)


@app.command()
def replay(
    receipt: Annotated[
        str,
        typer.Option("--receipt", metavar="FILE|ID", help="What `receipts export` wrote, or one in a journal here."),
    ],
    index: sources.IndexFolders = None,
    text: sources.TextFile = None,
    tokenizer: sources.TokenizerFolder = None,
    journal: JournalFile = None,
    gateway: OfGateway = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Trace a response again and compare with its receipt. Any difference ends with exit code 8.

    Whether the receipt itself is proven is `receipts verify`'s to say.
    """
    about = receipt_named(receipt, journal, config, sets, gateway=gateway)
    found = sources.sources_of(about, load_config(config, sets).config, text, index, tokenizer)
    done = replayed(about, found) if found else ()
    rows = [
        {
            "dataset": format_artifact_id(one.facts.dataset),
            "index": format_bytes(one.found.index),
            "coverage": one.found.coverage,
            "credits": {format_address(owner): part for owner, part in one.found.credits},
            "differences": [
                {"what": what, "stated": _plain(stated), "found": _plain(found)}
                for what, stated, found in one.differences
            ],
        }
        for one in done
    ]
    same = not any(row["differences"] for row in rows)
    if as_json:
        print_json({"ok": same, "datasets": rows})
    else:
        for row in rows:
            print_text(f"{row['dataset']}: coverage {row['coverage']} of 1,000,000")
            for found in row["differences"]:  # type: ignore[attr-defined]
                print_text(f"  {found['what']} differs: the receipt says {found['stated']}, found {found['found']}")
        print_text(("the same" if same else "not the same") + f": {len(rows)} dataset(s) replayed")
    if not same:
        raise typer.Exit(Exit.REFUSED)


@app.command()
def audit(
    epoch: Annotated[int, typer.Option("--epoch", metavar="N", help="Up to the end of this epoch, cumulative.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write each dataset's table there: `rewards` takes it.")
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option("--expect", metavar="ID=ROOT", help="A root that was posted for a dataset; repeatable."),
    ] = None,
    journal: JournalFile = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Add up what this node's receipts credit to each dataset's contributors, and compare with what was posted.

    Of a dataset that was posted: the newest table up to the epoch, recomputed with all that it continues. Of others:
    what a first post would credit. A root that differs ends with code 8.
    """
    from ..attribution.periods import Periods
    from ..journal import Role
    from ..settlement.auditing import audit_all

    with open_books(journal, config, sets, only=Role.NODE) as books:
        found = audit_all(books.reader, books.node, Periods(books.reader, books.epochs), epoch)
    tables = {one.dataset: one.table for one in found}
    wanted = dict(_expected(expect or ()))
    wrong = {dataset for dataset, root in wanted.items() if dataset not in tables or tables[dataset].root != root}
    wrong |= {one.dataset for one in found if one.posted is not None and one.posted.root != one.table.root}
    posted = {one.dataset: None if one.posted is None else format_bytes(one.posted.root) for one in found}
    rows = [
        {
            "dataset": format_artifact_id(dataset),
            "root": format_bytes(table.root),
            "posted": posted[dataset],
            "totalWei": str(sum(wei for _, wei in table.credits)),
            "credits": [{"account": format_address(account), "wei": str(wei)} for account, wei in table.credits],
        }
        for dataset, table in tables.items()
    ]
    if out is not None:
        _write_tables(out, rows)
    result = {"epoch": epoch, "datasets": rows, "wrong": [format_artifact_id(dataset) for dataset in sorted(wrong)]}
    if as_json:
        print_json(result)
    else:
        for row in rows:
            print_text(f"{row['dataset']}: root {row['root']}, {row['totalWei']} wei")
            print_table(("contributor", "wei"), [(one["account"], one["wei"]) for one in row["credits"]])  # type: ignore[index, union-attr]
        print_text(f"{len(rows)} dataset(s) through epoch {epoch}")
        for dataset in sorted(wrong):
            print_text(f"{format_artifact_id(dataset)}: the receipts come to another root than was posted or expected")
    if wrong:
        raise typer.Exit(Exit.REFUSED)


def replayed(about: Told, found: sources.Sources) -> tuple[Replayed, ...]:
    """A receipt traced again with what the files give. Raises as `attribution.replay.replay`."""
    from ..attribution.encoder import TokenizerEncoder
    from ..attribution.replay import MAX_TEXT_BYTES, Kept
    from ..attribution.replay import replay as trace_again
    from ..attribution.tracer import Reading

    reading = Reading.of(TokenizerEncoder.open(found.tokenizer))
    kept = Kept.decode(read_limited(found.text, MAX_TEXT_BYTES), reading.encoder)
    return trace_again(about.receipt, about.evidence, kept, open_indexes(found.indexes), reading)


def open_indexes(folders: Iterable[Path]) -> dict[bytes, CorpusIndex]:
    """Indexes by digest, each checked."""
    from ..attribution.corpusindex import open_index

    return {index.digest: index for index in map(open_index, folders)}


def read_limited(file: Path, most: int) -> bytes:
    """A file. Raises NOT_FOUND, FRAME_TOO_LARGE."""
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{file.name} cannot be read") from None
    if len(data) > most:
        raise OpenLoraError(ErrorCode.FRAME_TOO_LARGE, f"{file.name} has more than {most:,} bytes")
    return data


def _lines(file: Path, tell: Callable[[int, int], None] = lambda _, __: None) -> Iterator[bytes]:
    from ..attribution.dataset import MAX_LINE

    try:
        size, done = file.stat().st_size, 0
        with file.open("rb") as opened:
            while line := opened.readline(MAX_LINE + 2):
                done += len(line)
                tell(done, size)
                yield line
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{file.name} cannot be read") from None


def _expected(given: Iterable[str]) -> Iterator[tuple[bytes, bytes]]:
    from ..protocol.ids import parse_bytes32

    for entry in given:
        dataset, _, root = entry.rpartition("=")
        yield bytes(parse_artifact_id(dataset)), parse_bytes32(root)


def _write_tables(folder: Path, rows: list[dict[str, Any]]) -> None:
    import json

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            name = f"credits-{row['dataset'].removeprefix('sha256:')[:16]}.json"
            (folder / name).write_text(json.dumps(row["credits"], indent=1) + "\n")
    except OSError:
        raise OpenLoraError(ErrorCode.STORAGE_FAILED, f"{folder.name} cannot be written here") from None


def _plain(value: Any) -> Any:
    """Credits for people and JSON."""
    return {format_address(owner): part for owner, part in value} if isinstance(value, tuple) else value
