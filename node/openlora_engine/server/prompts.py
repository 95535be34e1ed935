"""Prompts to token ids: refused cheaply when they cannot fit, tokenised off the event loop when they are long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..errors import Code, EngineError
from .backend import ModelCard, Tokenizer
from .conversation import render
from .requests import Conversation, PromptField

T = TypeVar("T")

MAX_PROMPTS = 64
"""Prompts in one completion request."""
INLINE_CHARS = 2_000
"""A prompt up to this length is tokenised at once (about a millisecond); a longer one by a thread."""
THREADS = 2


class Prompts:
    """Turns what clients send into token ids. Owns the tokenising threads."""

    def __init__(self, tokenizer: Tokenizer, model: ModelCard) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenize")
        self.max_chars = model.max_model_len * max(map(len, tokenizer.get_vocab()), default=1)
        """No text longer than this fits the context: a token stands for no more characters than its piece has."""

    def close(self) -> None:
        """End the threads; what they do is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def of_conversation(self, given: Conversation, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """A conversation's ids. The template writes the special tokens itself."""
        chars = sum(_length(message.content) for message in given.messages)
        self._check_chars(chars, "messages")

        def work() -> tuple[int, ...]:
            text = render(self._tokenizer, given)
            self._check_chars(len(text), "messages")
            return self._encode(text, add_special_tokens)

        return self._check_ids(await self._run(work, chars), "messages")

    async def of_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """A text's ids. Raises PROMPT_TOO_LONG before tokenising what cannot fit, PROMPT_EMPTY."""
        self._check_chars(len(text), "prompt")
        ids = await self._run(lambda: self._encode(text, add_special_tokens), len(text))
        return self._check_ids(ids, "prompt")

    async def of_field(self, prompt: PromptField, *, add_special_tokens: bool = True) -> list[tuple[int, ...]]:
        """The prompts of a completion request: a text or a list of ids is one, a list of either is many."""
        prompts: list[tuple[int, ...]] = []
        for entry in _entries(prompt):
            if isinstance(entry, str):
                prompts.append(await self.of_text(entry, add_special_tokens=add_special_tokens))
            else:
                prompts.append(self.of_ids(entry))
        return prompts

    def of_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Token ids as given, checked against length and vocabulary."""
        checked = self._check_ids(tuple(ids), "prompt")
        if min(checked) < 0 or max(checked) >= self._model.vocab_size:
            raise EngineError(
                Code.BAD_REQUEST, f"prompt: token ids must be from 0 to {self._model.vocab_size - 1}", param="prompt"
            )
        return checked

    async def text_of(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, special tokens included."""
        if not ids:
            return ""
        checked = self.of_ids(ids)
        decode = self._tokenizer.backend_tokenizer.decode
        return await self._run(lambda: str(decode(list(checked), skip_special_tokens=False)), len(checked))

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        # The wrapper's own __call__ changes the tokenizer's truncation state: not for threads.
        return tuple(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    async def _run(self, work: Callable[[], T], size: int) -> T:
        if size <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _check_chars(self, chars: int, param: str) -> None:
        if chars > self.max_chars:
            raise EngineError(
                Code.PROMPT_TOO_LONG,
                f"{param} has {chars} characters; no more than {self.max_chars} fit the context of "
                f"{self._model.max_model_len} tokens: shorten it",
                param=param,
            )

    def _check_ids(self, ids: tuple[int, ...], param: str) -> tuple[int, ...]:
        if not ids:
            raise EngineError(Code.PROMPT_EMPTY, f"{param} has no token: send some text", param=param)
        if len(ids) > self._model.max_model_len:
            raise EngineError(
                Code.PROMPT_TOO_LONG,
                f"{param} has {len(ids)} tokens; the context holds {self._model.max_model_len}: shorten it",
                param=param,
            )
        return ids


def _length(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part.text or "") for part in content) if isinstance(content, list) else 0


def _entries(prompt: PromptField) -> list[str | Sequence[int]]:
    """One entry a prompt. Raises BAD_REQUEST for a mixture, PROMPT_EMPTY for none."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise EngineError(Code.PROMPT_EMPTY, "prompt is an empty list: send text or token ids", param="prompt")
    kinds = {type(entry) for entry in prompt}
    if len(kinds) > 1:
        raise EngineError(
            Code.BAD_REQUEST, "prompt mixes texts, token ids and lists: send entries of one kind", param="prompt"
        )
    if kinds == {int}:
        return [[entry for entry in prompt if isinstance(entry, int)]]
    if len(prompt) > MAX_PROMPTS:
        raise EngineError(
            Code.BAD_REQUEST, f"prompt has {len(prompt)} entries: send at most {MAX_PROMPTS}", param="prompt"
        )
    return [entry for entry in prompt if not isinstance(entry, int)]
