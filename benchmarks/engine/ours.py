"""Our engine in this process, stepped by a thread of its own as its service does; requests come from another."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from openlora_engine.assembly import assemble
from openlora_engine.config import EngineConfig
from openlora_engine.request import GenerateRequest
from openlora_engine.sampling.params import SamplingParams

from .trace import Run, Trace
from .workloads import Request, Workload

IDLE_WAIT_S = 0.5


class OurEngine:
    """One engine over a folder of adapters; adapters are named as in the folder."""

    def __init__(self, adapters: Path | None = None, *, name: str = "OpenLoRA", **settings: Any) -> None:
        self.name = name
        self._loads = _Loads()
        self.config = EngineConfig(**{"adapters": adapters, "max_model_len": 2048} | settings)
        self._engine = assemble(self.config, self._loads).engine
        self._served = self._left = 0
        self._traces: dict[str, Trace] = {}
        self._began = 0.0
        self._failure: BaseException | None = None
        self._all_done = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._step, name="engine", daemon=True)
        self._thread.start()

    def run(self, workload: Workload) -> Run:
        """Serve one workload. Raises what the engine raised, or RuntimeError for a request that failed."""
        traces = [Trace(request.arrival_s) for request in workload.requests]
        self._all_done.clear()
        self._left = len(traces)
        self._began = time.perf_counter()
        for request, trace in zip(workload.requests, traces, strict=True):
            time.sleep(max(0.0, self._began + request.arrival_s - time.perf_counter()))
            self._add(request, trace)
        while not self._all_done.wait(1.0):
            if self._failure is not None:
                raise self._failure
        for request, trace in zip(workload.requests, traces, strict=True):
            if len(trace.tokens) != request.max_tokens:
                raise RuntimeError(f"{len(trace.tokens)} of {request.max_tokens} tokens came")
        return Run(tuple(traces))

    def resolve(self, *names: str) -> None:
        """Let the engine know adapters before anything is timed: their files are hashed at the first mention."""
        for name in names:
            self._engine.adapters.resolve(name)

    @property
    def loads(self) -> Counter[str]:
        """How many adapters were loaded out of `disk` and out of `host`, since the start."""
        return self._loads.counts

    @property
    def num_registered(self) -> int:
        """Adapters the engine knows by name."""
        return self._engine.stats().adapters_registered

    def close(self) -> None:
        """End the thread, drop the weights."""
        self._stopping = True
        self._engine.wake()
        self._thread.join()
        self._engine.close()
        del self._engine

    def _add(self, request: Request, trace: Trace) -> None:
        manager = self._engine.adapters
        digest = (
            None if request.adapter is None else manager.lookup(request.adapter) or manager.resolve(request.adapter)
        )
        self._served += 1
        request_id = str(self._served)
        self._traces[request_id] = trace
        params = SamplingParams(max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True)
        self._engine.add(GenerateRequest(request_id, request.prompt, params, adapter=digest))

    def _step(self) -> None:
        try:
            while not self._stopping:
                events = self._engine.step()
                now = time.perf_counter() - self._began
                for event in events:
                    trace = self._traces[event.request_id]
                    trace.token_times += [now] * len(event.token_ids)
                    trace.tokens += event.token_ids
                    if event.finish_reason is not None:
                        del self._traces[event.request_id]
                        self._left -= 1
                if not self._left:
                    self._all_done.set()
                if not events:
                    self._engine.wait_for_work(IDLE_WAIT_S)
        except BaseException as failure:
            self._failure = failure
            self._all_done.set()
            raise


@dataclasses.dataclass
class _Loads:
    """Counts loads by the tier that an adapter left."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        """As LoadObserver says."""
        self.counts[tier] += 1

    def adapter_load_failed(self, code: str) -> None:
        """As LoadObserver says."""
        self.counts[f"failed: {code}"] += 1
