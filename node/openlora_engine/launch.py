"""From parsed flags to a serving process: start-up report, signals, drain."""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Mapping

from openlora_kernels import native_status

from .assembly import Assembly, assemble, model_folder
from .config import EngineConfig
from .metrics import EngineMetrics
from .server.options import ServerConfig
from .server.serve import serve, stopping_on_signals
from .service import EngineService

log = logging.getLogger(__name__)


async def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Load, serve, drain. Raises EngineError where start-up fails."""
    config = EngineConfig.from_arguments(options)
    server = ServerConfig.from_arguments(options, environment)
    name = config.served_model_name or model_folder(config).resolve().name
    metrics = EngineMetrics(name, server.metrics_prefix)
    began = time.monotonic()
    stop = asyncio.Event()
    with stopping_on_signals(stop):
        assembly = await asyncio.to_thread(assemble, config, metrics)
        _report(assembly, time.monotonic() - began)
        service = EngineService(assembly, metrics)
        try:
            await serve(service, server, stop, ready=lambda address: log.info("serving on %s", address))
        finally:
            await service.close()
    log.info("stopped")
    return 0


def _report(assembly: Assembly, seconds: float) -> None:
    """What was loaded, how fast it can be, and what memory it takes."""
    model = assembly.model
    log.info("%s (%s) on %s, loaded in %.1f s", model.name, model.architecture.model_type, model.device, seconds)
    log.info("%s; %d of %d layers fused", native_status(), model.num_fused_layers, len(model.kv_layers))
    log.info("%d adapters by name", assembly.engine.stats().adapters_registered)
    for line in assembly.plan.lines():
        log.info("memory: %s", line)
