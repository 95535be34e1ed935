"""One choice's output: token ids in, certain text and the finish out. Composes detokenizer and stop rules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .detokenizer import TextDecoder
from .params import SamplingParams
from .stop_strings import StopScanner, StopStrings
from .stopping import END_OF_SEQUENCE, LENGTH, Finish, StopChecker


@dataclass(frozen=True, slots=True)
class Delta:
    """What one token added: text that will not change any more, and whether the choice is over."""

    text: str
    finish: Finish | None = None


class OutputRules:
    """What the choices of one request have in common."""

    def __init__(
        self,
        params: SamplingParams,
        decoder: TextDecoder,
        *,
        eos_token_ids: Collection[int],
        num_prompt_tokens: int,
        max_model_len: int,
    ) -> None:
        self.decoder = decoder
        self.include_stop = params.include_stop
        self.strings = StopStrings(params.stop)
        self.checker = StopChecker(
            params, eos_token_ids=eos_token_ids, num_prompt_tokens=num_prompt_tokens, max_model_len=max_model_len
        )

    def choice(self) -> ChoiceOutput:
        """A choice at its start."""
        return ChoiceOutput(self)


class ChoiceOutput:
    """The text of one choice as its tokens come. A few microseconds a token, whatever the length."""

    def __init__(self, rules: OutputRules) -> None:
        self.num_tokens = 0
        self._rules = rules
        self._detokenizer = rules.decoder.detokenizer()
        self._scanner = StopScanner(rules.strings)

    def add(self, token_id: int, *, ended: bool = False) -> Delta:
        """Take one output token; `ended`: the grammar is complete with it. Not to be called after a finish.

        A token that ends the sequence gives no text, unless stops are to be included. Where one token gives several
        reasons to end, a stop token is named before a stop string, and that before the length.
        """
        rules = self._rules
        self.num_tokens += 1
        finish = rules.checker.after(token_id, self.num_tokens)
        if finish is not None and not rules.include_stop:
            return self._finished("", finish)
        text = self._detokenizer.add(token_id)
        ignore = not rules.checker.may_stop(self.num_tokens)
        match = self._scanner.add(text, ignore=ignore, include_stop=rules.include_stop)
        if match.stop is not None:
            return Delta(match.text, finish or Finish(END_OF_SEQUENCE.reason, match.stop))
        if finish is None and ended:
            finish = END_OF_SEQUENCE
        if finish is None and rules.checker.at_length(self.num_tokens):
            finish = LENGTH
        return Delta(match.text) if finish is None else self._finished(match.text, finish)

    def abort(self) -> str:
        """The text that was held back, when the choice is ended from outside (cancelled, failed)."""
        return self._finished("", LENGTH).text

    def _finished(self, text: str, finish: Finish) -> Delta:
        """With what detokenizer and scanner still hold, which may complete a stop string."""
        rules = self._rules
        ignore = not rules.checker.may_stop(self.num_tokens)
        match = self._scanner.add(self._detokenizer.flush(), ignore=ignore, include_stop=rules.include_stop)
        if match.stop is not None and finish is LENGTH:
            return Delta(text + match.text, Finish(END_OF_SEQUENCE.reason, match.stop))
        if match.stop is not None:
            return Delta(text + match.text, finish)
        return Delta(text + match.text + self._scanner.flush(), finish)
