"""The chain view against real contracts: it sees what the chain says, through outages, rotations and restarts."""

from __future__ import annotations

import pytest

from openlora_node.chainview import (
    FOREVER,
    AccessChanged,
    ChainView,
    EscrowState,
    Kind,
    NodeKeyChanged,
    Scope,
    Terms,
    TermsChanged,
    ThawStarted,
)
from openlora_node.chainview.memory import MemoryLogs
from support.chain_world import ADAPTER, ETHER, OWNER, PAYER, ChainWorld, artifact_id, fresh_wallet

pytestmark = pytest.mark.slow


async def caught_up(view: ChainView) -> ChainView:
    """Step until the head is reached."""
    while await view.step():
        pass
    return view


def new_view(world: ChainWorld, **options: object) -> ChainView:
    return ChainView(world.rpc, world.deployment, MemoryLogs(), poll_s=0.05, **options)  # type: ignore[arg-type]


async def test_nodes_are_seen_with_their_keys_as_they_change(world: ChainWorld) -> None:
    view = await caught_up(new_view(world))
    heard: list[object] = []
    view.on_event(heard.append)
    old, new = fresh_wallet("nodes old"), fresh_wallet("nodes new")
    assert view.node_of(old.address) is None
    node = await world.register_node(old, endpoint="/ip4/203.0.113.7/tcp/4001")
    await caught_up(view)
    assert view.node_of(old.address) == node
    assert view.key_of(node) == old.address
    entry = view.node(node)
    assert entry is not None
    assert entry.active
    assert entry.owner == entry.recipient == OWNER.address
    (endpoint,) = [text for text in view.endpoints() if text.startswith("/ip4/203.0.113.7")]
    assert endpoint.startswith("/ip4/203.0.113.7/tcp/4001/p2p/16Uiu2HA")
    await world.rotate_key(node, new)
    await caught_up(view)
    assert view.node_of(old.address) is None
    assert (view.node_of(new.address), view.key_of(node)) == (node, new.address)
    await world.send(OWNER, world.nodes.deregister(node))
    await caught_up(view)
    assert view.node_of(new.address) is None
    assert view.key_of(node) is None
    assert not any(text.startswith("/ip4/203.0.113.7") for text in view.endpoints())
    left = view.node(node)
    assert left is not None
    assert not left.active
    assert [event for event in heard if isinstance(event, NodeKeyChanged)] == [
        NodeKeyChanged(node, old.address),
        NodeKeyChanged(node, new.address),
        NodeKeyChanged(node, None),
    ]


async def test_terms_and_how_long_they_redeem(world: ChainWorld) -> None:
    view = await caught_up(new_view(world))
    artifact = artifact_id("terms")
    assert await view.terms(artifact) == Terms(artifact)
    assert await view.accepted_until(artifact, 0) == FOREVER
    assert await view.terms_at(artifact, 1) is None
    assert await view.accepted_until(artifact, 1) == 0
    heard: list[object] = []
    view.on_event(heard.append)
    await world.register_artifact(OWNER, artifact, ADAPTER, 77)
    await caught_up(view)
    terms = await view.terms(artifact)
    assert (terms.kind, terms.version, terms.rate, terms.owner) == (Kind.ADAPTER, 1, 77, OWNER.address)
    assert await view.terms_at(artifact, 1) == terms
    assert await view.accepted_until(artifact, 1) == FOREVER
    since = (await world.rpc.head()).timestamp
    assert await view.accepted_until(artifact, 0) == since + await world.artifacts.terms_grace()
    await world.send(OWNER, world.artifacts.set_terms(artifact, (88, 0, [])))
    await caught_up(view)
    assert (await view.terms(artifact)).rate == 88
    assert (await view.terms_at(artifact, 1)) == terms
    assert await view.accepted_until(artifact, 1) < FOREVER
    assert [event for event in heard if isinstance(event, TermsChanged)] == [
        TermsChanged(artifact, 1),
        TermsChanged(artifact, 2),
    ]


async def test_access_follows_lists_and_owners(world: ChainWorld) -> None:
    view = await caught_up(new_view(world))
    artifact = artifact_id("access")
    await world.register_artifact(OWNER, artifact, ADAPTER)
    await caught_up(view)
    assert await view.has_access(artifact, Scope.USE, PAYER.address)
    await world.send(OWNER, world.artifacts.set_policy(artifact, Scope.USE, 1, 0, 0))
    heard: list[object] = []
    view.on_event(heard.append)
    await caught_up(view)
    assert not await view.has_access(artifact, Scope.USE, PAYER.address)
    assert await view.has_access(artifact, Scope.USE, OWNER.address)
    subject = PAYER.address.rjust(32, b"\0")
    await world.send(OWNER, world.artifacts.set_listed(artifact, Scope.USE, [subject], listed=True))
    await caught_up(view)
    assert await view.has_access(artifact, Scope.USE, PAYER.address)
    assert heard == [AccessChanged(artifact, Scope.USE), AccessChanged(artifact, Scope.USE, subject)]


async def test_escrow_is_as_of_the_newest_block_and_thaws_are_heard(world: ChainWorld) -> None:
    view = await caught_up(new_view(world))
    node = await world.register_node(fresh_wallet("escrow"))
    await caught_up(view)
    assert await view.escrow(PAYER.address, node) == EscrowState(0)
    await world.send(PAYER, world.settlement.deposit(node, 5 * ETHER))
    assert (await view.escrow(PAYER.address, node, fresh=True)).balance == 5 * ETHER
    await caught_up(view)
    assert await view.escrow(PAYER.address, node) == EscrowState(5 * ETHER)
    heard: list[object] = []
    view.on_event(heard.append)
    await world.send(PAYER, world.settlement.thaw(node, 2 * ETHER))
    await caught_up(view)
    state = await view.escrow(PAYER.address, node)
    assert (state.balance, state.thawing) == (5 * ETHER, 2 * ETHER)
    assert heard == [ThawStarted(PAYER.address, node, 2 * ETHER, state.thaw_end)]


async def test_signers(world: ChainWorld) -> None:
    from openlora_node.protocol.structs import SignerProof

    view = await caught_up(new_view(world))
    signer = fresh_wallet("signer")
    assert await view.may_sign(PAYER.address, PAYER.address)
    assert not await view.may_sign(PAYER.address, signer.address)
    deadline = (await world.rpc.head()).timestamp + 3_600
    proof = SignerProof(payer=PAYER.address, deadline=deadline).sign(world.domain, signer)
    await world.send(PAYER, world.settlement.authorize_signer(signer.address, deadline, proof.signature))
    await caught_up(view)
    assert await view.may_sign(PAYER.address, signer.address)
