"""Who may use an artifact and who may hold it: grant, deny, and buy a licence where one is for sale."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import (
    format_address,
    format_artifact_id,
    format_bytes,
    parse_address,
    parse_artifact_id,
    parse_bytes32,
)
from .artifacts_chain import Id, owned
from .chaindesk import ChainDesk, amount, open_desk, with_options
from .chainwrite import Step, Writing, carry_out

if TYPE_CHECKING:
    from openlora_chain.bindings import Policy

USE, HOST = 0, 1
PUBLIC, ALLOW_LIST, LICENCE = 0, 1, 2

ScopeOption = Annotated[
    str, typer.Option("--scope", help="use: which payers may use it; host: which nodes may hold its files.")
]
Subjects = Annotated[
    list[str] | None, typer.Argument(metavar="[SUBJECT]...", help="Payer addresses for use, node ids for host.")
]


@with_options(Writing)
async def grant(
    options: Writing,
    artifact: Id,
    subjects: Subjects = None,
    scope: ScopeOption = "use",
    everyone: Annotated[bool, typer.Option("--everyone", help="Open the door to all.")] = False,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="AMOUNT", help="Sell licences at this price instead.")
    ] = None,
    lasts: Annotated[
        str, typer.Option("--lasts", metavar="DURATION", help="How long a licence lasts, such as 30d.")
    ] = "30d",
) -> None:
    """Let payers use an artifact, or nodes hold it: those named, all, or whoever buys a licence."""
    wanted, door = parse_artifact_id(artifact), _scope(scope)
    if everyone and licence is not None:
        raise typer.BadParameter("a door is open to everyone or sells licences")
    async with open_desk(options) as desk:
        await owned(options, desk, wanted)
        steps = _listing(desk, wanted, door, subjects, listed=True)
        if everyone:
            steps.append(Step("open the door to all", desk.artifacts.set_policy(wanted, door, PUBLIC, 0, 0)))
        if licence is not None:
            seconds = int(_duration(lasts).total_seconds())
            call = desk.artifacts.set_policy(wanted, door, LICENCE, amount(licence), seconds)
            steps.append(Step("sell licences", call))
        if not steps:
            raise typer.BadParameter("name subjects, --everyone or --licence")
        await carry_out(options, desk, steps, {"artifact": artifact, "scope": scope})


@with_options(Writing)
async def deny(
    options: Writing,
    artifact: Id,
    subjects: Subjects = None,
    scope: ScopeOption = "use",
    everyone: Annotated[
        bool, typer.Option("--everyone", help="Close the door to all but the listed and the owner.")
    ] = False,
) -> None:
    """Take payers or nodes off an artifact's list, or close a door to all who are not on it."""
    wanted, door = parse_artifact_id(artifact), _scope(scope)
    async with open_desk(options) as desk:
        await owned(options, desk, wanted)
        steps = _listing(desk, wanted, door, subjects, listed=False)
        if everyone:
            call = desk.artifacts.set_policy(wanted, door, ALLOW_LIST, 0, 0)
            steps.append(Step("close the door to all but the listed", call))
        if not steps:
            raise typer.BadParameter("name subjects or --everyone")
        await carry_out(options, desk, steps, {"artifact": artifact, "scope": scope})


@with_options(Writing)
async def buy(
    options: Writing,
    artifact: Id,
    scope: ScopeOption = "use",
    subject: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="SUBJECT",
            help="The payer, or with --scope host the node, that gets access. Default: the"
            " sender, or this machine's node.",
        ),
    ] = None,
    most: Annotated[
        str | None, typer.Option("--most", metavar="AMOUNT", help="Buy at no higher price than this.")
    ] = None,
) -> None:
    """Buy a licence of an artifact that sells them, or prolong one. The price goes to the artifact's owner.

    The plan shows price, duration and who gets access. Neither a higher price nor a shorter duration than the plan's
    is taken, should the owner change them meanwhile.
    """
    wanted, door = parse_artifact_id(artifact), _scope(scope)
    limit = None if most is None else amount(most)
    async with open_desk(options) as desk:
        who = await _licensee(options, desk, door, subject)
        owner, policy = await desk.artifacts.owner_of(wanted), await desk.artifacts.policy_of(wanted, door)
        await _check_for_sale(desk, wanted, door, who, owner, policy)
        if limit is not None and policy.price > limit:
            raise OpenLoraError(
                ErrorCode.CHAIN_FAILED, f"a licence costs {policy.price} wei, more than --most: raise it to buy"
            )
        now, until = (await desk.rpc.head()).timestamp, await desk.artifacts.licensed_until(wanted, door, who)
        call = desk.artifacts.buy(wanted, door, who, policy.price, policy.duration, policy.price)
        facts = {
            "artifact": artifact,
            "scope": scope,
            "for": format_address(who[12:]) if door == USE else format_bytes(who),
            "price": f"{policy.price} wei",
            "paidTo": format_address(owner),
            "lasts": f"{policy.duration} s",
            "until": str(max(now, until) + policy.duration),
        }
        label = "prolong the licence" if until >= now else "buy a licence"
        await carry_out(options, desk, [Step(label, call)], facts)


async def _licensee(options: Writing, desk: ChainDesk, door: int, subject: str | None) -> bytes:
    """Who is to get access, in the 32 bytes that the registry knows."""
    from .operator import node_of

    if subject is not None:
        return _subject(subject, door)
    return options.account.rjust(32, b"\0") if door == USE else await node_of(desk, None)


async def _check_for_sale(
    desk: ChainDesk, artifact: bytes, door: int, who: bytes, owner: bytes, policy: Policy
) -> None:
    """Raises ACCESS_DENIED where no licence is sold, CHAIN_FAILED where none is needed: no money for nothing."""
    name = format_artifact_id(artifact)
    if policy.mode == ALLOW_LIST:
        raise OpenLoraError(
            ErrorCode.ACCESS_DENIED,
            f"the owner of {name} sells no licences: ask {format_address(owner)} to grant access",
        )
    if policy.mode == PUBLIC:
        raise OpenLoraError(ErrorCode.CHAIN_FAILED, f"{name} is open to all: no licence is needed")
    is_owner = door == USE and who[12:] == owner
    if is_owner or await desk.artifacts.is_listed(artifact, door, who):
        reason = "owns it" if is_owner else "is on its owner's list"
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED, f"this {'payer' if door == USE else 'node'} {reason}: no licence is needed"
        )


def _listing(
    desk: ChainDesk, artifact: bytes, door: int, subjects: Sequence[str] | None, *, listed: bool
) -> list[Step]:
    if not subjects:
        return []
    parsed = [_subject(text, door) for text in subjects]
    call = desk.artifacts.set_listed(artifact, door, parsed, listed=listed)
    return [Step("put on the list" if listed else "take off the list", call)]


def _scope(text: str) -> int:
    if text not in ("use", "host"):
        raise typer.BadParameter("a scope is use or host")
    return USE if text == "use" else HOST


def _subject(text: str, door: int) -> bytes:
    try:
        return parse_address(text).rjust(32, b"\0") if door == USE else parse_bytes32(text)
    except OpenLoraError as error:
        raise typer.BadParameter(f"{error.message} ({'a payer' if door == USE else 'a node'} is meant)") from None


def _duration(text: str) -> timedelta:
    from ..config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
