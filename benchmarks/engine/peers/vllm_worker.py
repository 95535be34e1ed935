"""vLLM's engine, under `build/peers/vllm/bin/python -m benchmarks.engine.peers.vllm_worker`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

from ..trace import Run, Trace
from ..workloads import Request, Workload
from .serve import PeerSetup, serve


@dataclass
class VllmEngine:
    """One engine for all workloads of a process."""

    engine: Any
    lora: dict[str, LoRARequest]

    @classmethod
    def start(cls, setup: PeerSetup) -> Callable[[Workload], Run]:
        """Load the model; adapters load on their first use, as in vLLM's server."""
        lora = {name: LoRARequest(name, index, path) for index, (name, path) in enumerate(setup.adapters.items(), 1)}
        arguments = EngineArgs(
            model=setup.model,
            enable_lora=bool(lora),
            max_model_len=1024,
            enable_prefix_caching=False,
            **setup.settings,
        )
        return cls(LLMEngine.from_engine_args(arguments), lora).run

    def run(self, workload: Workload) -> Run:
        """Serve one workload."""
        waiting = list(enumerate(workload.requests))[::-1]
        traces = [Trace(request.arrival_s) for request in workload.requests]
        began = time.perf_counter()
        while waiting or self.engine.has_unfinished_requests():
            now = time.perf_counter() - began
            while waiting and waiting[-1][1].arrival_s <= now:
                self._add(*waiting.pop())
            if not self.engine.has_unfinished_requests():
                time.sleep(max(0.0, waiting[-1][1].arrival_s - now))
                continue
            outputs = self.engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                trace, tokens = traces[int(output.request_id)], output.outputs[0].token_ids
                trace.token_times += [now] * (len(tokens) - len(trace.tokens))
                trace.tokens = list(tokens)
        return Run(tuple(traces))

    def _add(self, index: int, request: Request) -> None:
        self.engine.add_request(
            str(index),
            {"prompt_token_ids": list(request.prompt)},
            SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True, detokenize=False),
            lora_request=self.lora[request.adapter] if request.adapter is not None else None,
        )


if __name__ == "__main__":
    serve(VllmEngine.start)
