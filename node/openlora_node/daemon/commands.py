"""What a running node can be asked over its control socket. docs/operator.md lists the commands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openlora_chain.errors import ChainError
from openlora_chain.store import NewIntent

from ..api.control import Command, Parameters, text_of, whole_of
from ..chainview import ChainParts
from ..journal import Reader
from ..journal.outbox import read_intents
from ..network import reach_report
from ..network.service import Network
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_artifact_id, format_bytes, parse_address, parse_artifact_id
from . import fleet, logs
from .status import as_json, status

if TYPE_CHECKING:
    from .node import Node

T = TypeVar("T")
MAX_LISTED = 1_000
MAX_CALLDATA = 32 << 10
MAX_WEI = (1 << 128) - 1


def commands(node: Node) -> tuple[Command, ...]:
    """All of them."""
    handlers = Handlers(node)
    return (
        Command("GET", "/status", handlers.status),
        Command("POST", "/drain", handlers.drain),
        Command("POST", "/stop", handlers.stop),
        Command("GET", "/log", handlers.log),
        Command("PUT", "/log", handlers.set_log),
        Command("POST", "/backup", handlers.backup),
        Command("GET", "/artifacts", handlers.artifacts),
        Command("POST", "/artifacts/{artifact}/fetch", handlers.fetch),
        Command("POST", "/artifacts/{artifact}/pin", handlers.pin),
        Command("POST", "/artifacts/{artifact}/unpin", handlers.unpin),
        Command("DELETE", "/artifacts/{artifact}", handlers.remove),
        Command("GET", "/settlement", handlers.settlement),
        Command("POST", "/settlement/redeem", handlers.redeem),
        Command("POST", "/settlement/credits", handlers.decide),
        Command("GET", "/transactions", handlers.transactions),
        Command("POST", "/transactions", handlers.submit),
        Command("GET", "/net/reach", handlers.reach),
        Command("GET", "/net/addrs", handlers.addresses),
        Command("GET", "/peers", handlers.peers),
        Command("GET", "/peers/{peer}", handlers.peer),
        Command("POST", "/peers/ban", handlers.ban),
    )


class Handlers:
    """One method a command. What is not open yet is said so."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def status(self, _: Parameters) -> object:
        """Everything on one screen."""
        return await status(self._node)

    async def drain(self, _: Parameters) -> object:
        """Take no more requests; stay up."""
        self._node.drain()
        return {"draining": True}

    async def stop(self, _: Parameters) -> object:
        """As SIGTERM does."""
        self._node.stop("asked to by the control socket")
        return {"stopping": True}

    async def log(self, _: Parameters) -> object:
        """The least severity that is logged."""
        return {"level": logs.level()}

    async def set_log(self, parameters: Parameters) -> object:
        """Another, until the next start."""
        level = text_of(parameters, "level")
        if level not in logs.LEVELS:
            raise OpenLoraError(ErrorCode.MALFORMED, f"level is one of {', '.join(logs.LEVELS)}")
        logs.set_level(level)
        return {"level": level}

    async def backup(self, parameters: Parameters) -> object:
        """Copy the journal while it is in use."""
        journal = _open(self._node.rooms.journal, "the journal")
        name = f"{journal.path.stem}-{time.time_ns()}{journal.path.suffix}"
        target = Path(text_of(parameters, "target", str(journal.path.parent / "backups" / name)))
        if not target.is_absolute():
            raise OpenLoraError(ErrorCode.MALFORMED, "target is an absolute path: the node stands elsewhere than you")

        def copy() -> None:
            with Reader(journal.path) as reader:
                reader.back_up(target)

        await asyncio.to_thread(copy)
        return {"backup": str(target)}

    async def artifacts(self, _: Parameters) -> object:
        """What is in the store."""
        store = _open(self._node.rooms.store, "the artifact store")
        pinned, entries = store.pinned(), store.entries()
        return {
            "usage": as_json(store.usage()),
            "artifacts": [
                {**as_json(entry), "artifact": format_artifact_id(entry.artifact), "pinned": entry.artifact in pinned}
                for entry in entries
            ],
        }

    async def fetch(self, parameters: Parameters) -> object:
        """Fetch an artifact from peers, if this node may hold it."""
        shelf = _open(self._node.rooms.shelf, "the network")
        folder = await shelf.ensure(_artifact(parameters))
        return {"folder": str(folder)}

    async def pin(self, parameters: Parameters) -> object:
        """Never evict it."""
        _open(self._node.rooms.store, "the artifact store").pin(_artifact(parameters))
        return {"pinned": True}

    async def unpin(self, parameters: Parameters) -> object:
        """Let it be evicted again."""
        _open(self._node.rooms.store, "the artifact store").unpin(_artifact(parameters))
        return {"pinned": False}

    async def remove(self, parameters: Parameters) -> object:
        """Delete it from the store and from the engine."""
        artifact, rooms = _artifact(parameters), self._node.rooms
        store = _open(rooms.store, "the artifact store")
        for engine in fleet.serving(rooms.engines):
            await engine.client.unload(artifact)
            engine.lane.drop(artifact)
        await asyncio.to_thread(store.remove, artifact)
        return {"removed": True}

    async def settlement(self, _: Parameters) -> object:
        """What is due, owed, under way, earned and spent."""
        return as_json(_open(self._node.rooms.settlement, "settlement").status())

    async def redeem(self, _: Parameters) -> object:
        """Redeem whatever is due, whatever it is worth."""
        return {"queued": await _open(self._node.rooms.settlement, "settlement").redeem_now()}

    async def decide(self, _: Parameters) -> object:
        """Decide whatever waits for datasets' contributors, whatever it is worth."""
        return {"queued": await _open(self._node.rooms.settlement, "settlement").decide_now()}

    async def transactions(self, parameters: Parameters) -> object:
        """The newest transactions of the node key, newest first."""
        journal = _open(self._node.rooms.journal, "the journal")
        limit = whole_of(parameters, "limit", 50, low=1, high=MAX_LISTED)
        intents = await asyncio.to_thread(read_intents, journal.path, limit)
        return [
            {"id": format_bytes(i.id), "kind": i.request.kind, "state": i.state.value, "nonce": i.nonce, "note": i.note}
            for i in intents
        ]

    async def submit(self, parameters: Parameters) -> object:
        """Queue a call signed by the node key. The same kind and subject again gives the first."""
        outbox, chain = _open(self._node.rooms.outbox, "the outbox"), _open(self._node.rooms.chain, "the chain")
        to = bytes(parse_address(text_of(parameters, "to")))
        if to not in _contracts(chain):
            raise OpenLoraError(ErrorCode.ACCESS_DENIED, "the node key calls the contracts of its deployment only")
        data = _hex(parameters, "data", MAX_CALLDATA)
        new = NewIntent(
            kind=text_of(parameters, "kind"),
            subject=_hex(parameters, "subject", 64),
            chain_id=outbox.chain_id,
            sender=outbox.address,
            to=to,
            data=data,
            value=whole_of(parameters, "value", 0, high=MAX_WEI),
        )
        try:
            intent = await outbox.submit(new)
        except ChainError as error:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, error.message) from None
        return {"id": format_bytes(intent.id), "state": intent.state.value, "sender": format_address(outbox.address)}

    async def reach(self, _: Parameters) -> object:
        """How others reach this node, who could dial back, and what to change."""
        return await reach_report.reach_report(_open(self._node.rooms.network, "the network"))

    async def addresses(self, _: Parameters) -> object:
        """Where the host listens, what peers see, what others are told."""
        return await reach_report.address_report(_open(self._node.rooms.network, "the network"))

    async def peers(self, _: Parameters) -> object:
        """Connected peers."""
        return await reach_report.peers_report(self._network())

    async def peer(self, parameters: Parameters) -> object:
        """One of them."""
        return await reach_report.peer_report(self._network(), text_of(parameters, "peer"))

    async def ban(self, parameters: Parameters) -> object:
        """Keep a peer out for a while."""
        seconds = whole_of(parameters, "seconds", reach_report.BAN_S, high=reach_report.MAX_BAN_S)
        return await reach_report.ban(self._network(), text_of(parameters, "peer"), seconds)

    def _network(self) -> Network:
        return _open(self._node.rooms.network, "the network")


def _open(room: T | None, name: str) -> T:
    if room is None:
        raise OpenLoraError(
            ErrorCode.ENGINE_UNAVAILABLE, f"{name} is not open yet: `openlora status` says what is missing"
        )
    return room


def _artifact(parameters: Parameters) -> bytes:
    return bytes(parse_artifact_id(text_of(parameters, "artifact")))


def _contracts(chain: ChainParts) -> set[bytes]:
    return {item.address for item in chain.deployment.contracts.values()}


def _hex(parameters: Parameters, name: str, most: int) -> bytes:
    text: Any = parameters.get(name, "0x")
    try:
        value = bytes.fromhex(text.removeprefix("0x")) if isinstance(text, str) and text.startswith("0x") else None
    except ValueError:
        value = None
    if value is None or len(value) > most:
        raise OpenLoraError(ErrorCode.MALFORMED, f"{name} is 0x and at most {2 * most} hex digits")
    return value
