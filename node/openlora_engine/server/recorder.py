"""What the events of one prompt tell the metrics, as a reader that keeps up sees them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from ..metrics import EngineMetrics
from ..request import FinishReason, TokenEvent


class Recorder:
    """Watches one prompt's events go by. `arrived` is the clock's reading when its request came."""

    def __init__(
        self,
        metrics: EngineMetrics,
        num_prompt_tokens: int,
        n: int,
        arrived: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._arrived = arrived
        self._clock = clock
        self._last: dict[int, float] = {}
        self._running = dict.fromkeys(range(n), 0)
        """Choices that have not ended, with their tokens so far."""
        self._prompt_counted = False
        self._failed = False

    def saw(self, events: Sequence[TokenEvent]) -> None:
        """These events came at once."""
        now = self._clock()
        lagging = {index for index, count in Counter(event.index for event in events).items() if count > 1}
        for event in events:
            if event.token_ids:
                self._saw_tokens(event, now, lagging=event.index in lagging)
            if event.finish_reason is not None and self._running.pop(event.index, None) is not None:
                self._saw_end(event, event.finish_reason)

    def close(self) -> None:
        """Nobody reads on: what has not ended was cancelled."""
        if not self._running and not self._failed:
            self._metrics.request_finished(self._clock() - self._arrived)
        for tokens in self._running.values():
            self._metrics.choice_finished(FinishReason.CANCELLED, tokens, None)
        self._running.clear()

    def _saw_end(self, event: TokenEvent, reason: FinishReason) -> None:
        self._metrics.choice_finished(reason, event.num_output_tokens, event.timings)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._saw_prompt()
        else:
            self._failed = True

    def _saw_prompt(self) -> None:
        if not self._prompt_counted:
            self._prompt_counted = True
            self._metrics.prompt_computed(self._num_prompt_tokens)

    def _saw_tokens(self, event: TokenEvent, now: float, *, lagging: bool) -> None:
        self._saw_prompt()
        if event.index in self._running:
            self._running[event.index] += len(event.token_ids)
        if event.index not in self._last:
            self._metrics.first_token(now - self._arrived)
        elif not lagging:
            # Events that lay ready together tell how slow the reader was, not how fast the engine is.
            self._metrics.next_tokens(now - self._last[event.index], len(event.token_ids))
        self._last[event.index] = now
