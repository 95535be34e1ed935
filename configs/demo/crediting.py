"""What goes by use: nodes post what responses repeated of whose data, an audit finds the same, contributors claim."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from chain import ChainDesk
from offers import ADAPTERS, Offers
from people import People
from stage import CommandFailed, openlora, say, until
from village import NodePlace, Village

from openlora_node.artifacts import ShareTable
from openlora_node.protocol.ids import format_address, parse_artifact_id, parse_bytes32

CREDIT_S = 150.0
LAST_EPOCH = 1 << 40
"""Beyond any: an audit of all there is."""


@dataclass(frozen=True)
class Credited:
    """What one node credits one account of one dataset, in wei."""

    place: NodePlace
    dataset: str
    account: str
    wei: int


async def credit(desk: ChainDesk, village: Village, offers: Offers, roles: dict[str, str]) -> list[Credited]:
    """Have both nodes decide their datasets' pools; what they credited, as an audit of their receipts finds it."""
    await asyncio.gather(*(_decided(desk, place, offers) for place in village.nodes))
    found = [one for place in village.nodes for one in await _audited(place)]
    names = {artifact: name for name, artifact in offers.datasets.items()}
    for one in found:
        told = f"{roles[one.account]}, for what responses repeat of {names[one.dataset]}.jsonl"
        say("credited", f"{one.place.name}: {one.wei:>26,} wei to {told}")
    return found


async def claim(village: Village, offers: Offers, people: People, credited: list[Credited]) -> None:
    """Every contributor claims what goes by shares, and by use where anything was credited."""
    for name in ADAPTERS:
        table = ShareTable.decode(offers.shares[name].read_bytes())
        for account, _ in table.shares:
            who = format_address(account)
            nodes = [one.place for one in credited if (one.dataset, one.account) == (offers.datasets[name], who)]
            about: tuple[str | Path, ...] = (
                *("contributor", "--address", who, "--dataset", offers.datasets[name]),
                *("--shares", offers.shares[name], "--no-scan"),
            )
            for place in nodes:
                await _claim(*about, "--node", place.node, "--config", place.config, people=people)
            if not nodes:
                await _claim(*about, "--config", village.nodes[0].config, people=people)


async def _decided(desk: ChainDesk, place: NodePlace, offers: Offers) -> None:
    """Wait until no wei of the node's pools waits: posted, past the timelock, in force."""
    node = parse_bytes32(place.node)
    datasets = [bytes(parse_artifact_id(offers.datasets[name])) for name in ADAPTERS]

    async def decided() -> bool:
        await openlora("credits", "decide", "--config", place.config)
        pools = [await desk.settlement.credit_pool(node, dataset) for dataset in datasets]
        return all(pool.accrued == pool.settled for pool in pools)

    await until(decided, f"{place.name} to decide its datasets' pools", CREDIT_S, pause=1)


async def _audited(place: NodePlace) -> list[Credited]:
    """What the node posted. Raises CommandFailed where its receipts come to something else."""
    audited = await openlora("attribution", "audit", "--epoch", str(LAST_EPOCH), "--config", place.config)
    return [
        Credited(place, found["dataset"], row["account"], int(row["wei"]))
        for found in audited["datasets"]
        if found["posted"] is not None
        for row in found["credits"]
        if int(row["wei"])
    ]


async def _claim(*what: str | Path, people: People) -> None:
    """A claim; there may be nothing to it: a share of a dataset that nobody asked for."""
    try:
        await openlora("rewards", "claim", *what, *people.sends("deployer"))
    except CommandFailed as error:
        if "nothing to claim" not in str(error):
            raise
