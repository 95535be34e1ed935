"""The part of `openlora artifacts` that writes to the chain: register and price."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import (
    ZERO32,
    format_address,
    format_artifact_id,
    format_bytes,
    parse_artifact_id,
    parse_bytes32,
)
from .chaindesk import ChainDesk, amount, open_desk, with_options
from .chainwrite import Step, Writing, carry_out

if TYPE_CHECKING:
    from openlora_chain.bindings import Artifact, Calldata, TermsTuple

    from ..protocol.manifest import AnyManifest

KINDS = {"base": 1, "adapter": 2, "dataset": 3}
MAX_METADATA = 512
REVEAL_PATIENCE_S = 300.0
"""Beyond the least age of a commitment: until some block is late enough."""

Id = Annotated[str, typer.Argument(metavar="ID", help="Artifact id: sha256:<64 hex>.")]
Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component", metavar="ID=BPS", help="Part of the royalties that goes to a dataset or the base; repeatable."
    ),
]
Credits = Annotated[
    int | None,
    typer.Option("--credits", metavar="BPS", help="A dataset's part of its income that is shared out by use."),
]


@with_options(Writing)
async def register(
    options: Writing,
    artifact: Id,
    rate: Annotated[
        str, typer.Option("--rate", metavar="AMOUNT", help="Royalty for 1,000,000 tokens, such as '0.05 OPEN'.")
    ] = "0 wei",
    component: Components = None,
    credits_bps: Credits = None,
    metadata: Annotated[str, typer.Option("--metadata", metavar="TEXT", help="Where the manifest is found.")] = "",
    copied: Annotated[
        bool, typer.Option("--copied", help="Register a dataset of which nothing is its contributors' own.")
    ] = False,
) -> None:
    """Register an artifact of the store as the sender's, with its terms.

    Of a dataset the plan tells what others registered first: credits for that go to them.

    Two transactions, so that nobody can run ahead with the id: a commitment, and after a while the registration. An
    interrupted registration goes on where it was when the command is run again.
    """
    wanted, terms = parse_artifact_id(artifact), _terms(rate, component, credits_bps)
    if len(metadata.encode()) > MAX_METADATA:
        raise typer.BadParameter(f"metadata has at most {MAX_METADATA} bytes")
    async with open_desk(options) as desk:
        manifest = _manifest(desk, wanted)
        owner = options.account
        if any((await desk.artifacts.artifact_of(wanted)).owner):
            raise OpenLoraError(
                ErrorCode.CHAIN_FAILED, "this artifact is registered: `openlora artifacts price` changes its terms"
            )
        kind, shares_root = _registration(manifest)
        salt_file = _salt_file(desk, wanted, owner)
        salt = _salt(salt_file)
        call = desk.artifacts.register(wanted, kind, shares_root, metadata, terms, salt)
        steps = await _registering(desk, owner, wanted, salt, call)
        report = await _originality(desk, wanted, kind, copied=copied)
        facts = {
            "artifact": artifact,
            "owner": format_address(owner),
            **report,
            "rate": f"{terms[0]} wei",
            "components": ", ".join(f"{format_artifact_id(part)}={bps}" for part, bps in terms[2]) or "none",
            "secondsBetween": str(await desk.artifacts.min_commit_age()),
        }
        if await carry_out(options, desk, steps, facts):
            salt_file.unlink(missing_ok=True)


async def _originality(desk: ChainDesk, artifact: bytes, kind: int, *, copied: bool) -> dict[str, str]:
    """What others had first, for the plan. Raises BAD_MANIFEST for a dataset of which nothing is its contributors'."""
    from .originals import earlier_datasets, judge

    if kind != KINDS["dataset"]:
        return {}
    earlier = await earlier_datasets(desk, artifact)
    report = await asyncio.to_thread(judge, desk.config.adapters_dir, artifact, earlier)
    if report.is_copy and not copied:
        whose = report.facts()["creditGoesTo"]
        raise OpenLoraError(
            ErrorCode.BAD_MANIFEST,
            f"all {report.texts} texts of this dataset were registered before, credits go to {whose}: add --copied if"
            " it is to be registered all the same",
        )
    return report.facts()


@with_options(Writing)
async def price(
    options: Writing,
    artifact: Id,
    rate: Annotated[str | None, typer.Argument(metavar="[AMOUNT]", help="New royalty for 1,000,000 tokens.")] = None,
    component: Components = None,
    credits_bps: Credits = None,
) -> None:
    """Give an artifact new terms; what is not named stays. The old terms redeem for a while longer."""
    wanted = parse_artifact_id(artifact)
    async with open_desk(options) as desk:
        entry = await owned(options, desk, wanted)
        now = await desk.artifacts.terms_of(wanted, entry.latest_version)
        terms: TermsTuple = (
            now.rate if rate is None else amount(rate),
            now.credits_bps if credits_bps is None else credits_bps,
            list(now.components) if component is None else _components(component),
        )
        if terms == (now.rate, now.credits_bps, list(now.components)):
            raise typer.BadParameter("these are the terms already: name a rate, --component or --credits")
        facts = {
            "artifact": artifact,
            "rateNow": f"{now.rate} wei",
            "rate": f"{terms[0]} wei",
            "version": str(entry.latest_version + 1),
            "oldTermsRedeemFor": f"{await desk.artifacts.terms_grace()} s",
        }
        await carry_out(options, desk, [Step("set new terms", desk.artifacts.set_terms(wanted, terms))], facts)


async def _registering(desk: ChainDesk, owner: bytes, artifact: bytes, salt: bytes, call: Calldata) -> list[Step]:
    """Commit and register, or register alone where an earlier run committed."""
    from openlora_chain.errors import Reverted
    from openlora_chain.rpc import Call

    commitment = await desk.artifacts.commitment_of(owner, artifact, salt)
    since, now = await desk.artifacts.committed_at(owner, commitment), (await desk.rpc.head()).timestamp
    least, most = await desk.artifacts.min_commit_age(), await desk.artifacts.max_commit_age()
    stands = bool(since) and now < since + most - REVEAL_PATIENCE_S

    async def ready() -> None:
        """Time passes on a chain as blocks do: ask until it takes the registration; the sending says why not."""
        await asyncio.sleep(max(0, since + least - now) if stands else least)
        deadline = time.monotonic() + REVEAL_PATIENCE_S
        while time.monotonic() < deadline:
            try:
                await desk.rpc.call(Call(owner, call.to, call.data, call.value))
            except Reverted:
                await asyncio.sleep(min(1.0, least / 4))
            else:
                return

    reveal = Step("register the artifact", call, follows=True, ready=ready)
    if stands:
        return [reveal]
    return [Step("commit to the registration", desk.artifacts.commit(commitment)), reveal]


async def owned(options: Writing, desk: ChainDesk, artifact: bytes) -> Artifact:
    """The registered artifact, if the sender owns it. Raises OpenLoraError NOT_FOUND, CHAIN_FAILED."""
    entry = await desk.artifacts.artifact_of(artifact)
    if not any(entry.owner):
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, "this artifact is not registered: `openlora artifacts register` does it"
        )
    if not options.calldata and entry.owner != options.account:
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED, f"the artifact belongs to {format_address(entry.owner)}, not to the sender"
        )
    return entry


def _manifest(desk: ChainDesk, artifact: bytes) -> AnyManifest:
    from ..artifacts import ArtifactStore

    config = desk.config
    with ArtifactStore.open(config.adapters_dir, config.artifacts.cache_size, beside=True) as store:
        manifest = store.manifest(artifact)
    if manifest is None:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "publish the artifact here first: `openlora artifacts publish`")
    return manifest


def _registration(manifest: AnyManifest) -> tuple[int, bytes]:
    """Kind and share table's root, as the registry wants them."""
    from ..artifacts.contents import kind_of
    from ..protocol.manifest import DatasetManifest

    root = bytes.fromhex(manifest.shares_root) if isinstance(manifest, DatasetManifest) else ZERO32
    return KINDS[kind_of(manifest).value], root


def _terms(rate: str, components: Sequence[str] | None, credits_bps: int | None) -> TermsTuple:
    return amount(rate), credits_bps or 0, _components(components or ())


def _components(texts: Sequence[str]) -> list[tuple[bytes, int]]:
    """`ID=BPS` → pairs in ascending order of their ids, as the registry wants them."""
    parts = []
    for text in texts:
        artifact, found, bps = text.rpartition("=")
        if not found or not bps.isascii() or not bps.isdecimal():
            raise typer.BadParameter("a component is ID=BPS, such as sha256:…=1500")
        parts.append((bytes(parse_artifact_id(artifact)), int(bps)))
    return sorted(parts)


def _salt_file(desk: ChainDesk, artifact: bytes, owner: bytes) -> Path:
    """Kept until the registration is mined: without its salt a commitment is lost."""
    return desk.config.state_dir / "registrations" / f"{artifact.hex()}-{owner.hex()}"


def _salt(path: Path) -> bytes:
    try:
        return parse_bytes32(path.read_text("ascii").strip())
    except FileNotFoundError:
        salt = os.urandom(32)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(format_bytes(salt) + "\n")
        return salt
