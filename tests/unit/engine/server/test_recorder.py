"""What events tell the metrics, by a clock that the test moves."""

from __future__ import annotations

import re

from openlora_engine.metrics import EngineMetrics, EngineStats
from openlora_engine.request import FinishReason, TokenEvent
from openlora_engine.server.recorder import Recorder
from support.engine_backend import BASE, TIMINGS


class World:
    """A recorder, its clock, and what it recorded."""

    def __init__(self, n: int = 1) -> None:
        self.now = 100.0
        self.metrics = EngineMetrics(BASE)
        self.recorder = Recorder(self.metrics, 7, n, self.now, clock=lambda: self.now)

    def saw(self, after: float, *events: TokenEvent) -> None:
        self.now += after
        self.recorder.saw(events)

    def value(self, name: str, **labels: str) -> float:
        wanted = {"model_name": BASE} | labels
        for line in self.metrics.expose(EngineStats()).decode().splitlines():
            match = re.fullmatch(r"openlora:(\w+)\{(.*)\} (\S+)", line)
            if match and match[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', match[2])) == wanted:
                return float(match[3])
        return 0.0


def token(index: int = 0, **fields) -> TokenEvent:
    return TokenEvent("r", index, (1,), **fields)


def end(index: int = 0, tokens: int = 0) -> TokenEvent:
    return TokenEvent("r", index, finish_reason=FinishReason.STOP, num_output_tokens=tokens, timings=TIMINGS)


def test_a_request_from_first_token_to_last() -> None:
    world = World()
    world.saw(2.0, token())
    world.saw(0.5, token())
    world.saw(0.25, token(), end(tokens=3))
    world.recorder.close()
    assert world.value("time_to_first_token_seconds_sum") == 2.0
    # The last token came with another event of its choice: how late the reader was is not known.
    assert world.value("inter_token_latency_seconds_sum") == 0.5
    assert world.value("inter_token_latency_seconds_count") == 1
    assert world.value("e2e_request_latency_seconds_sum") == 2.75
    assert world.value("generation_tokens_total") == 3
    assert world.value("prompt_tokens_total") == 7
    assert world.value("request_success_total", finished_reason="stop") == 1
    assert world.value("request_queue_time_seconds_sum") == TIMINGS.queue_s
    assert world.value("adapter_wait_seconds_sum", tier="host") == TIMINGS.adapter_wait_s
    assert world.value("adapter_requests_total", tier="host") == 1


def test_choices_of_one_step_do_not_count_as_lag() -> None:
    world = World(n=2)
    world.saw(1.0, token(0), token(1))
    world.saw(0.5, token(0), token(1))
    assert world.value("inter_token_latency_seconds_count") == 2
    assert world.value("time_to_first_token_seconds_count") == 2


def test_a_reader_that_lags_tells_nothing_of_the_engines_pace() -> None:
    world = World()
    world.saw(1.0, token())
    world.saw(60.0, token(), token(), token())
    assert world.value("inter_token_latency_seconds_count") == 0
    world.saw(0.5, token())
    assert world.value("inter_token_latency_seconds_sum") == 0.5


def test_who_leaves_counts_as_cancelled_with_the_tokens_so_far() -> None:
    world = World(n=2)
    world.saw(1.0, token(0), token(1))
    world.saw(1.0, end(0, tokens=1))
    world.saw(1.0, token(1))
    world.recorder.close()
    assert world.value("request_success_total", finished_reason="stop") == 1
    assert world.value("request_success_total", finished_reason="cancelled") == 1
    assert world.value("generation_tokens_total") == 3
    assert world.value("prompt_tokens_total") == 7
    assert world.value("e2e_request_latency_seconds_count") == 0


def test_what_failed_before_its_first_token_computed_no_prompt() -> None:
    world = World()
    world.saw(1.0, TokenEvent("r", 0, finish_reason=FinishReason.ERROR))
    world.recorder.close()
    assert world.value("request_success_total", finished_reason="error") == 1
    assert world.value("prompt_tokens_total") == world.value("e2e_request_latency_seconds_count") == 0
