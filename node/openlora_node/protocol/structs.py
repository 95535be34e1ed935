"""The signed structs of the protocol: Quote, Request, Voucher, Receipt, NodeAdvert.

Amounts are wei, rates are wei per 1,000,000 tokens, times are unix seconds. `node` is the registry's stable node id,
never a key, so that signatures outlive key rotation.
"""

from __future__ import annotations

from enum import IntEnum

from .crypto import SIGNATURE_LENGTH, keccak256
from .eip712 import TypedStruct
from .errors import ErrorCode, ProtocolError
from .pipeline import MAX_ADAPTERS
from .solidity import AddressField, Bytes32, String, Uint8, Uint32, Uint64, Uint128

MAX_REQUEST_LIFETIME_S = 300
CLOCK_SKEW_S = 60
MAX_QUOTE_LIFETIME_S = 86_400
MAX_CUMULATIVE_TOKENS = (1 << 63) - 1
"""Signed 64-bit integers are what msgpack readers and SQLite have in common."""
MAX_ADVERT_BYTES = 512
"""Largest signed advert, packed."""
MAX_ADVERT_LIFETIME_S = 86_400


class Royalty(TypedStruct, frozen=True, kw_only=True):
    """What one artifact asks: its rate under one version of its terms, and who owns it (zero while unregistered)."""

    artifact: Bytes32
    terms_version: Uint32
    rate: Uint128
    owner: AddressField


class Quote(TypedStruct, frozen=True, kw_only=True):
    """Node → payer: what a pipeline costs here. Signed by the node key.

    `royalties` lists the base first, then the adapters in pipeline order. `settlement_charge` is charged once, in the
    first receipt of a ledger (payer, signer, node, pipeline) that is not failed; every quote states it, so that a quote
    tells nobody who paid before.
    """

    payer: AddressField
    node: Bytes32
    pipeline_id: Bytes32
    input_rate: Uint128
    output_rate: Uint128
    royalties: tuple[Royalty, ...]
    settlement_charge: Uint128
    issued_at: Uint64
    expires_at: Uint64

    def validate(self) -> None:
        """One royalty an artifact; a quote that lives, and not for ever."""
        if not 1 <= len(self.royalties) <= 1 + MAX_ADAPTERS:
            raise _malformed(f"a quote lists the base and at most {MAX_ADAPTERS} adapters")
        if len({royalty.artifact for royalty in self.royalties}) != len(self.royalties):
            raise _malformed("a quote lists an artifact once")
        if not self.issued_at < self.expires_at <= self.issued_at + MAX_QUOTE_LIFETIME_S:
            raise _malformed(f"a quote expires 1 to {MAX_QUOTE_LIFETIME_S} s after it was issued")


class Request(TypedStruct, frozen=True, kw_only=True):
    """Payer → node: run this body on this pipeline for at most `max_fee`. Signed by the payer or its signer.

    `body_hash` is keccak-256 of the exact body bytes, `max_tokens` bounds the generated tokens, `nonce` is random.
    """

    payer: AddressField
    node: Bytes32
    pipeline_id: Bytes32
    quote_digest: Bytes32
    body_hash: Bytes32
    max_fee: Uint128
    max_tokens: Uint64
    nonce: Bytes32
    issued_at: Uint64
    expires_at: Uint64

    def validate(self) -> None:
        """A request lives at most 300 s."""
        if not self.issued_at < self.expires_at <= self.issued_at + MAX_REQUEST_LIFETIME_S:
            raise _malformed(f"a request expires 1 to {MAX_REQUEST_LIFETIME_S} s after it was issued")


class Voucher(TypedStruct, frozen=True, kw_only=True):
    """Payer → node: everything that this signer owes for this pipeline so far. Signed by the payer or its signer.

    Cumulative: the newest replaces all before it. The contract derives royalties from `cumulative_tokens`.
    `reference_digest` names the request (opening, topping up) or the receipt (closing) that it answers; not judged.
    The two amounts pay different people: `cumulative_compute` the operator, royalties from `cumulative_tokens` the
    artifacts' owners. Neither stands in for the other (see `pricing.Tally.owed`).
    """

    payer: AddressField
    node: Bytes32
    pipeline_id: Bytes32
    cumulative_tokens: Uint64
    cumulative_compute: Uint128
    reference_digest: Bytes32

    def validate(self) -> None:
        """Tokens stay below 2^63."""
        if self.cumulative_tokens > MAX_CUMULATIVE_TOKENS:
            raise ProtocolError(ErrorCode.BAD_AMOUNT, "cumulative tokens are whole and below 2^63")

    def covers(self, other: Voucher) -> bool:
        """Whether this voucher is at least as new as `other` of the same key.

        Raises ProtocolError VOUCHER_CONFLICT where one amount grew and the other fell.
        """
        tokens = self.cumulative_tokens - other.cumulative_tokens
        compute = self.cumulative_compute - other.cumulative_compute
        if tokens * compute < 0:
            raise ProtocolError(ErrorCode.VOUCHER_CONFLICT)
        return tokens >= 0 and compute >= 0


class AccountQuery(TypedStruct, frozen=True, kw_only=True):
    """Payer → node: show me my vouchers and open receipts. Signed by the payer or its signer; valid ± 60 s."""

    payer: AddressField
    node: Bytes32
    issued_at: Uint64


class NodeKeyProof(TypedStruct, frozen=True, kw_only=True):
    """Node key → NodeRegistry: I agree to speak for this node of this owner. Valid until `deadline`."""

    node: Bytes32
    owner: AddressField
    deadline: Uint64


class SignerProof(TypedStruct, frozen=True, kw_only=True):
    """Signer → Settlement: I agree to sign for this payer, for ever. Valid until `deadline`."""

    payer: AddressField
    deadline: Uint64


class ReceiptStatus(IntEnum):
    """How a response ended."""

    COMPLETE = 0
    CANCELLED = 1
    FAILED = 2


class Receipt(TypedStruct, frozen=True, kw_only=True):
    """Node → payer: what was run and what it cost. Signed by the node key; chained by `seq` and `previous`.

    `output_hash` is over the token ids (see `output_hash`), `attribution_root` and `commitment_root` are Merkle roots
    over named leaves, 32 zero bytes when empty. A failed response costs nothing and counts no tokens.
    """

    request_digest: Bytes32
    payer: AddressField
    node: Bytes32
    pipeline_id: Bytes32
    status: Uint8
    engine_digest: Bytes32
    prompt_tokens: Uint64
    completion_tokens: Uint64
    output_hash: Bytes32
    attribution_root: Bytes32
    commitment_root: Bytes32
    compute: Uint128
    royalties: Uint128
    started_at: Uint64
    finished_at: Uint64
    seq: Uint64
    previous: Bytes32

    def validate(self) -> None:
        """Known status, time runs forward, failure is free, amounts whose sum still fits."""
        if self.status > max(ReceiptStatus):
            raise _malformed(f"receipt status {self.status} is not known")
        if self.finished_at < self.started_at:
            raise _malformed("a response does not finish before it starts")
        if self.status == ReceiptStatus.FAILED and (self.fee or self.tokens):
            raise _malformed("a failed response costs nothing and counts no tokens")
        if self.fee >= 1 << 128:
            raise ProtocolError(ErrorCode.BAD_AMOUNT)

    @property
    def fee(self) -> int:
        """Compute and royalties, in wei."""
        return self.compute + self.royalties

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens: what royalties count."""
        return self.prompt_tokens + self.completion_tokens


class NodeState(IntEnum):
    """What an advert says of its node."""

    OFFLINE = 0
    JOINING = 1
    ONLINE = 2
    DRAINING = 3


class Reach(IntEnum):
    """How peers reach a node."""

    UNKNOWN = 0
    DIRECT = 1
    RELAYED = 2


class NodeAdvert(TypedStruct, frozen=True, kw_only=True):
    """Node → everyone: I am here, with this hardware, these models, this price. Signed by the node key.

    The highest `seq` of a node counts until `expires_at`. `filter_digest` names the compact filter of the
    `adapter_count` adapters in its cache, fetched by stream. At most 512 bytes packed and signed. Units: MiB, whole
    tokens per second, tokens of context.
    """

    node: Bytes32
    seq: Uint64
    issued_at: Uint64
    expires_at: Uint64
    state: Uint8
    reach: Uint8
    base_models: tuple[Bytes32, ...]
    filter_digest: Bytes32
    adapter_count: Uint32
    input_rate: Uint128
    output_rate: Uint128
    queue_depth: Uint32
    tokens_per_second: Uint32
    max_context: Uint32
    device: String
    memory_total: Uint32
    memory_free: Uint32
    dtype: String
    version: String
    addresses: tuple[String, ...]

    def validate(self) -> None:
        """Bounded size and life, known enum values."""
        if self.state > max(NodeState) or self.reach > max(Reach):
            raise _malformed("the advert's state or reach is not known")
        if not self.issued_at < self.expires_at <= self.issued_at + MAX_ADVERT_LIFETIME_S:
            raise _malformed(f"an advert expires 1 to {MAX_ADVERT_LIFETIME_S} s after it was issued")
        if self.memory_free > self.memory_total:
            raise _malformed("no device has more memory free than in all")
        if not all(text.isprintable() for text in (self.device, self.dtype, self.version, *self.addresses)):
            raise _malformed("an advert's texts are printable")
        if len(self.pack()) + SIGNATURE_LENGTH > MAX_ADVERT_BYTES:
            raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a signed advert is at most {MAX_ADVERT_BYTES} bytes")


def body_hash(body: bytes) -> bytes:
    """Keccak-256 of the exact body bytes: re-serialised JSON is another body."""
    return keccak256(body)


def output_hash(token_ids: list[int] | tuple[int, ...]) -> bytes:
    """Keccak-256 of the generated token ids, each as 4 bytes big-endian."""
    try:
        return keccak256(b"".join([token.to_bytes(4, "big") for token in token_ids]))
    except (OverflowError, AttributeError):
        raise _malformed("a token id is an integer from 0 to 2^32 - 1") from None


def _malformed(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, message)
