"""A whole engine over a tiny random model, run to the end of its requests: what oracle tests compare."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openlora_engine.assembly import Assembly, wire
from openlora_engine.config import EngineConfig
from openlora_engine.engine import Engine
from openlora_engine.models.architectures import architecture_of
from openlora_engine.models.attention import register
from openlora_engine.models.loading import LoadedModel, rebuild
from openlora_engine.request import ChosenLogprob, FinishReason, GenerateRequest, TokenEvent
from openlora_engine.sampling.params import SamplingParams
from support.engine_adapters import tiny_config, tiny_model
from support.engine_tokenizer import VOCAB_SIZE, tiny_tokenizer

GIB = 1 << 30


@dataclass
class Loads:
    """Hears of adapter loads."""

    seen: list[str] = field(default_factory=list)

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        self.seen.append(tier)

    def adapter_load_failed(self, code: str) -> None:
        self.seen.append(code)


def llama(**changes: Any) -> Any:
    """The plain transformers model that every engine of a test file is made from."""
    return tiny_model(tiny_config(vocab_size=VOCAB_SIZE, **changes))


def rebuilt(causal_lm: Any, config: EngineConfig) -> LoadedModel:
    """A copy of the plain model, rebuilt for the engine."""
    model = copy.deepcopy(causal_lm)
    model.set_attn_implementation(register())
    return rebuild(
        model,
        architecture_of(model.config),
        max_model_len=config.max_model_len or None,
        eos_token_ids=frozenset(),
        max_num_tokens=config.max_num_batched_tokens,
    )


def world(causal_lm: Any, adapters: Path | None = None, **values: Any) -> Assembly:
    """An engine with fp32 adapters and small bounds; keyword arguments are EngineConfig's."""
    defaults: dict[str, Any] = {
        "adapters": adapters,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 4,
        "max_loras": 8,
        "host_cache": 64 << 20,
        "lora_dtype": "float32",
    }
    config = EngineConfig(**defaults | values)
    model = rebuilt(causal_lm, config)
    return wire(config, model, tiny_tokenizer(), Loads(), available=8 * GIB)


_NUMBERS = itertools.count()


def request(
    prompt: Sequence[int], adapter: str | None = None, max_tokens: int = 8, *, name: str = "", **changes: Any
) -> GenerateRequest:
    """Greedy and without an end unless said otherwise; SamplingParams' fields and `tenant`, `cache_salt` by keyword."""
    own = {key: changes.pop(key) for key in ("tenant", "cache_salt") if key in changes}
    params = SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True} | changes)
    return GenerateRequest(name or f"r{next(_NUMBERS)}", tuple(prompt), params, adapter, **own)


@dataclass
class Output:
    """Everything that one choice gave."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    last: TokenEvent | None = None

    @property
    def reason(self) -> FinishReason | None:
        return self.last.finish_reason if self.last else None


class Run:
    """Steps an engine and collects what it says; integrity is checked after every step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: dict[tuple[str, int], Output] = {}
        self.num_steps = 0

    def step(self) -> list[TokenEvent]:
        events = self.engine.step()
        self.num_steps += 1
        self.engine.check_integrity()
        for event in events:
            output = self.outputs.setdefault((event.request_id, event.index), Output())
            assert output.last is None, "an event after the last"
            output.token_ids += event.token_ids
            output.text += event.text
            output.logprobs += event.logprobs
            if event.finish_reason is not None:
                output.last = event
        return events

    def to_end(self, until: Callable[[], bool] = lambda: False) -> None:
        while self.engine.num_requests and not until():
            if not self.step():
                self.engine.wait_for_work(5.0)
                assert self.num_steps < 100_000, "the engine makes no progress"

    def all(self, requests: Iterable[GenerateRequest]) -> list[Output]:
        """Add all, run to the end; choice 0 of each."""
        added = list(requests)
        for one in added:
            self.engine.add(one)
        self.to_end()
        return [self.outputs[one.request_id, 0] for one in added]


def generate(assembly: Assembly, requests: Iterable[GenerateRequest]) -> list[Output]:
    """The outputs of requests that run together on an engine."""
    return Run(assembly.engine).all(requests)


def digests(assembly: Assembly, names: Iterable[str]) -> Mapping[str, str]:
    """The adapters' digests by name."""
    return {name: assembly.engine.adapters.resolve(name) for name in names}
