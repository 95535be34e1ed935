"""Every error that can cross a border: a stable code, an HTTP status, whether a retry may help, and what to do.

The codes are part of the protocol: they are never renamed or given another meaning, only added. The table in
docs/protocol.md is generated from `ErrorCode`. Messages never carry exception text, paths or secrets.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """A stable error code. The member's value is what travels; the other attributes say how to treat it."""

    http_status: int
    retryable: bool
    remedy: str

    def __new__(cls, code: str, http_status: int, retryable: bool, remedy: str) -> Self:
        """Build one row of the table."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.http_status = http_status
        member.retryable = retryable
        member.remedy = remedy
        return member

    # Bytes that do not parse, values no contract would accept.
    MALFORMED = "MALFORMED", 400, False, "send bytes that follow docs/protocol.md; retrying the same bytes fails again"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE", 413, False, "split the message; each protocol states its largest frame"
    BAD_SIGNATURE = "BAD_SIGNATURE", 401, False, "sign the digest again: 65 bytes r, s, v with a low s and v 27 or 28"
    BAD_ID = "BAD_ID", 400, False, "write artifact ids as sha256:<64 lower-case hex>, addresses as 0x<40 hex>"
    BAD_PIPELINE = "BAD_PIPELINE", 400, False, "name a base and at most 4 distinct adapters, weights in steps of 500"
    BAD_MANIFEST = "BAD_MANIFEST", 400, False, "publish a canonical manifest: safe relative file names, each once"
    BAD_CHUNK = "BAD_CHUNK", 422, True, "drop this source and fetch the chunk from another"
    BAD_AMOUNT = "BAD_AMOUNT", 400, False, "amounts are whole wei from 0 to 2^128 - 1"

    # The door: why a request may not enter.
    WRONG_NODE = "WRONG_NODE", 421, False, "send the request to the node that it names"
    WRONG_CHAIN = "WRONG_CHAIN", 400, False, "sign for this node's chain id and settlement contract"
    NOT_YET_VALID = "NOT_YET_VALID", 400, True, "correct your clock: issuedAt lies more than 60 s ahead"
    REQUEST_EXPIRED = "REQUEST_EXPIRED", 400, False, "sign a new request; one lives at most 300 s"
    BODY_MISMATCH = "BODY_MISMATCH", 400, False, "sign the keccak-256 of the exact body bytes that you send"
    QUOTE_EXPIRED = "QUOTE_EXPIRED", 409, False, "ask for a new quote and sign a new request for it"
    QUOTE_UNKNOWN = "QUOTE_UNKNOWN", 409, False, "ask this node for a quote before signing a request"
    MAX_FEE_TOO_LOW = "MAX_FEE_TOO_LOW", 402, False, "raise maxFee to what the quote asks for this prompt and maxTokens"
    RATE_LIMITED = "RATE_LIMITED", 429, True, "wait for the time given, then send again"
    BUSY = "BUSY", 503, True, "wait for the time given, or ask one of the alternatives named"
    DRAINING = "DRAINING", 503, True, "the node is stopping: ask another"
    ACCESS_DENIED = "ACCESS_DENIED", 403, False, "buy or ask for access to the artifact named"
    ESCROW_TOO_LOW = "ESCROW_TOO_LOW", 402, False, "deposit the missing wei to this payer's escrow with this node"
    DEBT_OUTSTANDING = "DEBT_OUTSTANDING", 402, False, "send a voucher for what earlier responses cost"
    NONCE_REUSED = "NONCE_REUSED", 409, False, "the nonce belongs to another request: draw a fresh random nonce"
    TOO_MANY_NONCES = "TOO_MANY_NONCES", 429, True, "let earlier requests expire before sending more"
    RESULT_EXPIRED = (
        "RESULT_EXPIRED",
        410,
        False,
        "the receipt stands, the text is gone; sign a new request to run again",
    )
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND", 404, False, "ask for a base model that this node serves"
    ADAPTER_NOT_FOUND = "ADAPTER_NOT_FOUND", 404, False, "check the adapter id, or publish the adapter first"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG", 400, False, "shorten the prompt or lower maxTokens to fit the context"
    UNSUPPORTED = "UNSUPPORTED", 400, False, "leave out the named feature; this node does not offer it"

    # The gateway: who may spend the payer's money, and how much of it.
    UNAUTHORIZED = "UNAUTHORIZED", 401, False, "send the token in this machine's file as Authorization: Bearer TOKEN"
    FORBIDDEN = "FORBIDDEN", 403, False, "call from this machine, not from a web page or under another host's name"
    SPEND_CAP = "SPEND_CAP", 402, False, "raise gateway.spend_per_request or gateway.spend_per_day, or wait for the day"

    # While serving and paying.
    ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE", 503, True, "the engine is starting: retry, or ask another node"
    ENGINE_FAILED = "ENGINE_FAILED", 500, True, "the run failed and costs nothing: send the same request again"
    CANCELLED = "CANCELLED", 499, False, "the request was cancelled; the receipt charges what was generated"
    NODE_LOST = "NODE_LOST", 502, True, "the node vanished mid-stream; pay nothing beyond vouchers given, then retry"
    NO_NODE = "NO_NODE", 503, True, "no reachable node serves this within maxFee: raise it, or wait"
    VOUCHER_LATE = "VOUCHER_LATE", 402, True, "send the next voucher: output is paused 1,024 tokens past the newest"
    VOUCHER_CONFLICT = "VOUCHER_CONFLICT", 409, False, "cumulative tokens and compute may only grow, both together"
    VOUCHER_TOO_LOW = "VOUCHER_TOO_LOW", 402, False, "cover earlier debt and the prompt's fee in the opening voucher"
    RECEIPT_INVALID = "RECEIPT_INVALID", 502, False, "the receipt contradicts what arrived: do not pay it"
    NOT_FOUND = "NOT_FOUND", 404, False, "nothing is stored under that id here"
    INTERNAL = "INTERNAL", 500, True, "a fault of ours: retry once, then report the code and the time"

    # This machine: configuration, key files, disk and journal.
    CONFIG_INVALID = "CONFIG_INVALID", 500, False, "correct the key or line named; `openlora config check` lists all"
    CONFIG_SECRET = "CONFIG_SECRET", 500, False, "move the secret to a file of mode 0600 and name the file instead"
    KEY_FAILED = (
        "KEY_FAILED",
        500,
        False,
        "check the key file, its mode and its password; `openlora keys` looks after them",
    )
    CHAIN_FAILED = "CHAIN_FAILED", 502, True, "check the chain's endpoint, its chain id and the deployment file"
    DATADIR_LOCKED = "DATADIR_LOCKED", 500, False, "stop the process named, or give this one its own data directory"
    DATADIR_UNSAFE = "DATADIR_UNSAFE", 500, False, "give the data directory to this user with mode 0700"
    JOURNAL_TOO_NEW = "JOURNAL_TOO_NEW", 500, False, "run the version that wrote the journal, or restore a backup"
    JOURNAL_MISMATCH = "JOURNAL_MISMATCH", 500, False, "use the data directory of this node, chain and contract"
    JOURNAL_CORRUPT = "JOURNAL_CORRUPT", 500, False, "stop, keep the file, restore the newest backup"
    CLOCK_WRONG = "CLOCK_WRONG", 500, False, "set the clock: the journal holds entries from the future"
    STORAGE_FULL = "STORAGE_FULL", 507, True, "free disk space; nothing that was confirmed is lost"
    STORAGE_READ_ONLY = "STORAGE_READ_ONLY", 500, False, "make the data directory writable for this user"
    STORAGE_FAILED = "STORAGE_FAILED", 500, True, "check the disk: it refused a read or a write"


class OpenLoraError(Exception):
    """An error with a stable code and a message that says what to do.

    `message` is shown to the other side as it stands: one sentence, no exception text, no path, no secret.
    `retry_after_ms` is set with BUSY and RATE_LIMITED; `alternatives` are node ids that may serve instead.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str | None = None,
        *,
        retry_after_ms: int | None = None,
        alternatives: tuple[bytes, ...] = (),
    ) -> None:
        self.code = code
        self.message = message or code.remedy
        self.retry_after_ms = retry_after_ms
        self.alternatives = alternatives
        super().__init__(f"{code.value}: {self.message}")


class PeerError(OpenLoraError):
    """What the other side answered: code and words are its own claim, and say nothing of this machine."""


class ProtocolError(OpenLoraError):
    """Bytes or values that break the protocol. Decoding untrusted input raises this and nothing else."""


def error_table() -> str:
    """The Markdown table of all codes, as it stands in docs/protocol.md."""
    rows = [
        f"| `{code.value}` | {code.http_status} | {'yes' if code.retryable else 'no'} | {code.remedy} |"
        for code in ErrorCode
    ]
    return "\n".join(["| code | HTTP | retry | what to do |", "| --- | --- | --- | --- |", *rows])
