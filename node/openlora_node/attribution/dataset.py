"""A dataset as people contribute to it: lines of canonical JSON, each a sample, whose it is, and under which licence.

`{"contributor":"0x…","licence":"CC-BY-4.0","sample":{"messages":[…]}}`, or `"sample":{"text":"…"}`. Versions append:
the order of the lines is the order of registration, and of two samples that say the same the first counts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..artifacts.shares import WHOLE, ShareTable
from ..protocol.crypto import Address
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import parse_address
from ..protocol.manifest import canonical_json

MAX_LINE = 16 << 20
"""Bytes of one sample with its wrapping."""
MAX_SAMPLES = 10_000_000


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sample that trains answers: what the assistant says is what the contributor gave."""

    messages: tuple[Message, ...]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sample of running text."""

    text: str


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it is parsed."""

    contributor: str
    licence: str
    sample: msgspec.Raw


@dataclass(frozen=True)
class Sample:
    """One contribution. `texts` is what may be repeated by a model: answers, or the text."""

    contributor: Address
    licence: str
    texts: tuple[str, ...]


_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_conversations: msgspec.json.Decoder[Conversation] = msgspec.json.Decoder(Conversation)
_texts: msgspec.json.Decoder[Text] = msgspec.json.Decoder(Text)


def read_samples(lines: Iterable[bytes]) -> Iterator[Sample]:
    """Parse a dataset's lines, one at a time. Raises MALFORMED naming the line and what is wrong with it."""
    number = 0
    for number, line in enumerate(lines, start=1):
        if number > MAX_SAMPLES:
            raise ProtocolError(ErrorCode.MALFORMED, f"a dataset has at most {MAX_SAMPLES:,} samples")
        try:
            yield _sample(line.removesuffix(b"\n"))
        except ProtocolError as error:
            raise ProtocolError(ErrorCode.MALFORMED, f"line {number}: {error.message}") from None
    if not number:
        raise ProtocolError(ErrorCode.MALFORMED, "a dataset has at least one sample")


def _sample(line: bytes) -> Sample:
    if len(line) > MAX_LINE:
        raise ProtocolError(ErrorCode.MALFORMED, f"a sample has at most {MAX_LINE >> 20} MiB")
    try:
        parsed = _lines.decode(line)
        kind = _conversations if b'"messages"' in bytes(parsed.sample)[:16] else _texts
        sample = kind.decode(parsed.sample)
    except UnicodeDecodeError:
        raise ProtocolError(ErrorCode.MALFORMED, "the text is not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(ErrorCode.MALFORMED, str(error)) from None
    if canonical_json(msgspec.json.decode(line)) != line:
        raise ProtocolError(ErrorCode.MALFORMED, "not canonical JSON: sort the keys and leave out spaces")
    if not parsed.licence.strip() or not parsed.licence.isprintable():
        raise ProtocolError(ErrorCode.MALFORMED, "name the licence, for example CC-BY-4.0")
    texts: tuple[str, ...]
    if isinstance(sample, Text):
        texts = (sample.text,)
    else:
        texts = tuple(message.content for message in sample.messages if message.role == "assistant")
    if not any(text.strip() for text in texts):
        raise ProtocolError(ErrorCode.MALFORMED, "the sample holds no answer and no text")
    return Sample(parse_address(parsed.contributor), parsed.licence, texts)


def normalised(text: str) -> str:
    """What counts as the same text: NFKC, case-folded, runs of whitespace as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shares_by_size(samples: Sequence[Sample]) -> ShareTable:
    """Shares in proportion to the characters that each contributor gave, by largest remainder."""
    sizes: dict[Address, int] = {}
    for sample in samples:
        size = sum(len(text) for text in sample.texts)
        sizes[sample.contributor] = sizes.get(sample.contributor, 0) + size
    whole = sum(sizes.values())
    shares = {account: size * WHOLE // whole for account, size in sizes.items()}
    rest = sorted(sizes, key=lambda account: (-(sizes[account] * WHOLE % whole), account))
    for account in rest[: WHOLE - sum(shares.values())]:
        shares[account] += 1
    return ShareTable.of((account, share) for account, share in shares.items() if share)
