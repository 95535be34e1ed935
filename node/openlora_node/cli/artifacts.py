"""`openlora artifacts`: adapters, base models and datasets: publish, fetch, keep, sell."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_artifact_id, parse_artifact_id
from .artifacts_access import buy, deny, grant
from .artifacts_chain import price, register
from .chain_errors import run
from .exits import exit_for
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text
from .progress import bytes_bar, size_text

if TYPE_CHECKING:
    from ..artifacts import About, ArtifactStore

app = typer.Typer(help="Publish, fetch and keep adapters, base models and datasets.", no_args_is_help=True, **NOUN)

Id = Annotated[str, typer.Argument(metavar="ID", help="Artifact id: sha256:<64 hex>.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Artifact ids. Default: all in the store.")]
Source = Annotated[Path, typer.Argument(metavar="PATH", help="Folder to publish, or a dataset's .jsonl file.")]
KindOption = Annotated[
    str | None, typer.Option("--kind", help="base, adapter or dataset. Default: what the files look like.")
]


@app.command()
def publish(
    source: Source,
    kind: KindOption = None,
    base: Annotated[str | None, typer.Option("--base", metavar="ID", help="An adapter's base model.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="ID", help="A dataset that it was trained on; repeatable.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="How it was trained: JSON without floats. Default: recipe.json."),
    ] = None,
    shares: Annotated[
        Path | None,
        typer.Option(
            "--shares", metavar="FILE", help='A dataset\'s contributors: [{"account": "0x…", "bps": 2500}, …].'
        ),
    ] = None,
    previous: Annotated[
        str | None, typer.Option("--previous", metavar="ID", help="The dataset version that this one extends.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", metavar="TEXT", help="Such as Apache-2.0.")] = "",
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Copy what links in the folder lead to.")
    ] = False,
    no_pin: Annotated[bool, typer.Option("--no-pin", help="Let the store evict it like any fetched artifact.")] = False,
    seed: Annotated[
        bool, typer.Option("--seed", help="Then send it to anyone who asks, until interrupted. A running node does.")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Copy a folder into this machine's store under the id of its content, and keep it there.

    The node that runs here sends it to others from then on. Register it on chain to be paid.
    """
    from ..artifacts import content_size

    chosen = kind or _guess(source)
    about = _about(base, dataset, recipe, shares, previous, licence)

    async def work() -> None:
        async with _store(config, sets) as store:
            with bytes_bar(f"publishing {source.name}") as bar:
                artifact, packed = await store.publish(
                    source, _kind(chosen), about, pin=not no_pin, follow_links=follow_links, progress=bar
                )
            size, files = content_size(packed.manifest), [entry.path for entry in packed.manifest.files]
            result = {
                "artifact": format_artifact_id(artifact),
                "kind": chosen,
                "bytes": size,
                "files": files,
                "left_out": list(packed.left_out),
            }
            if as_json:
                print_json(result)
            else:
                print_text(format_artifact_id(artifact))
                print_text(f"{chosen}, {size_text(size)}: {', '.join(files)}")
                if packed.left_out:
                    print_text(f"left out: {', '.join(packed.left_out)}")
            if seed:
                from .artifacts_peers import seed as serve

                await serve(store, artifact, load_config(config, sets).config, as_json)

    run(work())


@app.command("list")
def list_artifacts(
    kind: KindOption = None, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False
) -> None:
    """List what the store holds, the most recently used first."""

    async def work() -> None:
        async with _store(config, sets) as store:
            pinned, usage = store.pinned(), store.usage()
            entries = sorted(store.entries(), key=lambda entry: -store.last_used(entry.artifact))
            rows: list[dict[str, Any]] = [
                {
                    "artifact": format_artifact_id(entry.artifact),
                    "kind": entry.kind.value,
                    "bytes": entry.size,
                    "pinned": entry.artifact in pinned,
                    "last_used": int(store.last_used(entry.artifact)),
                }
                for entry in entries
                if kind is None or entry.kind == _kind(kind)
            ]
        held = {"complete": usage.complete, "partial": usage.partial, "cache_size": usage.cache_size}
        if as_json:
            print_json({"artifacts": rows, "bytes_on_disk": held})
            return
        print_table(
            ["artifact", "kind", "size", "pinned", "last used"],
            [
                [
                    row["artifact"],
                    row["kind"],
                    size_text(row["bytes"]),
                    "yes" if row["pinned"] else "",
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(row["last_used"])),
                ]
                for row in rows
            ],
        )
        fetching = f" and {size_text(usage.partial)} under way" if usage.partial else ""
        print_text(f"{size_text(usage.complete)}{fetching} of {size_text(usage.cache_size)}")

    run(work())


@app.command()
def show(artifact: Id, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print an artifact's manifest, where its files lie, and whether it is pinned."""
    wanted = parse_artifact_id(artifact)

    async def work() -> None:
        async with _store(config, sets) as store:
            manifest = store.manifest(wanted)
            if manifest is None:
                raise _missing(artifact)
            folder, pinned = str(store.folder(wanted)), wanted in store.pinned()
            described = json.loads(manifest.encode())
        if as_json:
            print_json({"artifact": artifact, "folder": folder, "pinned": pinned, "manifest": described})
            return
        rows = [["folder", folder], ["pinned", "yes" if pinned else "no"]]
        rows += [[entry["path"], size_text(entry["size"])] for entry in described.pop("files")]
        rows += [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in described.items()]
        print_table(["", artifact], rows)

    run(work())


@app.command()
def pull(
    artifact: Id,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="MULTIADDR", help="A source, with its peer id: /ip4/…/p2p/…; repeatable."),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it: never evict it.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Give up after so long.")] = 3600.0,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Fetch an artifact from other nodes: those named, else those that the configured bootstrap peers lead to.

    Asks as a stranger, so only what everybody may hold is sent. Goes on where an interrupted fetch ended.
    """
    wanted = parse_artifact_id(artifact)

    async def work() -> None:
        from .artifacts_peers import fetch

        async with _store(config, sets) as store:
            folder = store.folder(wanted)
            if folder is None:
                with bytes_bar(f"fetching {artifact[:19]}…") as bar:
                    folder = await fetch(store, wanted, load_config(config, sets).config, peer or (), bar, timeout)
            if pin:
                store.pin(wanted)
            result = {"artifact": artifact, "folder": str(folder)}
            print_json(result) if as_json else print_text(str(folder))

    run(work())


@app.command()
def pin(artifact: Id, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Never evict an artifact; it may still be on its way here."""
    wanted = parse_artifact_id(artifact)

    async def work() -> None:
        async with _store(config, sets) as store:
            store.pin(wanted)
        if as_json:
            print_json({"artifact": artifact, "pinned": True})

    run(work())


@app.command()
def unpin(artifact: Id, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Let an artifact be evicted again."""
    wanted = parse_artifact_id(artifact)

    async def work() -> None:
        async with _store(config, sets) as store:
            store.unpin(wanted)
        if as_json:
            print_json({"artifact": artifact, "unpinned": True})

    run(work())


@app.command()
def rm(artifact: Id, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Delete an artifact from the store. Stop the node first; what is pinned must be unpinned."""
    wanted = parse_artifact_id(artifact)

    async def work() -> None:
        async with _store(config, sets) as store:
            store.remove(wanted)
        if as_json:
            print_json({"artifact": artifact, "removed": True})

    run(work())


@app.command()
def verify(artifacts: Ids = None, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> int:
    """Read artifacts again from the first byte to the last. What is damaged goes out of use until it is pulled again.

    Beside a running node nothing is taken out of use: damage is only reported.
    """
    wanted: list[bytes] = [parse_artifact_id(text) for text in artifacts or ()]

    async def work() -> dict[str, list[str]]:
        async with _store(config, sets) as store:
            found = {}
            for artifact in wanted or sorted(store.ids()):
                if store.entry(artifact) is None:
                    raise _missing(format_artifact_id(artifact))
                with bytes_bar(f"verifying {artifact.hex()[:12]}…") as bar:
                    found[format_artifact_id(artifact)] = list(await store.verify(artifact, bar))
            return found

    found = run(work())
    damaged = {artifact: paths for artifact, paths in found.items() if paths}
    if as_json:
        print_json({"ok": not damaged, "verified": len(found), "damaged": damaged})
    elif damaged:
        print_table(["artifact", "damaged"], [[artifact, ", ".join(paths)] for artifact, paths in damaged.items()])
    else:
        print_text(f"{len(found)} verified, none damaged")
    return exit_for(ErrorCode.STORAGE_FAILED) if damaged else 0


@app.command()
def gc(config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False) -> None:
    """Delete what nothing needs: remains of crashes, forgotten downloads, what exceeds artifacts.cache_size."""

    async def work() -> None:
        async with _store(config, sets) as store:
            done = await store.gc()
        counts = {
            "bytes_freed": done.freed,
            "evicted": done.artifacts,
            "downloads": done.partials,
            "broken": done.broken,
        }
        print_json(counts) if as_json else print_table(list(counts), [[str(value) for value in counts.values()]])

    run(work())


for command in (register, price, grant, deny, buy):
    app.command()(command)


@asynccontextmanager
async def _store(config: Path | None, sets: list[str] | None) -> AsyncIterator[ArtifactStore]:
    """The configured store: as its writer, or beside the node that is."""
    from ..artifacts import ArtifactStore

    loaded = load_config(config, sets).config
    size = loaded.artifacts.cache_size
    try:
        store = ArtifactStore.open(loaded.adapters_dir, size)
    except OpenLoraError as error:
        if error.code is not ErrorCode.DATADIR_LOCKED:
            raise
        store = ArtifactStore.open(loaded.adapters_dir, size, beside=True)
    with store:
        yield store


def _about(
    base: str | None,
    datasets: Iterable[str] | None,
    recipe: Path | None,
    shares: Path | None,
    previous: str | None,
    licence: str,
) -> About:
    from ..artifacts import About, ShareTable

    told = None if recipe is None else json.loads(_read(recipe))
    if told is not None and not isinstance(told, dict):
        raise OpenLoraError(ErrorCode.BAD_MANIFEST, "a recipe is a JSON object")
    return About(
        base=parse_artifact_id(base) if base else None,
        datasets=tuple(parse_artifact_id(text) for text in datasets or ()),
        recipe=told,
        shares=ShareTable.decode(_read(shares)) if shares else None,
        previous=parse_artifact_id(previous) if previous else None,
        licence=licence,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{path.name} cannot be read") from None


def _guess(source: Path) -> str:
    if source.suffix == ".jsonl":
        return "dataset"
    if (source / "adapter_config.json").exists():
        return "adapter"
    return "base" if (source / "config.json").exists() else "dataset"


def _kind(text: str) -> Any:
    from ..artifacts import Kind

    try:
        return Kind(text)
    except ValueError:
        raise typer.BadParameter("a kind is base, adapter or dataset") from None


def _missing(artifact: str) -> OpenLoraError:
    return OpenLoraError(ErrorCode.NOT_FOUND, f"{artifact} is not in this store: `openlora artifacts pull` fetches it")
