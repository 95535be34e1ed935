"""Event logs into typed values, by the ABIs of our contracts. Pure.

An event is a hint: caches are invalidated by it, money never hangs on one. Fields stand in the order of the ABI; ids
are 32 bytes, addresses 20 bytes, amounts wei, times unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from .compiled import compiled
from .deployment import Deployment
from .errors import ChainErrorCode, RpcError
from .store import LogRecord


@dataclass(frozen=True, slots=True)
class NodeRegistered:
    """NodeRegistry: a new node. `peer_id` is the multihash of its key."""

    node: bytes
    owner: bytes
    key: bytes
    peer_id: bytes
    recipient: bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class KeyRotated:
    """NodeRegistry: another key speaks for the node."""

    node: bytes
    old_key: bytes
    new_key: bytes
    peer_id: bytes


@dataclass(frozen=True, slots=True)
class RecipientChanged:
    """NodeRegistry: earnings go elsewhere."""

    node: bytes
    recipient: bytes


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """NodeRegistry: the node is reached elsewhere."""

    node: bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class StakeAdded:
    """NodeRegistry: `staked` is the new total."""

    node: bytes
    amount: int
    staked: int


@dataclass(frozen=True, slots=True)
class NodeDeregistered:
    """NodeRegistry: the node left service."""

    node: bytes


@dataclass(frozen=True, slots=True)
class NodeSlashed:
    """NodeRegistry: stake was taken."""

    node: bytes
    challenger: bytes
    slashed: int
    bounty: int


@dataclass(frozen=True, slots=True)
class ArtifactRegistered:
    """ArtifactRegistry: a new artifact."""

    artifact: bytes
    kind: int
    owner: bytes
    shares_root: bytes
    metadata: str


@dataclass(frozen=True, slots=True)
class TermsChanged:
    """ArtifactRegistry: new terms; those before redeem for the grace period."""

    artifact: bytes
    version: int
    rate: int
    credits_bps: int
    components: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """ArtifactRegistry: the artifact has another owner."""

    artifact: bytes
    old_owner: bytes
    new_owner: bytes


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """ArtifactRegistry: a door (scope 0 use, 1 host) has another rule."""

    artifact: bytes
    scope: int
    mode: int
    price: int
    duration: int


@dataclass(frozen=True, slots=True)
class ListingChanged:
    """ArtifactRegistry: a subject was put on a door's list or taken off."""

    artifact: bytes
    scope: int
    subject: bytes
    listed: bool


@dataclass(frozen=True, slots=True)
class LicenceBought:
    """ArtifactRegistry: a licence was bought or prolonged."""

    artifact: bytes
    scope: int
    subject: bytes
    buyer: bytes
    owner: bytes
    price: int
    until: int


@dataclass(frozen=True, slots=True)
class ThawStarted:
    """Settlement: a payer takes escrow out; `thawing` is the new total, all of it until `thaw_end`."""

    payer: bytes
    node: bytes
    amount: int
    thawing: int
    thaw_end: int


@dataclass(frozen=True, slots=True)
class SignerAuthorized:
    """Settlement: a key signs for a payer from now on."""

    payer: bytes
    signer: bytes


@dataclass(frozen=True, slots=True)
class SignerThawing:
    """Settlement: a key stops signing at `ends_at`."""

    payer: bytes
    signer: bytes
    ends_at: int


@dataclass(frozen=True, slots=True)
class VoucherRedeemed:
    """Settlement: a voucher was accepted and paid as far as escrow reached."""

    payer: bytes
    node: bytes
    pipeline: bytes
    signer: bytes
    cumulative_tokens: int
    cumulative_compute: int
    operator_paid: int
    protocol_paid: int
    royalties_paid: int
    reference_digest: bytes


@dataclass(frozen=True, slots=True)
class DebtCollected:
    """Settlement: a channel's debt was paid as far as escrow reached."""

    payer: bytes
    node: bytes
    pipeline: bytes
    signer: bytes
    operator_paid: int
    protocol_paid: int
    royalties_paid: int


@dataclass(frozen=True, slots=True)
class VoucherSkipped:
    """Settlement: item `index` of a batch was left out; `reason` is the error's 4-byte selector."""

    index: int
    node: bytes
    reason: bytes


@dataclass(frozen=True, slots=True)
class PipelineSkipped:
    """Settlement: pipeline `index` of a batch was left out."""

    index: int
    pipeline: bytes
    reason: bytes


@dataclass(frozen=True, slots=True)
class PipelineRegistered:
    """Settlement: a pipeline's parts were shown: (base, version, [(adapter, version, weight)], method)."""

    pipeline: bytes
    parts: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Harvested:
    """Settlement: the royalties of a (node, pipeline) were shared out up to this sum."""

    node: bytes
    pipeline: bytes
    harvested: int


@dataclass(frozen=True, slots=True)
class OperatorPaid:
    """Settlement: a node's earnings were paid."""

    node: bytes
    recipient: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class OwnerPaid:
    """Settlement: an artifact owner was paid."""

    owner: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class SharePaid:
    """Settlement: a contributor was paid out of static shares."""

    dataset: bytes
    contributor: bytes
    bps: int
    amount: int


@dataclass(frozen=True, slots=True)
class CreditPaid:
    """Settlement: a contributor was paid credits."""

    node: bytes
    dataset: bytes
    contributor: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Anchored:
    """ReceiptAnchor: an epoch's root; totals are (count, firstSeq, lastSeq, tokens, compute, royalties)."""

    node: bytes
    epoch: int
    root: bytes
    totals: tuple[int, ...]


Event: TypeAlias = (
    NodeRegistered
    | KeyRotated
    | RecipientChanged
    | EndpointChanged
    | StakeAdded
    | NodeDeregistered
    | NodeSlashed
    | ArtifactRegistered
    | TermsChanged
    | OwnerChanged
    | PolicyChanged
    | ListingChanged
    | LicenceBought
    | ThawStarted
    | SignerAuthorized
    | SignerThawing
    | VoucherRedeemed
    | DebtCollected
    | VoucherSkipped
    | PipelineSkipped
    | PipelineRegistered
    | Harvested
    | OperatorPaid
    | OwnerPaid
    | SharePaid
    | CreditPaid
    | Anchored
)

CONTRACT_EVENTS: dict[str, tuple[type[Event], ...]] = {
    "NodeRegistry": (
        NodeRegistered,
        KeyRotated,
        RecipientChanged,
        EndpointChanged,
        StakeAdded,
        NodeDeregistered,
        NodeSlashed,
    ),
    "ArtifactRegistry": (
        ArtifactRegistered,
        TermsChanged,
        OwnerChanged,
        PolicyChanged,
        ListingChanged,
        LicenceBought,
    ),
    "Settlement": (
        ThawStarted,
        SignerAuthorized,
        SignerThawing,
        VoucherRedeemed,
        DebtCollected,
        VoucherSkipped,
        PipelineSkipped,
        PipelineRegistered,
        Harvested,
        OperatorPaid,
        OwnerPaid,
        SharePaid,
        CreditPaid,
    ),
    "ReceiptAnchor": (Anchored,),
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
