"""Reads logs into events, by the ABIs of our contracts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from ..compiled import compiled
from ..deployment import Deployment
from ..errors import ChainErrorCode, RpcError
from ..store import LogRecord
from . import artifact_registry, node_registry, receipt_anchor, settlement
from . import credits as credits_events

Event: TypeAlias = (
    node_registry.NodeRegistered
    | node_registry.KeyRotated
    | node_registry.RecipientChanged
    | node_registry.EndpointChanged
    | node_registry.StakeAdded
    | node_registry.NodeDeregistered
    | node_registry.NodeSlashed
    | artifact_registry.ArtifactRegistered
    | artifact_registry.TermsChanged
    | artifact_registry.OwnerChanged
    | artifact_registry.PolicyChanged
    | artifact_registry.ListingChanged
    | artifact_registry.LicenceBought
    | settlement.ThawStarted
    | settlement.SignerAuthorized
    | settlement.SignerThawing
    | settlement.VoucherRedeemed
    | settlement.DebtCollected
    | settlement.VoucherSkipped
    | settlement.PipelineSkipped
    | settlement.PipelineRegistered
    | settlement.Harvested
    | settlement.OperatorPaid
    | settlement.OwnerPaid
    | settlement.SharePaid
    | settlement.CreditPaid
    | credits_events.CreditsPosted
    | credits_events.CreditsVetoed
    | credits_events.CreditsActivated
    | credits_events.CreditsLapsed
    | receipt_anchor.Anchored
)

CONTRACT_EVENTS: dict[str, tuple[type[Event], ...]] = {
    "NodeRegistry": node_registry.EVENTS,
    "ArtifactRegistry": artifact_registry.EVENTS,
    "Settlement": settlement.EVENTS,
    "Credits": credits_events.EVENTS,
    "ReceiptAnchor": receipt_anchor.EVENTS,
}
"""What is decoded of each contract. The classes are named as the events."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one event's log is read: (is indexed, ABI type) of each field, in order."""

    kind: type[Event]
    inputs: tuple[tuple[bool, str], ...]


class EventTable:
    """Reads the logs of one deployment. `topics` selects events for a log query."""

    def __init__(self, deployment: Deployment, kinds: Iterable[type[Event]] | None = None) -> None:
        wanted = None if kinds is None else frozenset(kinds)
        self._shapes: dict[tuple[bytes, bytes], _Shape] = {}
        for contract, events in CONTRACT_EVENTS.items():
            address = deployment.contracts[contract].address
            entries = {entry["name"]: entry for entry in compiled(contract).abi if entry["type"] == "event"}
            for kind in events:
                if wanted is None or kind in wanted:
                    inputs = tuple((item["indexed"], _type(item)) for item in entries[kind.__name__]["inputs"])
                    signature = f"{kind.__name__}({','.join(name for _, name in inputs)})"
                    self._shapes[address, bytes(keccak(text=signature))] = _Shape(kind, inputs)
        self.addresses: tuple[bytes, ...] = tuple(dict.fromkeys(address for address, _ in self._shapes))
        self.topics: tuple[bytes, ...] = tuple(dict.fromkeys(topic for _, topic in self._shapes))

    def decode(self, log: LogRecord) -> Event | None:
        """The event, None for one that is not in this table. Raises RpcError RPC_INCONSISTENT for a broken log."""
        shape = self._shapes.get((log.address, log.topics[0])) if log.topics else None
        if shape is None:
            return None
        try:
            return _decode(shape, log)
        except (DecodingError, OverflowError, UnicodeDecodeError, IndexError, TypeError, ValueError):
            raise RpcError(ChainErrorCode.RPC_INCONSISTENT, f"a log is no {shape.kind.__name__} event") from None

    def decode_all(self, logs: Sequence[LogRecord]) -> list[Event]:
        """Those of the logs that are in this table, in order."""
        return [event for log in logs if (event := self.decode(log)) is not None]


def _decode(shape: _Shape, log: LogRecord) -> Event:
    topics = iter(log.topics[1:])
    rest = iter(decode([name for indexed, name in shape.inputs if not indexed], log.data))
    values = [
        decode([name], next(topics, b""))[0] if indexed else next(rest)  # no event of ours indexes a dynamic type
        for indexed, name in shape.inputs
    ]
    return shape.kind(*(_plain(value, name) for value, (_, name) in zip(values, shape.inputs, strict=True)))


def _plain(value: Any, name: str) -> Any:
    if name == "address":
        return bytes.fromhex(value[2:])
    return _deep(value) if isinstance(value, (tuple, list)) else value


def _deep(value: Any) -> Any:
    return tuple(_deep(item) for item in value) if isinstance(value, (tuple, list)) else value


def _type(item: dict[str, Any]) -> str:
    name: str = item["type"]
    if not name.startswith("tuple"):
        return name
    return f"({','.join(_type(part) for part in item['components'])}){name.removeprefix('tuple')}"
