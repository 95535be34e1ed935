"""llama.cpp's server, under `build/peers/llamacpp/bin/python -m benchmarks.engine.peers.llamacpp_worker`.

The server is the wheel's own, in this process, asked over loopback HTTP with one thread a request.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import xllamacpp

from ..trace import Run, Trace
from ..workloads import Request, Workload
from .serve import PeerSetup, serve


class LlamaServer:
    """One server for all workloads of a process."""

    def __init__(self, setup: PeerSetup) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = setup.model
        parameters.n_ctx = 1024 * int(setup.settings["n_parallel"])
        parameters.cache_prompt = False
        parameters.ui = False
        parameters.lora_init_without_apply = True  # each request says which
        adapters = []
        for path in setup.adapters.values():
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = path, 0.0
            adapters.append(adapter)
        parameters.lora_adapters = adapters
        for name, value in setup.settings.items():
            if name == "n_threads":
                parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = value
            elif name == "poll":
                parameters.cpuparams.poll = parameters.cpuparams_batch.poll = value
            else:
                setattr(parameters, name, value)
        self._index = {name: index for index, name in enumerate(setup.adapters)}
        self._server = xllamacpp.Server(parameters)
        self._address = urlsplit(self._server.listening_address).netloc

    def run(self, workload: Workload) -> Run:
        """Serve one workload. Raises RuntimeError when a request failed."""
        traces = [Trace(request.arrival_s) for request in workload.requests]
        began = time.perf_counter()
        threads = [
            threading.Thread(target=self._ask, args=(request, trace, began))
            for request, trace in zip(workload.requests, traces, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for request, trace in zip(workload.requests, traces, strict=True):
            if len(trace.token_times) != request.max_tokens:
                raise RuntimeError(f"{len(trace.token_times)} of {request.max_tokens} tokens came")
        return Run(tuple(traces))

    def _ask(self, request: Request, trace: Trace, began: float) -> None:
        # Every adapter is named: one that is left out keeps the scale it was loaded with.
        scales = [{"id": index, "scale": float(name == request.adapter)} for name, index in self._index.items()]
        body = {
            "prompt": list(request.prompt),
            "n_predict": request.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
            "timings_per_token": True,
            "lora": scales,
        }
        time.sleep(max(0.0, began + request.arrival_s - time.perf_counter()))
        connection = http.client.HTTPConnection(self._address)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                # The stream holds tokens back while a character is incomplete and then names only the last: count them.
                counted = event["timings"]["predicted_n"] - len(trace.token_times)
                trace.token_times += [time.perf_counter() - began] * counted
                trace.tokens += event["tokens"]
        connection.close()


def start(setup: PeerSetup) -> Callable[[Workload], Run]:
    """Start the server."""
    return LlamaServer(setup).run


if __name__ == "__main__":
    serve(start)
