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
from .probe import LIMITS, GrammarProbe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

MAX_CACHED_GRAMMARS = 64

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""What may stand between JSON tokens: bounded, since models like to go on with blanks for ever."""

_LONGEST_REASON = 300


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
        self._cached: OrderedDict[Constraint, Grammar | EngineError] = OrderedDict()
        self._lock = threading.Lock()
        self._probe = GrammarProbe()

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint. Milliseconds as a rule, seconds at most. Raises BAD_REQUEST with the reason."""
        with self._lock:
            known = self._cached.get(constraint)
            if known is not None:
                self._cached.move_to_end(constraint)
            tokenizer = self._tokenizer  # built under the lock: once, the first constraint pays for it
        if known is None:
            try:
                known = Grammar(self._compile(tokenizer, constraint))
            except EngineError as error:
                known = error
            self._keep(constraint, known)
        if isinstance(known, EngineError):
            raise EngineError(known.code, known.message, param=known.param)
        return known

    def close(self) -> None:
        """End the process that tries grammars."""
        self._probe.close()

    def _keep(self, constraint: Constraint, known: Grammar | EngineError) -> None:
        with self._lock:
            self._cached[constraint] = known
            self._cached.move_to_end(constraint)
            if len(self._cached) > self._max_cached:
                self._cached.popitem(last=False)

    def _compile(self, tokenizer: llguidance.LLTokenizer, constraint: Constraint) -> llguidance.LLMatcher:
        try:
            source = _source(constraint)
            if not self._probe.survives(source):
                raise _refused("it takes too long to build")
            matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
        except ValueError as error:
            raise _refused(str(error)) from None
        # The first mask is the dearest one, since it builds the lexer's states: here and not in a step.
        Matcher(matcher).fill(np.empty(-(-self._vocab_size // 32), dtype=np.int32))
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return matcher

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


def _source(constraint: Constraint) -> str:
    """The constraint in llguidance's own language. `\\d` and `\\w` are ASCII in regular expressions as in schemas."""
    if constraint.kind is ConstraintKind.REGEX:
        ascii_ = llguidance.regex_to_lark(constraint.grammar, use_ascii="dw")
        if not ascii_:  # Lark has no empty regular expression
            return llguidance.LLMatcher.grammar_from_regex("")
        return llguidance.LLMatcher.grammar_from_lark(f"start: /{ascii_}/")
    schema = '{"type": "object"}' if constraint.kind is ConstraintKind.JSON_OBJECT else constraint.grammar.strip()
    if schema == "true":  # llguidance takes options only with an object
        schema = "{}"
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
