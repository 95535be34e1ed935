"""The demo's end: receipts proven, vouchers redeemed, epochs anchored, everybody's claims, balances that add up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from chain import ChainDesk
from crediting import claim, credit
from offers import ADAPTERS, Offers
from people import People
from stage import CommandFailed, openlora, say, until
from talking import Answer
from village import ESCROW_WEI, Village

from openlora_node.protocol.ids import format_address, parse_bytes32

REDEEM_S, ANCHOR_S = 120.0, 150.0
TRACED = "with json"
"""The answer that is explained: most of it stands in its dataset."""
FEW_WEI = 100
"""What rounding may leave undivided of the demo's royalties."""


async def settle(desk: ChainDesk, village: Village, people: People, offers: Offers, answers: list[Answer]) -> None:
    """Print what each answer cost and who earned it; settle everything; show that nothing is missing."""
    roles = {format_address(address): role for role, address in people.earners().items()}
    names = {artifact: name for name, artifact in offers.adapters.items()} | {offers.base: "base"}
    say("")
    for answer in answers:
        about = answer.about
        say(
            "receipt",
            f"{about['receipt'][:18]}…  {answer.title}: {wei(about['fee'])}, {wei(about['compute'])} of it compute",
        )
        for part in about["earns"]:
            say("", f"  {names[part['artifact']]:<8} {wei(part['wei']):>24} royalty, {roles[part['owner']]}")
    spent = await _redeemed(desk, village, answers)
    before = await desk.balances(people.earners())
    for step in _claims(village, people):
        await openlora("rewards", "claim", *step, *people.sends("deployer"), *_chain(village))
    credited = await credit(desk, village, offers, roles)
    traced = next(answer for answer in answers if answer.title == TRACED)
    await _prove(village, traced, desk)
    await _explain(village, traced, roles)
    await claim(village, offers, people, credited)
    after = await desk.balances(people.earners())
    earned = {role: after[role] - before[role] for role in after}
    say("")
    for role, amount in earned.items():
        if amount:
            say("earned", f"{role:<24}{wei(before[role]):>34} before, {wei(after[role]):>34} after: {wei(amount):>26}")
    left = spent - sum(earned.values())
    say("", f"{'together':<24}{wei(sum(earned.values())):>26}")
    say("", f"{'redeemed of the escrow':<24}{wei(spent):>26}, {left} wei of dust stay undivided")
    if not 0 <= left <= FEW_WEI:
        raise CommandFailed(f"{left} wei are unaccounted for")


def wei(amount: int | str) -> str:
    """For people."""
    return f"{int(amount):,} wei"


async def _redeemed(desk: ChainDesk, village: Village, answers: Iterable[Answer]) -> int:
    """Wait until the nodes took what they are owed; what left the payer's escrow. Raises CommandFailed for more."""
    spent = 0
    owed: dict[str, int] = defaultdict(int)
    for answer in answers:
        owed[answer.about["node"]] += int(answer.about["fee"])
    payer = People.wallet("payer").address
    for node, amount in owed.items():

        async def is_paid(node: str = node, amount: int = amount) -> bool:
            escrow = await desk.settlement.account_of(payer, parse_bytes32(node))
            return ESCROW_WEI - escrow.balance >= amount

        await until(is_paid, "the nodes to redeem", REDEEM_S, pause=0.5)
        left = ESCROW_WEI - (await desk.settlement.account_of(payer, parse_bytes32(node))).balance
        if left != amount:
            raise CommandFailed(f"{left} wei left the escrow with a node that was owed {amount}")
        spent += left
        name = next(place.name for place in village.nodes if place.node == node)
        say("redeemed", f"{name}: {wei(left)} of the escrow, as vouchered, by a transaction of its own accord")
    return spent


async def _prove(village: Village, answer: Answer, desk: ChainDesk) -> None:
    """As the payer, prove a receipt out of its own journal: by what the chain holds, then offline."""
    place = next(place for place in village.nodes if place.node == answer.about["node"])
    bundle = village.home / "receipt.json"

    async def exported() -> Any:
        try:
            return await openlora(
                *("receipts", "export", answer.about["receipt"], "--out", bundle),
                *("--config", village.gateway_config),
            )
        except CommandFailed:
            return None  # its epoch is not over

    told = await until(exported, "the receipt's epoch to end", ANCHOR_S, pause=2)

    async def anchored() -> bool:
        return any(await desk.anchor.root_of(parse_bytes32(place.node), told["epoch"]))

    await until(anchored, "the node to anchor its epoch", ANCHOR_S, pause=1)
    proven = await openlora("receipts", "verify", bundle, "--epoch", str(told["epoch"]), *_chain(village))
    await openlora(
        *("receipts", "verify", bundle, "--root", proven["root"], "--key", told["key"]),
        *("--chain-id", str(told["chainId"]), "--contract", told["contract"]),
    )
    say(
        "anchored", f"{place.name}, epoch {told['epoch']}: the payer proves a receipt by the root on chain, and offline"
    )


async def _explain(village: Village, answer: Answer, roles: dict[str, str]) -> None:
    """The payer, who alone has the text, sees whose words an answer repeats, and finds what the receipt says."""
    made = sorted((village.home / "indexes").iterdir())
    about = (*(part for index in made for part in ("--index", index)), "--config", village.gateway_config)
    for dataset in (await openlora("receipts", "explain", answer.about["receipt"], *about))["datasets"]:
        if not dataset["asTheReceiptSays"]:
            raise CommandFailed("the receipt says something else than a trace of the payer's text")
        for source in dataset["sources"]:
            say("explained", f"'{source['text'].strip()}' is in a sample of {roles[source['contributor']]}'s")


def _claims(village: Village, people: People) -> Iterable[tuple[str, ...]]:
    """A claim for everybody who may have earned something. Anyone may send it; it pays whom it is for."""
    nodes = tuple(part for place in village.nodes for part in ("--node", place.node))
    yield ("operator", *nodes)
    yield ("protocol", *nodes)
    for owner in ("base-owner", *sorted(set(ADAPTERS.values()))):
        yield ("owner", "--address", format_address(people.wallet(owner).address))


def _chain(village: Village) -> tuple[str, ...]:
    return ("--rpc", village.url, "--deployment", str(village.deployment_file))
