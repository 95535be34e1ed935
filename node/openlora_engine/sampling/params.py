"""What a request asks of sampling: every parameter with its bounds, checked once. Knows no tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import Code, EngineError

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_LOGIT_BIAS = 1_024
MAX_CHOICES = 16
MAX_GRAMMAR_CHARS = 65_536


class ConstraintKind(StrEnum):
    """The language a constraint is written in."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"


@dataclass(frozen=True)
class Constraint:
    """Output must match this grammar: a JSON schema (as JSON text), any JSON object, or a regular expression."""

    kind: ConstraintKind
    grammar: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one request. `validate()` raises BAD_REQUEST naming the parameter; nothing else checks again.

    temperature 0 is greedy. top_k 0 keeps all tokens; top_p 1 and min_p 0 likewise. `seed` None draws one from the
    system. `max_tokens` 0 evaluates the prompt and generates nothing.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """None: no log-probabilities; k: the chosen token's and the k likeliest."""
    constraint: Constraint | None = None

    def validate(self, vocab_size: int) -> None:
        """Check every bound. Raises EngineError BAD_REQUEST with `param` set."""
        self._range("max_tokens", self.max_tokens, 0, math.inf)
        self._range("temperature", self.temperature, 0, 100)
        self._range("top_k", self.top_k, 0, math.inf)
        self._range("top_p", self.top_p, 0, 1, above=True)
        self._range("min_p", self.min_p, 0, 1)
        self._range("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        self._range("presence_penalty", self.presence_penalty, -2, 2)
        self._range("frequency_penalty", self.frequency_penalty, -2, 2)
        self._range("n", self.n, 1, MAX_CHOICES)
        self._range("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.seed is not None:
            self._range("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        if self.logprobs is not None:
            self._range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        self._range("stop (entries)", len(self.stop), 0, MAX_STOP_STRINGS)
        for text in self.stop:
            self._range("stop (characters)", len(text), 1, MAX_STOP_STRING_CHARS)
        self._range("stop_token_ids (entries)", len(self.stop_token_ids), 0, MAX_LOGIT_BIAS)
        for token_id in self.stop_token_ids:
            self._range("stop_token_ids", token_id, 0, vocab_size - 1)
        self._range("logit_bias (entries)", len(self.logit_bias), 0, MAX_LOGIT_BIAS)
        for token_id, bias in self.logit_bias.items():
            self._range("logit_bias (token id)", token_id, 0, vocab_size - 1)
            self._range("logit_bias", bias, -100, 100)
        if self.constraint is not None:
            self._range("constraint (characters)", len(self.constraint.grammar), 0, MAX_GRAMMAR_CHARS)

    @staticmethod
    def _range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
        """`low` itself is excluded when `above`; NaN is outside everything."""
        if not (low < value if above else low <= value) or not value <= high:
            least = "above" if above else "from"
            most = "" if high == math.inf else f" to {high}"
            param = name.split(" ", 1)[0]
            raise EngineError(Code.BAD_REQUEST, f"{name} must be {least} {low}{most}", param=param)
