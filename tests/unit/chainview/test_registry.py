"""The registry is what the chain says, whatever order, repeats and reorgs the events come in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from openlora_chain.deployment import Deployed, Deployment
from openlora_chain.events import (
    EndpointChanged,
    KeyRotated,
    NodeDeregistered,
    NodeRegistered,
    NodeSlashed,
    RecipientChanged,
    StakeAdded,
)
from openlora_chain.store import BlockRef
from openlora_node.chainview.registry import NodeEvent, Registry, base58, dialable
from openlora_node.chainview.snapshot import load_snapshot, save_snapshot
from openlora_node.chainview.values import NodeEntry
from openlora_node.protocol.crypto import Address

NODES = [bytes([number]) * 32 for number in (1, 2)]
OWNER = Address(b"\x0e" * 20)
PEER = bytes.fromhex("002508021221") + b"\x02" + b"\x11" * 32


def key(number: int) -> bytes:
    return bytes([0xA0 + number]) * 20


def registered(node: bytes, number: int, endpoint: str = "") -> NodeRegistered:
    return NodeRegistered(node, OWNER, key(number), PEER, OWNER, endpoint)


def truth(history: list[NodeEvent]) -> dict[bytes, NodeEntry]:
    """What the contract would say after these events, in order."""
    found: dict[bytes, NodeEntry] = {}
    for event in history:
        before = found.get(event.node)
        match event:
            case NodeRegistered():
                found[event.node] = NodeEntry(
                    event.node, OWNER, Address(event.key), OWNER, event.endpoint, active=True, peer_id=event.peer_id
                )
            case KeyRotated() if before:
                found[event.node] = replace(before, key=Address(event.new_key), peer_id=event.peer_id)
            case RecipientChanged() if before:
                found[event.node] = replace(before, recipient=Address(event.recipient))
            case EndpointChanged() if before:
                found[event.node] = replace(before, endpoint=event.endpoint)
            case NodeDeregistered() if before:
                found[event.node] = replace(before, active=False, registered=False)
            case NodeSlashed() if before:
                found[event.node] = replace(before, active=False)
            case StakeAdded() if before:
                found[event.node] = replace(before, active=before.registered)
    return found


@st.composite
def histories(draw: st.DrawFn) -> list[NodeEvent]:
    """Events that the contract could give: each node registered first, keys used once."""
    events: list[NodeEvent] = []
    keys = iter(range(60))
    current: dict[bytes, int] = {}
    gone: set[bytes] = set()
    for _ in range(draw(st.integers(1, 12))):
        node = draw(st.sampled_from(NODES))
        if node not in current:
            current[node] = next(keys)
            events.append(registered(node, current[node]))
            continue
        if node in gone:
            continue
        match draw(st.integers(0, 5)):
            case 0:
                old, current[node] = current[node], next(keys)
                events.append(KeyRotated(node, key(old), key(current[node]), PEER))
            case 1:
                events.append(RecipientChanged(node, bytes([draw(st.integers(1, 9))]) * 20))
            case 2:
                events.append(EndpointChanged(node, f"/ip4/192.0.2.{draw(st.integers(1, 9))}/tcp/1"))
            case 3:
                events.append(NodeSlashed(node, OWNER, 1, 0))
            case 4:
                events.append(StakeAdded(node, 1, 1))
            case _:
                gone.add(node)
                events.append(NodeDeregistered(node))
    return events


def settle(registry: Registry, history: list[NodeEvent]) -> None:
    """Read what is doubtful, as the keeper does."""
    now = truth(history)
    for node in list(registry.doubtful):
        registry.put(node, now.get(node), (len(history), 0))


def check(registry: Registry, history: list[NodeEvent]) -> None:
    now = truth(history)
    for node in NODES:
        entry = now.get(node)
        assert registry.node(node) == entry
        speaks = entry is not None and entry.registered
        assert registry.key_of(node) == (entry.key if entry and speaks else None)
    for number in range(60):
        holders = [entry.node for entry in now.values() if entry.registered and entry.key == key(number)]
        assert registry.node_of(key(number)) == (holders[0] if holders else None)


@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_repeats_end_in_the_same(history, random) -> None:  # type: ignore[no-untyped-def]
    registry = Registry()
    placed = list(enumerate(history))
    late = [item for item in placed if random.random() < 0.3]
    for number, event in [*(item for item in placed if item not in late), *late, *late]:
        registry.apply(event, (number, 0))
    settle(registry, history)
    check(registry, history)


@given(histories(), st.integers(0, 12))
def test_a_reorg_leaves_what_the_other_branch_says(history: list[NodeEvent], kept: int) -> None:
    registry = Registry()
    for number, event in enumerate(history):
        registry.apply(event, (number, 0))
    settle(registry, history)
    kept = min(kept, len(history))
    for event in reversed(history[kept:]):
        registry.undo(event)
    settle(registry, history[:kept])
    check(registry, history[:kept])


def test_it_says_whose_key_changed() -> None:
    registry = Registry()
    node = NODES[0]
    assert registry.apply(registered(node, 0), (1, 0)) == node
    assert registry.apply(RecipientChanged(node, OWNER), (2, 0)) is None
    assert registry.apply(KeyRotated(node, key(0), key(1), PEER), (3, 0)) == node
    assert registry.apply(NodeDeregistered(node), (4, 0)) == node


def test_it_is_bounded_and_forgets_the_deregistered_first() -> None:
    registry = Registry(size=2)
    nodes = [bytes([number]) * 32 for number in range(1, 5)]
    registry.apply(registered(nodes[0], 0), (1, 0))
    registry.apply(registered(nodes[1], 1), (2, 0))
    registry.apply(registered(nodes[2], 2), (3, 0))
    assert registry.node(nodes[2]) is None
    registry.apply(NodeDeregistered(nodes[0]), (4, 0))
    registry.apply(registered(nodes[3], 3), (5, 0))
    assert registry.node(nodes[0]) is None
    assert registry.node_of(key(3)) == nodes[3]
    assert len(registry) == 2


def test_endpoints_are_multiaddrs_of_the_nodes_own_peer() -> None:
    own = base58(PEER)
    assert own.startswith("16Uiu2HA")

    def told(endpoint: str) -> str | None:
        return dialable(NodeEntry(NODES[0], OWNER, OWNER, OWNER, endpoint, active=True, peer_id=PEER))

    assert told("/ip4/192.0.2.1/tcp/4001") == f"/ip4/192.0.2.1/tcp/4001/p2p/{own}"
    assert told(f"/dns4/a.example.org/tcp/1/p2p/{own}") == f"/dns4/a.example.org/tcp/1/p2p/{own}"
    for bad in (
        "",
        "https://a.example.org",
        "/ip4/1.2.3.4/tcp/1/p2p/16Uiu2HAmOther",
        "/ip4/1\n2",
        "/" + "a" * 300,
        "/a b",
    ):
        assert told(bad) is None


def test_a_snapshot_comes_back_and_a_bad_one_counts_as_none(tmp_path: Path) -> None:
    deployment = Deployment("test", 5, 0, {"NodeRegistry": Deployed(b"\x01" * 20, bytes(32))})
    registry = Registry()
    registry.apply(registered(NODES[0], 0, "/ip4/192.0.2.1/tcp/1"), (1, 0))
    registry.apply(registered(NODES[1], 1), (2, 0))
    registry.apply(NodeDeregistered(NODES[1]), (3, 0))
    file, block = tmp_path / "nodes.json", BlockRef(7, b"\x07" * 32)
    assert load_snapshot(file, deployment) is None
    save_snapshot(file, deployment, block, registry.entries())
    found = load_snapshot(file, deployment)
    assert found is not None
    assert found.block == block
    assert list(found.entries) == registry.entries()
    assert load_snapshot(file, replace(deployment, chain_id=6)) is None
    whole = file.read_bytes()
    for broken in (whole[:-9], b"[]", b"\xff", whole.replace(b'"block"', b'"clock"'), whole.replace(b"0e0e", b"0e", 1)):
        file.write_bytes(broken)
        assert load_snapshot(file, deployment) is None
