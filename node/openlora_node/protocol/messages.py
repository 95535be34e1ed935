"""The messages of each stream protocol: msgpack maps with a type field `t`, one message a frame.

A field that a reader does not know is skipped, so later versions may add fields; a changed meaning needs a new protocol
id. Signed structs travel as `bin` in their packed form (see eip712), never re-spelled, so what was signed is what
arrives. Decoding raises ProtocolError and nothing else, whatever the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, get_args

import msgspec
from msgspec import Meta

from .errors import ErrorCode, OpenLoraError, PeerError, ProtocolError
from .framing import encode_frame

Hash32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
PeerAddress = Annotated[bytes, Meta(min_length=20, max_length=20)]
Packed = Annotated[bytes, Meta(max_length=8192)]
"""A packed struct, signed or not."""
Body = Annotated[bytes, Meta(max_length=1 << 20)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
RequestId = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
"""Chosen by the payer; 0 stands for the whole stream, in errors only."""
TokenId = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
PackedLeaves = Annotated[bytes, Meta(max_length=256 << 10)]
"""The leaves behind a receipt's two roots, see `leaves`; the most that a pipeline can have take 148 KiB."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True):
    """Base of all messages."""


LOCAL = frozenset(
    {ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN, ErrorCode.SPEND_CAP, ErrorCode.NO_NODE}
    | {ErrorCode.CONFIG_INVALID, ErrorCode.CONFIG_SECRET, ErrorCode.KEY_FAILED, ErrorCode.CLOCK_WRONG}
    | {ErrorCode.DATADIR_LOCKED, ErrorCode.DATADIR_UNSAFE}
    | {ErrorCode.JOURNAL_TOO_NEW, ErrorCode.JOURNAL_MISMATCH, ErrorCode.JOURNAL_CORRUPT}
    | {ErrorCode.STORAGE_FULL, ErrorCode.STORAGE_READ_ONLY, ErrorCode.STORAGE_FAILED}
)
"""Codes of the gateway's door and of a machine's own disk and keys: from another machine they are its own fault."""


class ErrorReply(Message, frozen=True, kw_only=True, tag="error"):
    """A refusal or a failure. `id` is the request's, 0 when it concerns the whole stream."""

    id: Number = 0
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=512)]
    retry_after_ms: Number = 0
    alternatives: Annotated[tuple[Hash32, ...], Meta(max_length=8)] = ()
    """Node ids that may serve instead (with BUSY and DRAINING)."""

    @classmethod
    def of(cls, error: OpenLoraError, request: int = 0) -> ErrorReply:
        """The wire form of an error."""
        return cls(
            id=request,
            code=error.code.value,
            message=error.message[:512],
            retry_after_ms=error.retry_after_ms or 0,
            alternatives=error.alternatives[:8],
        )

    def error(self) -> PeerError:
        """The error that this reply carries, fit to be printed, its words marked as the other side's.

        A code unknown to this version, or one that only speaks of the machine where it arose, becomes INTERNAL.
        """
        code = ErrorCode[self.code] if self.code in ErrorCode.__members__ else ErrorCode.INTERNAL
        if code in LOCAL:
            code = ErrorCode.INTERNAL
        message = "".join(character if character.isprintable() else " " for character in self.message)
        return PeerError(
            code,
            f"the node answers: {message}",
            retry_after_ms=self.retry_after_ms or None,
            alternatives=self.alternatives,
        )


# /openlora/infer/1: requests multiplexed by `id` (chosen by the payer) on one long-lived stream.


class AskQuote(Message, frozen=True, kw_only=True, tag="ask"):
    """Payer → node: what does this pipeline cost me? `pipeline` is a packed Pipeline."""

    id: RequestId
    payer: PeerAddress
    pipeline: Packed


class QuoteReply(Message, frozen=True, kw_only=True, tag="quote"):
    """Node → payer: a packed, signed Quote."""

    id: RequestId
    quote: Packed


class Infer(Message, frozen=True, kw_only=True, tag="infer"):
    """Payer → node: run this. `body` is the exact OpenAI-dialect JSON that `request` signs."""

    id: RequestId
    request: Packed
    """A packed, signed Request."""
    pipeline: Packed
    """The packed Pipeline that the request names by id."""
    body: Body
    voucher: Packed = b""
    """A packed, signed opening Voucher over earlier debt and the prompt's fee."""


class Accepted(Message, frozen=True, kw_only=True, tag="accepted"):
    """Node → payer: admitted and queued."""

    id: RequestId
    prompt_tokens: Number


class Tokens(Message, frozen=True, kw_only=True, tag="tokens"):
    """Node → payer: the next generated tokens. `start` counts from 0, so a repeated or lost frame shows."""

    id: RequestId
    choice: Number = 0
    start: Number
    token_ids: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=4096)]
    text: Annotated[str, Meta(max_length=1 << 16)]
    logprobs: Annotated[bytes, Meta(max_length=1 << 18)] = b""
    """OpenAI-dialect JSON of these tokens' logprobs, when asked for."""


class Paused(Message, frozen=True, kw_only=True, tag="paused"):
    """Node → payer: output waits for a voucher of at least these cumulative values."""

    id: RequestId
    cumulative_tokens: Number
    cumulative_compute: Annotated[bytes, Meta(min_length=16, max_length=16)]
    """Wei as 16 bytes, big-endian: msgpack integers end at 64 bits."""


class Pay(Message, frozen=True, kw_only=True, tag="pay"):
    """Payer → node: a packed, signed Voucher, while streaming or to close."""

    id: RequestId
    voucher: Packed


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Payer → node: stop; the receipt charges the prompt and what was generated."""

    id: RequestId


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """Node → payer: the end of a response, with its packed, signed Receipt."""

    id: RequestId
    receipt: Packed
    finish_reason: Annotated[str, Meta(max_length=32)]
    salt: Hash32
    """Salt of the receipt's leaf in its epoch's tree; the salts of its named leaves come out of it."""
    evidence: PackedLeaves = b""
    """The leaves behind the receipt's roots; none where the receipt is all that is left of a response."""


class Settled(Message, frozen=True, kw_only=True, tag="settled"):
    """Node → payer: the voucher that stands as newest, after a Pay."""

    id: RequestId
    cumulative_tokens: Number


InferMessage = AskQuote | QuoteReply | Infer | Accepted | Tokens | Paused | Pay | Cancel | Done | Settled | ErrorReply


# /openlora/voucher/1: closing late, and recovery of a lost journal on either side.


class GetAccount(Message, frozen=True, kw_only=True, tag="account?"):
    """Payer → node: what do you hold of mine? `query` is a packed, signed AccountQuery: balances are not public."""

    query: Packed


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """One (signer, pipeline) of an account at a node."""

    signer: PeerAddress
    pipeline: Packed
    voucher: Packed = b""
    """The newest signed Voucher that the node holds."""
    tokens: Number
    compute_micro_wei: Annotated[bytes, Meta(min_length=20, max_length=20)]
    """The tally of committed receipts, 10⁻⁶ wei as 20 bytes, big-endian."""


class Account(Message, frozen=True, kw_only=True, tag="account"):
    """Node → payer: the ledgers, and the signed receipts that no voucher covers yet."""

    ledgers: Annotated[tuple[Ledger, ...], Meta(max_length=64)]
    open_receipts: Annotated[tuple[Packed, ...], Meta(max_length=256)]


class PutVoucher(Message, frozen=True, kw_only=True, tag="voucher"):
    """Payer → node: a packed, signed Voucher outside any stream."""

    voucher: Packed


class VoucherReply(Message, frozen=True, kw_only=True, tag="voucher!"):
    """Node → payer: the newest packed, signed Voucher that the node now holds of that key."""

    voucher: Packed


class GetProof(Message, frozen=True, kw_only=True, tag="proof?"):
    """Payer → node: what proves a receipt of mine? `query` as in GetAccount; `receipt` is the receipt's digest."""

    query: Packed
    receipt: Hash32


class Proof(Message, frozen=True, kw_only=True, tag="proof"):
    """Node → payer: the receipt's leaves at any time, and once its epoch is over its path to the anchored root."""

    salt: Hash32
    evidence: PackedLeaves
    epoch: Number
    closed: bool
    """No receipt comes to the epoch any more: its root is anchored, or about to be."""
    path: Annotated[tuple[Hash32, ...], Meta(max_length=64)] = ()
    """Siblings from the receipt's leaf up; none while the epoch is open, and for the one receipt of an epoch."""


VoucherMessage = GetAccount | Account | PutVoucher | VoucherReply | GetProof | Proof | ErrorReply


# /openlora/advert/1: signed adverts, relayed peer to peer, and the filters that they name.


class GetAdverts(Message, frozen=True, kw_only=True, tag="adverts?"):
    """Which adverts do you hold? `known` lists (node id ‖ 8-byte seq), so that only newer ones come back."""

    known: Annotated[tuple[Annotated[bytes, Meta(min_length=40, max_length=40)], ...], Meta(max_length=20_000)] = ()


class Adverts(Message, frozen=True, kw_only=True, tag="adverts"):
    """Packed, signed NodeAdverts; `more` when the answer was cut."""

    adverts: Annotated[tuple[Annotated[bytes, Meta(max_length=512)], ...], Meta(max_length=2000)]
    more: bool = False


class GetFilter(Message, frozen=True, kw_only=True, tag="filter?"):
    """The adapter filter of this digest, please."""

    digest: Hash32


class Filter(Message, frozen=True, kw_only=True, tag="filter"):
    """An adapter filter; its SHA-256 is the digest that the advert signs."""

    data: Annotated[bytes, Meta(max_length=16 * 1024)]


class GetAdapters(Message, frozen=True, kw_only=True, tag="adapters?"):
    """The exact list of cached adapters, in ascending order of ids, beginning after this one."""

    after: Hash32 = bytes(32)


class Adapters(Message, frozen=True, kw_only=True, tag="adapters"):
    """Artifact ids in ascending order; `more` when the list goes on."""

    ids: Annotated[tuple[Hash32, ...], Meta(max_length=8192)]
    more: bool = False


AdvertMessage = GetAdverts | Adverts | GetFilter | Filter | GetAdapters | Adapters | ErrorReply


# /openlora/artifact/1: content-addressed files, chunk by chunk.


class GetManifest(Message, frozen=True, kw_only=True, tag="manifest?"):
    """The canonical manifest of this artifact, please."""

    artifact: Hash32


class ManifestReply(Message, frozen=True, kw_only=True, tag="manifest"):
    """Canonical manifest bytes; their SHA-256 is the artifact id."""

    data: Annotated[bytes, Meta(max_length=1 << 20)]


class GetChunks(Message, frozen=True, kw_only=True, tag="chunks?"):
    """`count` chunks of one file from `first` on. `file` is the file's place in the manifest."""

    artifact: Hash32
    file: Number
    first: Number
    count: Annotated[int, Meta(ge=1, le=4096)]


class Chunk(Message, frozen=True, kw_only=True, tag="chunk"):
    """One chunk with its proof against the file's root."""

    file: Number
    index: Number
    data: Annotated[bytes, Meta(max_length=256 * 1024)]
    proof: Annotated[tuple[Hash32, ...], Meta(max_length=40)]


ArtifactMessage = GetManifest | ManifestReply | GetChunks | Chunk | ErrorReply


M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class StreamProtocol(Generic[M]):
    """A protocol id, its largest frame and its messages."""

    id: str
    max_frame: int
    decoder: msgspec.msgpack.Decoder[M]
    messages: tuple[type[Message], ...]

    def decode(self, payload: bytes) -> M:
        """One frame's payload → a message. Raises ProtocolError and nothing else."""
        if len(payload) > self.max_frame:
            raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a frame here is at most {self.max_frame} bytes")
        try:
            return self.decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError(ErrorCode.MALFORMED, f"not a message of {self.id}") from None

    def encode(self, message: M) -> bytes:
        """A message → a frame with its length. Raises ProtocolError for a message that the reader would refuse."""
        try:
            payload = _encoder.encode(message)
        except (OverflowError, UnicodeEncodeError):
            raise ProtocolError(ErrorCode.MALFORMED, f"not a message of {self.id}") from None
        frame = encode_frame(payload, self.max_frame)
        self.decode(payload)  # msgspec checks bounds on reading only
        return frame


_encoder = msgspec.msgpack.Encoder()

INFER = StreamProtocol[InferMessage](
    "/openlora/infer/1", (1 << 20) + (1 << 16), msgspec.msgpack.Decoder(InferMessage), get_args(InferMessage)
)
VOUCHER = StreamProtocol[VoucherMessage](
    "/openlora/voucher/1", 1 << 19, msgspec.msgpack.Decoder(VoucherMessage), get_args(VoucherMessage)
)
ADVERT = StreamProtocol[AdvertMessage](
    "/openlora/advert/1", 1 << 20, msgspec.msgpack.Decoder(AdvertMessage), get_args(AdvertMessage)
)
ARTIFACT = StreamProtocol[ArtifactMessage](
    "/openlora/artifact/1", (1 << 20) + (1 << 16), msgspec.msgpack.Decoder(ArtifactMessage), get_args(ArtifactMessage)
)
PROTOCOLS = (INFER, VOUCHER, ADVERT, ARTIFACT)
