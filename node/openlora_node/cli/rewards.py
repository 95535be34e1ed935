"""`openlora rewards`: what operators, artifact owners and contributors earned, for any address and without a node."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, parse_artifact_id
from .chaindesk import ChainDesk, Reading, address, node_id, open_desk, print_facts, with_options
from .chainwrite import Step, Writing, carry_out
from .credits import table_in_force
from .operator import node_of
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from ..settlement.rewards import Rewards
    from ..settlement.sources import Source

app = typer.Typer(help="See and claim what operators, owners and contributors earned.", no_args_is_help=True, **NOUN)

MAX_TABLE_BYTES = 16 << 20
COLUMNS = ("role", "what", "recipient", "claimable_wei", "pending_wei")

Role = Literal["operator", "owner", "contributor", "protocol"]
RoleArgument = Annotated[Role, typer.Argument(metavar="ROLE", help="operator, owner, contributor or protocol.")]
NodeIds = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="ID",
        help="Node, repeatable. Default: this machine's. A contributor names those whose credits it claims.",
    ),
]
Account = Annotated[
    str | None, typer.Option("--address", metavar="ADDRESS", help="Whose rewards, for owner and contributor.")
]
Dataset = Annotated[
    str | None, typer.Option("--dataset", metavar="ID", help="sha256:… of the dataset, for contributor.")
]
Shares = Annotated[
    Path | None, typer.Option("--shares", metavar="FILE", help="The dataset's shares.json, for contributor.")
]
CreditsFile = Annotated[
    Path | None,
    typer.Option("--credits", metavar="FILE", help="The table that a node posted. Default: from this machine's store."),
]
FromBlock = Annotated[
    int, typer.Option("--from-block", min=0, help="Look for unshared royalties from this block on. Default: all.")
]
NoScan = Annotated[bool, typer.Option("--no-scan", help="Look at no history: only what is shared out already.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]


@dataclass(frozen=True)
class _Wanted:
    """Whose rewards, as the command line says it."""

    role: Role
    nodes: tuple[bytes, ...]
    account: bytes | None
    dataset: bytes | None
    shares: Path | None
    credits: Path | None
    from_block: int
    scan: bool


@app.command()
@with_options(Reading)
async def show(
    options: Reading,
    role: RoleArgument,
    node: NodeIds = None,
    account: Account = None,
    dataset: Dataset = None,
    shares: Shares = None,
    credits_file: CreditsFile = None,
    from_block: FromBlock = 0,
    no_scan: NoScan = False,
    as_csv: Csv = False,
) -> None:
    """Print what can be claimed, and what follows once royalties are shared out."""
    wanted = _wanted(role, node, account, dataset, shares, credits_file, from_block, not no_scan)
    async with open_desk(options) as desk:
        found = await _look(desk, wanted)
    rows = [
        (one.role, one.what, format_address(one.recipient), str(one.claimable), str(one.pending))
        for one in found.rewards
    ]
    if options.as_json:
        names = ("role", "what", "recipient", "claimable", "pending")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif as_csv:
        _print_csv(COLUMNS, rows)
    else:
        print_table(("role", "what", "recipient", "claimable (wei)", "not shared out yet"), rows)


@app.command()
@with_options(Writing)
async def claim(
    options: Writing,
    role: RoleArgument,
    node: NodeIds = None,
    account: Account = None,
    dataset: Dataset = None,
    shares: Shares = None,
    credits_file: CreditsFile = None,
    from_block: FromBlock = 0,
    no_scan: NoScan = False,
) -> None:
    """Claim it. Anyone may send this; it always pays the recipient shown."""
    wanted = _wanted(role, node, account, dataset, shares, credits_file, from_block, not no_scan)
    async with open_desk(options) as desk:
        found = await _look(desk, wanted)
        if not found.steps:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "there is nothing to claim yet")
        facts = {
            one.what: f"{one.claimable + one.pending} wei to {format_address(one.recipient)}"
            for one in found.rewards
            if one.claimable or one.pending
        }
        steps = [Step(step.label, step.call, step.follows) for step in found.steps]
        await carry_out(options, desk, steps, facts)


@app.command()
def earnings(
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="The node's journal. Default: of this machine's node."),
    ] = None,
    as_csv: Csv = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Print what this node's transactions brought and what they cost in gas."""
    from ..datadir import JOURNAL_NAME
    from ..settlement import earnings_rows, read_totals
    from ..settlement.accounting import COLUMNS as EARNING_COLUMNS

    path = journal or load_config(config, sets).config.state_dir / JOURNAL_NAME
    if as_csv:
        _print_csv(EARNING_COLUMNS, earnings_rows(path))
        return
    totals = read_totals(path)
    facts = {
        "redeemed": str(totals.redeemed),
        "gas": str(totals.gas_wei),
        "net": str(totals.net),
        "claimed": str(totals.claimed),
        "royalties": str(totals.royalties),
        "protocol": str(totals.protocol),
        "transactions": str(totals.transactions),
    }
    print_facts(facts, [name for name in facts if name != "transactions"], as_json=as_json)


async def _look(desk: ChainDesk, wanted: _Wanted) -> Rewards:
    from ..settlement.rewards import RewardDesk, Rewards

    rewards = RewardDesk(desk.nodes, desk.artifacts, desk.settlement, desk.credits)
    match wanted.role:
        case "operator":
            return await rewards.operator(wanted.nodes or (await node_of(desk, None),))
        case "protocol":
            return await rewards.protocol(wanted.nodes or (await node_of(desk, None),))
        case "owner":
            assert wanted.account is not None
            return await rewards.owner(wanted.account, await _sources(desk, wanted))
    assert wanted.account is not None
    assert wanted.dataset is not None
    assert wanted.shares is not None
    from ..artifacts.shares import ShareTable
    from ..settlement.credits import CreditTable

    table = ShareTable.decode(_read(wanted.shares, "the share table"))
    found = await rewards.contributor(wanted.account, wanted.dataset, table, await _sources(desk, wanted))
    credited = []
    for node in wanted.nodes:
        if wanted.credits is not None:
            posted: CreditTable | None = CreditTable.decode(_read(wanted.credits, "the credits table"))
        else:
            posted = await table_in_force(desk, node, wanted.dataset)
        if posted is not None:
            credited.append(await rewards.credited(wanted.account, node, wanted.dataset, table, posted))
    return Rewards(
        (*found.rewards, *(reward for one in credited for reward in one.rewards)),
        (*found.steps, *(step for one in credited for step in one.steps)),
    )


async def _sources(desk: ChainDesk, wanted: _Wanted) -> list[Source]:
    """Where royalties may wait, by the chain's events."""
    from ..settlement.sources import find_sources

    if not wanted.scan:
        return []
    show = _Progress()
    try:
        return await find_sources(
            desk.rpc,
            desk.deployment,
            wanted.from_block,
            max_range=desk.config.chain.log_block_range,
            on_block=show,
        )
    finally:
        show.end()


class _Progress:
    """How far the search has come, on a terminal alone."""

    def __init__(self) -> None:
        self._shown = False

    def __call__(self, block: int, head: int) -> None:
        if sys.stderr.isatty():
            self._shown = True
            print(f"\rlooking for royalties: block {block:,} of {head:,}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _wanted(
    role: Role,
    nodes: list[str] | None,
    account: str | None,
    dataset: str | None,
    shares: Path | None,
    posted: Path | None,
    from_block: int,
    scan: bool,
) -> _Wanted:
    """Usage errors say what a role needs."""
    ids = tuple(node_id(text) for text in nodes or ())
    if posted is not None and not ids:
        raise typer.BadParameter("--credits needs --node ID")
    if role in ("owner", "contributor") and account is None:
        raise typer.BadParameter(f"{role} needs --address ADDRESS")
    if role == "contributor" and (dataset is None or shares is None):
        raise typer.BadParameter("contributor needs --dataset ID and --shares FILE")
    who = None if account is None else address(account)
    return _Wanted(role, ids, who, None if dataset is None else _artifact(dataset), shares, posted, from_block, scan)


def _artifact(text: str) -> bytes:
    try:
        return parse_artifact_id(text)
    except OpenLoraError as error:
        raise typer.BadParameter(error.message) from None


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TABLE_BYTES + 1)
    except OSError:
        raise OpenLoraError(ErrorCode.NOT_FOUND, f"{what} {path.name} cannot be read") from None
    if len(data) > MAX_TABLE_BYTES:
        raise OpenLoraError(ErrorCode.MALFORMED, f"{what} {path.name} is larger than any")
    return data


def _print_csv(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    from ..settlement import write_csv

    text = io.StringIO()
    write_csv(text, columns, rows)
    print_text(text.getvalue().replace("\r\n", "\n").rstrip("\n"))
