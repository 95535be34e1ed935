"""`openlora operator`: the node in the registry: who owns it, which key speaks for it, where its earnings go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes
from .chaindesk import ChainDesk, Reading, address, amount, node_id, open_desk, print_facts, with_options
from .chainwrite import Step, Writing, carry_out
from .options import NOUN

if TYPE_CHECKING:
    from openlora_chain.wallet import Wallet

app = typer.Typer(help="Register the node and look after its entry on chain.", no_args_is_help=True, **NOUN)

PROOF_S = 86_400
"""How long the node key's proof counts: time for an owner elsewhere to sign."""
MAX_ENDPOINT = 256

NodeOption = Annotated[
    str | None, typer.Option("--node", metavar="ID", help="Node id. Default: the one of this machine's node key.")
]
NodeKey = Annotated[
    Path | None,
    typer.Option("--node-key", metavar="FILE", help="Keystore of the node key. Default: keys.keystore_file."),
]
NodePassword = Annotated[
    Path | None, typer.Option("--node-password-file", metavar="FILE", help="File of mode 0600. Default: as `run` does.")
]
Endpoint = Annotated[
    str, typer.Option("--endpoint", metavar="TEXT", help="Where the node is found: a multiaddr or URL, or empty.")
]


@app.command()
@with_options(Writing)
async def register(
    options: Writing,
    recipient: Annotated[
        str | None, typer.Option("--recipient", metavar="ADDRESS", help="Receives the earnings. Default: the sender.")
    ] = None,
    stake: Annotated[
        str | None, typer.Option("--stake", metavar="AMOUNT", help="Such as '100 OPEN'. Default: the least.")
    ] = None,
    endpoint: Endpoint = "",
    node_key: NodeKey = None,
    node_password_file: NodePassword = None,
) -> None:
    """Register this machine's node key as a node of the sender, who owns it from then on."""
    _check_endpoint(endpoint)
    staked = None if stake is None else amount(stake)
    to = None if recipient is None else address(recipient)
    async with open_desk(options) as desk:
        owner = options.account
        least = await desk.nodes.min_stake()
        if staked is not None and staked < least:
            raise typer.BadParameter(f"a node stakes {least} wei at least")
        wallet = await _node_wallet(desk, node_key, node_password_file)
        node = await desk.nodes.next_node_id(owner)
        x, y, deadline, proof = await _proof(desk, wallet, node, owner)
        call = desk.nodes.register(x, y, to or owner, endpoint, deadline, proof, least if staked is None else staked)
        facts = {
            "node": format_bytes(node),
            "owner": format_address(owner),
            "nodeKey": format_address(wallet.address),
            "recipient": format_address(to or owner),
            "stake": f"{call.value} wei",
        }
        await carry_out(options, desk, [Step("register the node", call)], facts)


@app.command()
@with_options(Reading)
async def status(options: Reading, node: NodeOption = None) -> None:
    """Print what the registry says of a node."""
    async with open_desk(options) as desk:
        found = await node_of(desk, node)
        entry = await desk.nodes.find_node(found)
        if entry is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "no node has this id on this chain")
        facts = {
            "node": format_bytes(found),
            "state": await _state(desk, found, deregistered=entry.deregistered),
            "owner": format_address(entry.owner),
            "key": format_address(entry.key),
            "recipient": format_address(entry.recipient),
            "endpoint": await desk.nodes.endpoint_of(found),
            "staked": str(entry.staked),
            "thawing": str(entry.thawing),
            "thawEnd": str(entry.thaw_end),
            "unclaimed": str(await desk.settlement.operator_balance(found)),
        }
    print_facts(facts, ("staked", "thawing", "unclaimed"), as_json=options.as_json)


@app.command()
@with_options(Writing)
async def update(options: Writing, endpoint: Endpoint, node: NodeOption = None) -> None:
    """Say where the node is found."""
    _check_endpoint(endpoint)
    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        call = desk.nodes.set_endpoint(found, endpoint)
        facts = {"node": format_bytes(found), "endpoint": endpoint}
        await carry_out(options, desk, [Step("change the endpoint", call)], facts)


@app.command("rotate-key")
@with_options(Writing)
async def rotate_key(
    options: Writing,
    new_key: Annotated[Path, typer.Option("--new-key", metavar="FILE", help="Keystore of the new node key.")],
    new_password_file: Annotated[
        Path | None, typer.Option("--new-password-file", metavar="FILE", help="File of mode 0600. Default: ask.")
    ] = None,
    node: NodeOption = None,
) -> None:
    """Have another key speak for the node; restart the node with it once this is mined."""
    from openlora_chain import keystore, password

    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        secret = (
            password.from_file(new_password_file) if new_password_file else password.from_prompt("New key's password")
        )
        wallet = await keystore.load(new_key, secret)
        x, y, deadline, proof = await _proof(desk, wallet, found, options.account)
        call = desk.nodes.rotate_key(found, x, y, deadline, proof)
        facts = {"node": format_bytes(found), "newKey": format_address(wallet.address)}
        await carry_out(options, desk, [Step("rotate the key", call)], facts)


@app.command("set-recipient")
@with_options(Writing)
async def set_recipient(
    options: Writing,
    recipient: Annotated[str, typer.Argument(metavar="ADDRESS", help="Receives the earnings from now on.")],
    node: NodeOption = None,
) -> None:
    """Have the node's earnings paid elsewhere."""
    to = address(recipient)
    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        call = desk.nodes.set_recipient(found, to)
        facts = {"node": format_bytes(found), "recipient": format_address(to)}
        await carry_out(options, desk, [Step("change the recipient", call)], facts)


@app.command()
@with_options(Writing)
async def deregister(options: Writing, node: NodeOption = None) -> None:
    """Take the node out of service for good; its stake thaws, its vouchers stay redeemable."""
    async with open_desk(options) as desk:
        found = await owned(options, desk, node)
        facts = {"node": format_bytes(found), "thawsFor": f"{await desk.nodes.thaw_period()} s"}
        await carry_out(options, desk, [Step("deregister the node", desk.nodes.deregister(found))], facts)


async def node_of(desk: ChainDesk, node: str | None) -> bytes:
    """The node named, or that of this machine's node key. Raises OpenLoraError NOT_FOUND."""
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    if node is not None:
        return node_id(node)
    try:
        key = keystore.address_of(desk.config.node_keystore)
    except ChainError:
        raise typer.BadParameter("name the node: --node ID (this machine has no node key)") from None
    found = await desk.nodes.key_of(key)
    if not any(found.node):
        raise OpenLoraError(
            ErrorCode.NOT_FOUND, f"the node key {format_address(key)} is not registered: `openlora operator register`"
        )
    return found.node


async def owned(options: Writing, desk: ChainDesk, node: str | None) -> bytes:
    """The node, if the sender owns it. Raises OpenLoraError ACCESS_DENIED, NOT_FOUND."""
    found = await node_of(desk, node)
    entry = await desk.nodes.find_node(found)
    if entry is None:
        raise OpenLoraError(ErrorCode.NOT_FOUND, "no node has this id on this chain")
    if entry.owner != options.account:
        raise OpenLoraError(
            ErrorCode.ACCESS_DENIED, f"only the node's owner may do this: send from {format_address(entry.owner)}"
        )
    return found


async def _state(desk: ChainDesk, node: bytes, *, deregistered: bool) -> str:
    if deregistered:
        return "deregistered"
    return "active" if await desk.nodes.is_active(node) else "stake below the least"


async def _node_wallet(desk: ChainDesk, file: Path | None, password_file: Path | None) -> Wallet:
    from openlora_chain import keystore, password

    from ..daemon.keys import node_password

    secret = password.from_file(password_file) if password_file else node_password(desk.config)
    return await keystore.load(file or desk.config.node_keystore, secret)


async def _proof(desk: ChainDesk, key: Wallet, node: bytes, owner: bytes) -> tuple[bytes, bytes, int, bytes]:
    """The key's public point, and its signature that it agrees to serve the node of this owner."""
    from coincurve import PrivateKey

    from ..protocol.structs import NodeKeyProof

    deadline = (await desk.rpc.head()).timestamp + PROOF_S
    signed = NodeKeyProof(node=node, owner=owner, deadline=deadline).sign(desk.domain, key)
    point = PrivateKey(key.reveal()).public_key.format(compressed=False)[1:]
    return point[:32], point[32:], deadline, signed.signature


def _check_endpoint(endpoint: str) -> None:
    if len(endpoint.encode()) > MAX_ENDPOINT or not endpoint.isprintable():
        raise typer.BadParameter(f"an endpoint is one line of at most {MAX_ENDPOINT} bytes")
