"""A real engine on a tiny random model, as a node runs it: adapters by artifact id, a process under supervision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from openlora_node.config.schema import Config
from openlora_node.engineclient import Channel, EngineClient
from openlora_node.engineclient.command import engine_command
from openlora_node.engineclient.process import EngineProcess, ProcessOptions
from openlora_node.protocol.health import Level, ServiceHealth
from support.engine_adapters import peft_adapter, plain_adapter, targets_of
from support.engine_tokenizer import tiny_tokenizer
from support.engine_world import llama

MODEL = "tiny"
MODEL_DIGEST = "sha256:" + sha256(b"tiny").hexdigest()
SMALL = (
    *("--max-num-seqs", "8", "--max-loras", "4", "--max-num-batched-tokens", "64", "--kv-cache-memory", "8MiB"),
    *("--num-threads", "1", "--stream-buffer", "8"),
)


@dataclass(frozen=True)
class Store:
    """A data directory: a model, and adapters where the artifact store would put them."""

    root: Path
    adapters: dict[str, bytes] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Where an adapter lies."""
        text = self.adapters[name].hex()
        return self.config().adapters_dir / "sha256" / text[:2] / text

    def config(self, **engine: Any) -> Config:
        """The node's configuration; keyword arguments are the engine section's."""
        settings = {"host_cache": "64MiB", "grace": "20s"} | engine
        return Config(node={"data_dir": str(self.root)}, engine=settings)  # type: ignore[arg-type]

    @property
    def model(self) -> Path:
        """The base's folder."""
        return self.root / MODEL


def make_store(root: Path, names: Sequence[str] = ("a", "b", "c")) -> Store:
    """A store of a tiny model, adapters for it, and one adapter `other` of another model."""
    causal_lm = llama()
    store = Store(root, {name: sha256(name.encode()).digest() for name in (*names, "other")})
    causal_lm.save_pretrained(store.model)
    tiny_tokenizer().save_pretrained(store.model)
    for seed, name in enumerate(names, 1):
        peft_adapter(store.folder(name), causal_lm, seed=seed)
    plain_adapter(store.folder("other"), targets_of(llama(hidden_size=96)))
    return store


@dataclass(frozen=True)
class Running:
    """A supervised engine, its client, the healths that its supervisor told, and the supervisor's task."""

    client: EngineClient
    process: EngineProcess
    healths: list[ServiceHealth]
    task: asyncio.Task[None]
    changed: asyncio.Event

    async def until(self, wanted: Callable[[ServiceHealth], bool], *, after: Level | None = None) -> None:
        """Wait for a health like this; one told before the first of level `after` does not count."""
        async with asyncio.timeout(100):
            while not any(map(wanted, self._since(after))):
                self.changed.clear()
                await self.changed.wait()

    def _since(self, after: Level | None) -> list[ServiceHealth]:
        place = next((n for n, health in enumerate(self.healths) if health.level is after), 0)
        return self.healths[place:]


@asynccontextmanager
async def supervised(store: Store, socket: Path, *options: str, **times: float) -> AsyncIterator[Running]:
    """An engine that serves; killed on leaving. `options` are its flags, `times` those of ProcessOptions."""
    config = store.config(socket=str(socket))
    command = engine_command(config, config.all_engines[0], store.model, MODEL_DIGEST, (*SMALL, *options))
    healths: list[ServiceHealth] = []
    changed = asyncio.Event()

    def tell(health: ServiceHealth) -> None:
        healths.append(health)
        changed.set()

    async with EngineClient(Channel(socket=socket)) as client:
        process = EngineProcess(command, client.report, ProcessOptions(**({"watch_s": 0.2} | times)), on_change=tell)
        task = asyncio.create_task(process.run(), name="engine")
        try:
            async with asyncio.timeout(90):
                await process.ready()
            if task.done():
                await task
            yield Running(client, process, healths, task, changed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
