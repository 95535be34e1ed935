"""Signed adverts: how one is made, what a received one must show before it counts. Pure: the caller brings the time.

The signature yields the whole key, so an advert names its node's peer id without spelling it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from coincurve import PublicKey
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.peer.id import ID

from ..protocol.crypto import SIGNATURE_LENGTH, Address, Signer, public_key_address
from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import ZERO32
from ..protocol.structs import CLOCK_SKEW_S, MAX_ADVERT_BYTES, NodeAdvert, NodeState, Reach
from .hardware import Hardware
from .scores import Fault

TTL_INTERVALS = 3
NODES_PER_SECOND = 2
"""Adverts that one topic carries a second, whatever the number of nodes."""
DEBOUNCE_S = 5.0
MAX_DEVICE_CHARACTERS = 32


class KeyView(Protocol):
    """What judging an advert needs of the registry."""

    def node_of(self, address: bytes) -> bytes | None:
        """The node id whose current key has this address."""
        ...

    def key_of(self, node: bytes) -> bytes | None:
        """The address of a node's current key; None for a node that is not registered."""
        ...


class AdvertRefused(ProtocolError):
    """Why an advert does not count. `fault` is what its sender is charged."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(ErrorCode.MALFORMED, message)
        self.fault = fault


@dataclass(frozen=True)
class Advert:
    """A verified advert: its value, its bytes as they travel, and the peer that speaks for the node."""

    value: NodeAdvert
    packed: bytes
    peer: str

    @property
    def node(self) -> bytes:
        """The node id."""
        return self.value.node

    def is_live(self, now: float) -> bool:
        """Whether the node takes requests, as far as this advert knows."""
        return self.value.state == NodeState.ONLINE and self.value.expires_at > now


@dataclass(frozen=True)
class OwnState:
    """What a node says of itself. Rates in wei per 1,000,000 tokens; `adapters` are the artifact ids in its cache."""

    state: NodeState = NodeState.JOINING
    reach: Reach = Reach.UNKNOWN
    base_models: tuple[bytes, ...] = ()
    adapters: frozenset[bytes] = frozenset()
    input_rate: int = 0
    output_rate: int = 0
    queue_depth: int = 0
    tokens_per_second: int = 0
    max_context: int = 0
    hardware: Hardware = field(default_factory=Hardware)
    dtype: str = ""
    version: str = ""
    addresses: tuple[str, ...] = ()


def interval_s(base_s: float, nodes: int) -> float:
    """Time between adverts: the more nodes, the rarer, so that a topic's load is bounded."""
    return max(base_s, nodes / NODES_PER_SECOND)


def debounce_s(interval: float, least: float = DEBOUNCE_S) -> float:
    """Time between adverts of a node that changes all the time: at most twelve times the regular load."""
    return max(least, interval / 12)


def is_material(old: OwnState, new: OwnState) -> bool:
    """Whether a change is worth an advert of its own. Load drifts all the time: only a doubling or halving counts."""
    drifting = {"queue_depth": 0, "tokens_per_second": 0, "hardware": Hardware()}
    if replace(old, **drifting) != replace(new, **drifting):  # type: ignore[arg-type]
        return True
    return any(
        max(a, b) >= 8 and max(a, b) >= 2 * max(1, min(a, b))
        for a, b in ((old.queue_depth, new.queue_depth), (old.tokens_per_second, new.tokens_per_second))
    )


def make_advert(
    node: bytes,
    state: OwnState,
    filter_digest: bytes,
    *,
    seq: int,
    now: int,
    lifetime_s: int,
    domain: Domain,
    key: Signer,
) -> Signed[NodeAdvert]:
    """A signed advert of at most 512 bytes: addresses are left out from the end until it fits."""
    addresses = state.addresses
    while True:
        try:
            advert = NodeAdvert(
                node=node,
                seq=seq,
                issued_at=now,
                expires_at=now + lifetime_s,
                state=state.state,
                reach=state.reach,
                base_models=state.base_models,
                filter_digest=filter_digest if state.adapters else ZERO32,
                adapter_count=len(state.adapters),
                input_rate=state.input_rate,
                output_rate=state.output_rate,
                queue_depth=state.queue_depth,
                tokens_per_second=state.tokens_per_second,
                max_context=state.max_context,
                device=_printable(state.hardware.device)[:MAX_DEVICE_CHARACTERS],
                memory_total=state.hardware.memory_total,
                memory_free=min(state.hardware.memory_free, state.hardware.memory_total),
                dtype=state.dtype,
                version=state.version,
                addresses=addresses,
            )
        except ProtocolError as error:
            if error.code is not ErrorCode.FRAME_TOO_LARGE or not addresses:
                raise
            addresses = addresses[:-1]
        else:
            return advert.sign(domain, key)


def read_advert(data: bytes, now: float, domain: Domain, keys: KeyView) -> Advert:
    """Bytes from a stranger → an advert that counts. Raises AdvertRefused."""
    if len(data) > MAX_ADVERT_BYTES:
        raise AdvertRefused(Fault.OVERSIZED, f"an advert is at most {MAX_ADVERT_BYTES} bytes")
    try:
        signed = Signed.unpack(NodeAdvert, data)
    except ProtocolError as error:
        raise AdvertRefused(Fault.MALFORMED, error.message) from None
    advert = signed.value
    if advert.issued_at > now + CLOCK_SKEW_S:
        raise AdvertRefused(Fault.FUTURE, "the advert is dated in the future")
    if advert.expires_at <= now:
        raise AdvertRefused(Fault.STALE, "the advert has expired")
    address, peer = _signer(advert.digest(domain), signed.signature)
    if keys.node_of(address) != advert.node:
        if keys.key_of(advert.node) is None:
            raise AdvertRefused(Fault.STALE, "the advert's node is not registered, or not yet seen to be")
        raise AdvertRefused(Fault.FORGED, "the advert is not signed by its node's key")
    return Advert(advert, data, peer)


def peek(data: bytes) -> tuple[bytes, int] | None:
    """Node id and seq of packed bytes, unverified: they stand at its head. Saves recovering a known signature again."""
    return (data[:32], int.from_bytes(data[32:40], "big")) if len(data) > 40 + SIGNATURE_LENGTH else None


def _signer(digest: bytes, signature: bytes) -> tuple[Address, str]:
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None)
    except Exception:  # noqa: BLE001 - libsecp256k1's binding raises bare Exception when no key fits
        raise AdvertRefused(Fault.FORGED, "no key fits the advert's signature") from None
    return public_key_address(key), ID.from_pubkey(Secp256k1PublicKey(key)).to_base58()


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c.isascii())
