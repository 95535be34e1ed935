"""Replays what a receipt says of its datasets, from the payer's text: the same traces must come out, to the byte. Pure.

The node keeps no text: whoever replays brings what was asked and what was answered, and the receipt's hash of the
output tells whether it is that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.structs import Receipt, output_hash
from .corpusindex import CorpusIndex, Encoder
from .evidence import Evidence
from .indexed import DatasetFacts, read_datasets
from .parts import Indexed, Output
from .tracer import Reading, prompt_tokens, trace_index

MAX_TEXT_BYTES = 64 << 20


class _Kept(msgspec.Struct, rename="camel"):
    prompt: dict[str, Any]
    outputs: list[str] = []
    token_ids: list[list[int]] = []


_kept = msgspec.json.Decoder(_Kept)


@dataclass(frozen=True)
class Kept:
    """A response's text as the payer has it."""

    prompt: Mapping[str, Any]
    """The body's `messages` or `prompt`."""
    output: Output

    @classmethod
    def decode(cls, data: bytes, encoder: Encoder) -> Kept:
        """`{"prompt": {"messages": […]}, "outputs": ["…"], "tokenIds": [[…]]}`, other keys are not read.

        A gateway with `gateway.keep_text` writes such files. Without `tokenIds` the outputs are tokenised anew, which
        does not always give the tokens that were generated. Raises MALFORMED.
        """
        try:
            kept = _kept.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError(
                ErrorCode.MALFORMED, 'the text is JSON with "prompt" and "outputs" or "tokenIds": the gateway writes it'
            ) from None
        choices: Sequence[Sequence[int]] = kept.token_ids or encoder.encode(kept.outputs)
        if any(not 0 <= token < 1 << 32 for choice in choices for token in choice):
            raise ProtocolError(ErrorCode.MALFORMED, "a token id is out of range")
        return cls(kept.prompt, Output(tuple(tuple(choice) for choice in choices)))


@dataclass(frozen=True)
class Replayed:
    """One dataset: what the receipt states and what was found."""

    facts: DatasetFacts
    found: Indexed

    @property
    def differences(self) -> tuple[tuple[str, object, object], ...]:
        """(what, stated, found); none for an honest receipt."""
        stated = self.facts.indexed
        pairs = (
            ("algorithm", stated.algorithm, self.found.algorithm),
            ("coverage", stated.coverage, self.found.coverage),
            ("credits", stated.credits, self.found.credits),
        )
        return tuple(pair for pair in pairs if pair[1] != pair[2])


def check_text(receipt: Receipt, evidence: Evidence, output: Output) -> None:
    """Raises RECEIPT_INVALID unless this is what the receipt's hashes say, choice by choice."""
    facts = {leaf.name: leaf.value for leaf in evidence.commitment}
    choices = [output_hash(tokens) for tokens in output.choices]
    stated = [facts[name] for place in range(len(facts)) if (name := f"choice/{place}/output") in facts]
    if output_hash(output.token_ids) != receipt.output_hash or (stated and stated != choices):
        raise ProtocolError(
            ErrorCode.RECEIPT_INVALID,
            "this text is not what the receipt was written for (text without tokenIds may tokenise differently)",
        )


def replay(
    receipt: Receipt, evidence: Evidence, kept: Kept, indexes: Mapping[bytes, CorpusIndex], reading: Reading
) -> tuple[Replayed, ...]:
    """Every dataset that the receipt traced. `indexes` by digest.

    Raises RECEIPT_INVALID for another text or leaves that contradict each other; NOT_FOUND for an index that is not
    given; MALFORMED for one of another tokenizer or background.
    """
    check_text(receipt, evidence, kept.output)
    prompt = prompt_tokens(reading.encoder, kept.prompt)
    done = []
    for facts in read_datasets({leaf.name: leaf.value for leaf in evidence.attribution}):
        index = indexes.get(facts.indexed.index)
        if index is None:
            raise OpenLoraError(
                ErrorCode.NOT_FOUND,
                f"the receipt names index {facts.indexed.index.hex()} of dataset sha256:{facts.dataset.hex()}: build it"
                " from the dataset, or fetch it, and give its folder",
            )
        if not reading.fits(index):
            raise ProtocolError(ErrorCode.MALFORMED, "this index was made for another tokenizer or another background")
        if index.dataset != facts.dataset:
            raise ProtocolError(ErrorCode.RECEIPT_INVALID, "the receipt names the index of another dataset")
        done.append(Replayed(facts, trace_index(index, reading, prompt, kept.output)))
    return tuple(done)
