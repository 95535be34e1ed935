"""The baselines that run in this process: transformers' generate and forward, and PEFT's mixed batch (`adapter_names`).

Both batch statically: whoever has arrived goes together, and the next batch waits for the longest of this one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

from .trace import Run, Trace
from .workloads import Request, Workload

MAX_BATCH = 32
BASE = "__base__"  # PEFT's name for rows without an adapter


class HuggingFace:
    """transformers in float32 with SDPA attention, its default; with adapters, wrapped by PEFT."""

    def __init__(self, model: Path, adapters: Mapping[str, Path] | None = None) -> None:
        self.name = "PEFT mixed batch" if adapters else "transformers generate"
        self._base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
        self._model: Any = self._base
        for name, folder in (adapters or {}).items():
            if self._model is self._base:
                self._model = peft.PeftModel.from_pretrained(self._base, folder, adapter_name=name)
            else:
                self._model.load_adapter(str(folder), adapter_name=name)
        self._adapters = bool(adapters)

    @torch.inference_mode()
    def run(self, workload: Workload) -> Run:
        """Serve in static batches of at most 32, in order of arrival."""
        traces = {request: Trace(request.arrival_s) for request in workload.requests}
        waiting = list(workload.requests)
        began = time.perf_counter()
        while waiting:
            time.sleep(max(0.0, began + waiting[0].arrival_s - time.perf_counter()))
            now = time.perf_counter() - began
            batch = [request for request in waiting[:MAX_BATCH] if request.arrival_s <= now]
            waiting = waiting[len(batch) :]
            self._generate(batch, [traces[request] for request in batch], began)
        return Run(tuple(traces.values()))

    @torch.inference_mode()
    def forward_s(self, prompt: Sequence[int]) -> float:
        """Seconds for one forward pass over a prompt, logits of its last token alone."""
        tokens = torch.tensor([prompt])
        began = time.perf_counter()
        self._model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    def close(self) -> None:
        """Drop the weights."""
        del self._model, self._base

    def _generate(self, batch: Sequence[Request], traces: Sequence[Trace], began: float) -> None:
        longest = max(len(request.prompt) for request in batch)
        pad = [longest - len(request.prompt) for request in batch]
        tokens = torch.tensor([[0] * left + list(request.prompt) for left, request in zip(pad, batch, strict=True)])
        mask = torch.tensor([[0] * left + [1] * (longest - left) for left in pad])
        clock = _Clock(began)
        output = max(request.max_tokens for request in batch)
        arguments: dict[str, Any] = {"adapter_names": [r.adapter or BASE for r in batch]} if self._adapters else {}
        result = self._model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=output,
            min_new_tokens=output,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[clock],
            **arguments,
        )
        for row, (request, trace) in enumerate(zip(batch, traces, strict=True)):
            trace.token_times = clock.times[: request.max_tokens]
            trace.tokens = result[row, longest : longest + request.max_tokens].tolist()


class _Clock(StoppingCriteria):
    """Called once a token by generate: notes the time, stops nothing."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter() - self._began)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
