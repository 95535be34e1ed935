"""Counts a prompt's tokens with the base's own tokenizer, so that a node's count is checked and not believed.

Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a base's folder. Imports no torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..openai import Body, BodyError
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.manifest import BaseManifest
from .chat_template import ChatTemplate

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
FILES = (TOKENIZER, CONFIG, TEMPLATE, "special_tokens_map.json")
"""The files of a base that counting reads; all but the first may be missing."""
MAX_FILE_BYTES = 64 << 20
INLINE_CHARACTERS = 4_000
"""A prompt up to this length is counted at once; a longer one by a thread."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PromptCounter:
    """The tokenizer and the chat template of one base."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self.longest_token = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        """Characters that a token stands for at most: byte-level vocabularies write a byte as a character."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out; ids of no token have none."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    async def count(self, body: Body) -> int:
        """The prompt's tokens over all its prompts, as an engine counts them. Raises BodyError MALFORMED, UNSUPPORTED.

        Several choices of one prompt share it: it counts once.
        """
        if _characters(body.raw) <= INLINE_CHARACTERS:
            return self._count(body)
        return await asyncio.to_thread(self._count, body)

    def _count(self, body: Body) -> int:
        if body.kind == "chat":
            if self._template is None:
                raise BodyError(
                    ErrorCode.UNSUPPORTED, "this base has no chat template: use /v1/completions", "messages"
                )
            return self._length(self._template.render(body.raw), special=False, param="messages")
        special = body.raw.get("add_special_tokens") is not False
        prompt = body.raw["prompt"]
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        return sum(
            len(entry) if isinstance(entry, list) else self._length(entry, special=special, param="prompt")
            for entry in prompts
        )

    def _length(self, text: str, *, special: bool, param: str) -> int:
        try:
            count = len(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except BaseException as error:
            if isinstance(error, Exception | asyncio.CancelledError | KeyboardInterrupt):
                raise
            # The library's panics are no Exceptions: they would pass every handler on the way.
            raise BodyError(ErrorCode.UNSUPPORTED, "the base's tokenizer cannot take this text", param) from None
        if count == 0:
            raise BodyError(ErrorCode.MALFORMED, f"{param} has no token: send some text", param)
        return count


def load_counter(folder: Path, manifest: BaseManifest | None = None) -> PromptCounter:
    """The counter of a base's folder. Blocks on the disk and on a large vocabulary.

    With the base's manifest, tokenizer and template are held to its digests. Raises MODEL_NOT_FOUND where the folder
    lacks a usable tokenizer, BAD_MANIFEST where it holds another.
    """
    content = read_file(folder / TOKENIZER)
    if content is None:
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"there is no {TOKENIZER} in the folder of this base")
    config = _object(read_file(folder / CONFIG))
    template = template_of(read_file(folder / TEMPLATE), config)
    if manifest is not None:
        _check(manifest, content, template or "")
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            raise
        # The library raises bare Exception for a file that it cannot read, and panics, which are none, for some.
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"the {TOKENIZER} of this base cannot be read") from None
    special = special_tokens(_object(read_file(folder / "special_tokens_map.json"))) | special_tokens(config)
    return PromptCounter(tokenizer, None if template is None else ChatTemplate(template, special))


def template_of(own_file: bytes | None, config: Mapping[str, Any]) -> str | None:
    """The chat template, from its own file or from the tokenizer's configuration; None where there is none."""
    if own_file is not None:
        return own_file.decode("utf-8", "replace")
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else None


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that templates name, such as `bos_token`, as texts."""
    found = {}
    for name in _SPECIAL:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def read_file(path: Path) -> bytes | None:
    """A file's content; None where there is none. Raises MODEL_NOT_FOUND for one that is too large to be it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    if len(content) > MAX_FILE_BYTES:
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"{path.name} of this base is larger than any tokenizer's")
    return content


def _check(manifest: BaseManifest, tokenizer: bytes, template: str) -> None:
    found = hashlib.sha256(tokenizer).hexdigest(), hashlib.sha256(template.encode()).hexdigest()
    if found != (manifest.tokenizer, manifest.chat_template):
        raise OpenLoraError(
            ErrorCode.BAD_MANIFEST, "tokenizer or chat template in the folder are not those of the base's manifest"
        )


def _object(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _characters(value: Any) -> int:
    """Roughly how much text a body's values hold."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 1
