"""Traces responses over the datasets whose indexes lie in a folder: after the last token, before the receipt.

One thread does it, for one response after the other, so that generation is never delayed; whoever would wait too long
keeps `declared` datasets. A replay by the payer calls the same `traced`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protocol.errors import OpenLoraError
from .background import background, background_digest, joined
from .corpusindex import DESCRIPTION, CorpusIndex, Encoder, open_index
from .encoder import TokenizerEncoder
from .indexed import to_indexed
from .parts import Indexed, Output, Part
from .suffixes import SuffixArray, separator_of
from .tracing import trace

FOLDER = "indexes"
"""Below a node's state directory."""
MAX_WAITING = 64
"""Responses that wait to be traced; what comes on top stays declared."""
PATIENCE_S = 2.0
"""How long a receipt waits for its traces."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reading:
    """A tokenizer, and the text that belongs to nobody in its tokens."""

    encoder: Encoder
    nobody: SuffixArray

    @classmethod
    def of(cls, encoder: Encoder) -> Reading:
        """With the background of this version."""
        return cls(encoder, background(encoder))

    def fits(self, index: CorpusIndex) -> bool:
        """Whether an index was made for this tokenizer and this background."""
        return (index.tokenizer, index.background) == (self.encoder.digest, background_digest())


def traced(
    parts: tuple[Part, ...],
    find: Callable[[bytes], CorpusIndex | None],
    reading: Reading,
    prompt: Mapping[str, Any],
    output: Output,
) -> tuple[Part, ...]:
    """The parts, with what each dataset that `find` has an index of has in the response."""
    asked: NDArray[np.uint32] | None = None
    known: dict[bytes, Indexed] = {}
    for part in parts:
        for behind in part.behind:
            if behind.kind != "dataset" or behind.artifact in known or (index := find(behind.artifact)) is None:
                continue
            if asked is None:
                asked = prompt_tokens(reading.encoder, prompt)
            known[behind.artifact] = trace_index(index, reading, asked, output)
    if not known:
        return parts
    return tuple(
        replace(part, behind=tuple(replace(one, indexed=known.get(one.artifact)) for one in part.behind))
        for part in parts
    )


def trace_index(index: CorpusIndex, reading: Reading, prompt: NDArray[np.uint32], output: Output) -> Indexed:
    """What one dataset has in a response: each choice is traced by itself."""
    traces = [trace(index, choice, prompt, reading.nobody) for choice in output.choices]
    return to_indexed(index.digest, index.owners, traces)


def prompt_tokens(encoder: Encoder, prompt: Mapping[str, Any]) -> NDArray[np.uint32]:
    """What a request's body quotes to the model, to tell echoes: contents of messages, or the prompts. uint32.

    Texts count as they stand and after a space; lists of token ids as they are.
    """
    given = prompt.get("prompt", ())
    entries = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    texts = [entry for entry in entries if isinstance(entry, str)]
    ids = [entry for entry in entries if isinstance(entry, list)]
    for message in prompt.get("messages", ()):
        content = message.get("content") if isinstance(message, dict) else None
        blocks = content if isinstance(content, list) else [content]
        texts += [text for block in blocks if isinstance(text := _text_of(block), str)]
    parts = [np.asarray([*entry, separator_of(np.uint32)], np.uint32) for entry in ids]
    return np.concatenate([joined(encoder, texts), *parts])


def _text_of(block: object) -> object:
    return block.get("text") if isinstance(block, dict) else block


class Indexes:
    """The indexes in a folder that fit a tokenizer, by dataset. Looks again when the folder changed. Blocks."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self._folder = folder
        self._reading = reading
        self._seen: int | None = None
        self._held: dict[bytes, CorpusIndex] = {}

    def find(self, dataset: bytes) -> CorpusIndex | None:
        """A dataset's index; None where there is none that fits. Of several the last by name counts."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return None
        if changed != self._seen:
            self._seen, self._held = changed, {index.dataset: index for index in self._open()}
        return self._held.get(dataset)

    def _open(self) -> list[CorpusIndex]:
        found = []
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not (path / DESCRIPTION).is_file():
                continue
            try:
                index = open_index(path)
            except (OpenLoraError, OSError, ValueError) as error:
                _log.warning("the index %s is left out: %s", path.name, getattr(error, "message", "it is damaged"))
                continue
            if self._reading.fits(index):
                found.append(index)
            else:
                _log.info("the index %s is another tokenizer's, or needs to be built again", path.name)
        return found


class Tracer:
    """Traces for a node. Close it when the last receipt is written."""

    def __init__(self, folder: Path, tokenizer: Path, *, patience_s: float = PATIENCE_S) -> None:
        """`folder` holds the indexes, `tokenizer` the base's tokenizer.json; both are read when they are needed."""
        self._folder = folder
        self._tokenizer = tokenizer
        self._patience_s = patience_s
        self._worker = ThreadPoolExecutor(1, "attribution")
        self._waiting = 0
        self._ready: tuple[Reading, Indexes] | None = None

    def close(self) -> None:
        """Wait for the one response that is being traced, forget those that wait."""
        self._worker.shutdown(cancel_futures=True)

    async def __call__(self, parts: tuple[Part, ...], prompt: Mapping[str, Any], output: Output) -> tuple[Part, ...]:
        """The parts, with what was traced. Never raises but for its own cancellation: then they stay declared."""
        if not any(one.kind == "dataset" for part in parts for one in part.behind) or self._waiting >= MAX_WAITING:
            return parts
        try:
            future = self._worker.submit(self._trace, parts, prompt, output)
            self._waiting += 1
            future.add_done_callback(self._done)
            async with asyncio.timeout(self._patience_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            _log.warning("tracing a response took too long: its datasets stay declared")
        except Exception as error:  # noqa: BLE001 - a receipt is worth more than its traces; the text may quote a prompt
            _log.error("a response could not be traced: %s", type(error).__name__)
        return parts

    def _done(self, _: Future[tuple[Part, ...]]) -> None:
        self._waiting -= 1

    def _trace(self, parts: tuple[Part, ...], prompt: Mapping[str, Any], output: Output) -> tuple[Part, ...]:
        if not self._folder.is_dir():
            return parts
        if self._ready is None:
            reading = Reading.of(TokenizerEncoder.open(self._tokenizer))
            self._ready = reading, Indexes(self._folder, reading)
        reading, indexes = self._ready
        return traced(parts, indexes.find, reading, prompt, output)
