"""What crosses the border to the engine: identities, mixes, pieces of output, load. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..protocol.pipeline import WEIGHT_ONE


@dataclass(frozen=True)
class EngineInfo:
    """What the engine serves and what it runs as.

    `model` is the base's name in the engine, `model_digest` the artifact id that it was started with (empty: none).
    `digest` (32 bytes) is a receipt's `engineDigest`: SHA-256 of the canonical JSON of backend, version, model, its
    digest, device and number formats. Two engines with one digest were told to compute the same thing.
    """

    model: str
    model_digest: str
    max_model_len: int
    version: str
    digest: bytes
    device: str = ""
    dtype: str = ""
    quantization: str = ""
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mix:
    """What a request runs on: nothing for the base, or adapters with weights in ten-thousandths and how to mix them.

    `seed` draws DARE's masks: `Mix.seed_of` a pipeline id.
    """

    adapters: tuple[tuple[bytes, int], ...] = ()
    method: str = "cat"
    seed: int = 0

    @property
    def single(self) -> bytes | None:
        """The adapter, where the mix is one adapter at weight 1."""
        if len(self.adapters) == 1 and self.adapters[0][1] == WEIGHT_ONE:
            return self.adapters[0][0]
        return None

    @staticmethod
    def seed_of(pipeline_id: bytes) -> int:
        """The first 8 bytes of a pipeline id (docs/protocol.md section 4)."""
        return int.from_bytes(pipeline_id[:8], "big")


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one choice. `logprobs` is the engine's JSON of them, in the shape of the body's dialect."""

    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: bytes = b""
    finish_reason: str | None = None


@dataclass(frozen=True)
class EngineLoad:
    """Sequences that run and wait in the engine, and the tokens a second that this client saw while it was at work."""

    running: int
    waiting: int
    tokens_per_second: float


class EngineBody(Protocol):
    """The part of a parsed request body that the client uses (`openai.Body`)."""

    @property
    def kind(self) -> Literal["chat", "completion"]:
        """Which route it is for."""
        ...

    @property
    def choices(self) -> int:
        """Choices of the response: prompts times n."""
        ...

    @property
    def raw(self) -> Mapping[str, Any]:
        """The served fields as plain JSON values."""
        ...

    def for_engine(
        self,
        model: str,
        adapters: Sequence[tuple[str, float]] = (),
        method: str = "cat",
        *,
        max_tokens: int | None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """The body to stream from an engine."""
        ...


NAME_PREFIX = "artifact-"
"""Engines refuse names that look like digests."""


def engine_name(artifact: bytes) -> str:
    """The name that an adapter has in the engine: told from its artifact id alone."""
    return NAME_PREFIX + artifact.hex()


def artifact_of(name: str) -> bytes | None:
    """The artifact id behind a name that `engine_name` gave; None for any other name."""
    text = name.removeprefix(NAME_PREFIX)
    if text == name or len(text) != 64 or text != text.lower():
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
