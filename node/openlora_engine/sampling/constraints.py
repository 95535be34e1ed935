"""Grammars that output must match: JSON schemas and regular expressions, compiled by llguidance into token masks.

Compiling is for a worker thread; the step thread only fills masks and advances matchers (about 10 µs each).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING

import llguidance
import llguidance.hf
import numpy as np
from numpy.typing import NDArray

from ..errors import Code, EngineError
from .params import Constraint, ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

MAX_CACHED_GRAMMARS = 64

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""What may stand between JSON tokens: bounded, since models like to go on with blanks for ever."""

_LONGEST_REASON = 300

_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=20_000,
    step_max_items=10_000,
    max_lexer_states=10_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What one grammar may cost: about 150 ms to compile, tens of ms in its worst step, 20 MB. With llguidance's defaults
`(a{1000}){1000}` would hold a step up for seconds."""


class Grammar:
    """A compiled constraint, shared by the choices that use it."""

    def __init__(self, prototype: llguidance.LLMatcher) -> None:
        self._prototype = prototype
        self._lock = threading.Lock()

    def matcher(self) -> Matcher:
        """A matcher at the grammar's start. Microseconds; any thread."""
        with self._lock:
            return Matcher(self._prototype.deep_copy())


class Matcher:
    """Where one choice is in its grammar: a function of its output tokens alone, so preemption does not touch it."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the mask of the next token: words [ceil(V / 32)], bit t % 32 of word t // 32 for token t.

        An end-of-sequence token is allowed exactly where the output so far is complete. Nothing is after `error`.
        """
        assert words.flags.c_contiguous
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            words.fill(0)

    def accept(self, token_id: int) -> None:
        """Advance over an output token."""
        self._matcher.consume_token(token_id)

    @property
    def ended(self) -> bool:
        """Whether the output is complete and nothing can be added to it."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def error(self) -> EngineError | None:
        """Why the choice cannot go on: its grammar exceeded a limit here."""
        if not self._matcher.is_error():
            return None
        reason = _reason(self._matcher.get_error())
        return EngineError(
            Code.BAD_REQUEST, f"the constraint is too complex ({reason}): simplify it", param="constraint"
        )


class GrammarCompiler:
    """Compiles constraints for one tokenizer and keeps the compiled ones, least recently used out first.

    `vocab_size` is the logits' width, which may exceed the tokenizer's. Any thread may call it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        max_cached: int = MAX_CACHED_GRAMMARS,
    ) -> None:
        self._hf_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._max_cached = max_cached
        self._cached: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint; milliseconds, up to about 150. Raises BAD_REQUEST with the reason."""
        with self._lock:
            if (grammar := self._cached.get(constraint)) is not None:
                self._cached.move_to_end(constraint)
                return grammar
            tokenizer = self._tokenizer  # built under the lock: once, the first constraint pays for it
        grammar = Grammar(_compile(tokenizer, constraint, self._vocab_size))
        with self._lock:
            self._cached[constraint] = grammar
            self._cached.move_to_end(constraint)
            if len(self._cached) > self._max_cached:
                self._cached.popitem(last=False)
        return grammar

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        try:
            return llguidance.hf.from_tokenizer(
                self._hf_tokenizer, n_vocab=self._vocab_size, eos_token=self._eos_token_ids
            )
        except ValueError as error:
            raise EngineError(
                Code.UNSUPPORTED, "this model's tokenizer can not be constrained: leave the constraint out"
            ) from error


def _compile(tokenizer: llguidance.LLTokenizer, constraint: Constraint, vocab_size: int) -> llguidance.LLMatcher:
    try:
        matcher = llguidance.LLMatcher(tokenizer, _source(constraint), log_level=0, limits=_LIMITS)
    except ValueError as error:
        raise _refused(str(error)) from None
    # The first mask is the dearest one, since it builds the lexer's states: here and not in a step.
    Matcher(matcher).fill(np.empty(-(-vocab_size // 32), dtype=np.int32))
    if matcher.is_error():
        raise _refused(matcher.get_error())
    return matcher


def _source(constraint: Constraint) -> str:
    """The constraint in llguidance's own language."""
    if constraint.kind is ConstraintKind.REGEX:
        return llguidance.LLMatcher.grammar_from_regex(constraint.grammar)
    schema = '{"type": "object"}' if constraint.kind is ConstraintKind.JSON_OBJECT else constraint.grammar
    return llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITESPACE})


def _refused(message: str) -> EngineError:
    return EngineError(
        Code.BAD_REQUEST, f"the constraint can not be used ({_reason(message)}): change it", param="constraint"
    )


def _reason(message: str) -> str:
    """The line of llguidance's message that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("<")]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or ["no reason given"])[0][:_LONGEST_REASON]
