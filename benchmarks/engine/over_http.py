"""Our engine as users run it: its own process, asked over a Unix socket, every token a server-sent event."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from .guard import Guard
from .trace import Run, Trace
from .workloads import Request, Workload

START_TIMEOUT_S = 120.0


class OurServer:
    """`python -m openlora_engine` over a folder of adapters. Raises RuntimeError when it does not start."""

    def __init__(self, adapters: Path, model: str = "smollm2-135m-instruct", *flags: str) -> None:
        self.name = "OpenLoRA over HTTP"
        self._model = model
        self._folder = tempfile.TemporaryDirectory(prefix="openlora-bench-")
        self._socket = Path(self._folder.name) / "engine.sock"
        self._log = (Path(self._folder.name) / "log").open("w+b")
        command = [sys.executable, "-m", "openlora_engine", "--adapters", str(adapters), "--uds", str(self._socket)]
        self._process = subprocess.Popen(
            [*command, "--max-model-len", "2048", *flags],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._guard = Guard(self._process.pid)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                log = self._log.read().decode(errors="replace")
                self.close()
                raise RuntimeError(f"the server did not start:\n{log[-4000:]}")
            time.sleep(0.05)

    def run(self, workload: Workload) -> Run:
        """Serve one workload."""
        return asyncio.run(self._run(workload))

    def close(self) -> None:
        """End the process."""
        self._guard.dismiss()
        self._process.terminate()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()

    async def _run(self, workload: Workload) -> Run:
        traces = [Trace(request.arrival_s) for request in workload.requests]
        connector = aiohttp.UnixConnector(str(self._socket), limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession("http://localhost", connector=connector, timeout=timeout) as session:
            began = time.perf_counter()
            asks = (
                self._ask(session, request, trace, began)
                for request, trace in zip(workload.requests, traces, strict=True)
            )
            await asyncio.gather(*asks)
        return Run(tuple(traces))

    async def _ask(self, session: aiohttp.ClientSession, request: Request, trace: Trace, began: float) -> None:
        body: dict[str, Any] = {
            "model": request.adapter or self._model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        await asyncio.sleep(began + request.arrival_s - time.perf_counter())
        async with session.post("/v1/completions", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    tokens = choices[0].get("token_ids") or [] if choices else []
                    trace.token_times += [time.perf_counter() - began] * len(tokens)
                    trace.tokens += tokens
        if len(trace.tokens) != request.max_tokens:
            raise RuntimeError(f"{len(trace.tokens)} of {request.max_tokens} tokens came")
