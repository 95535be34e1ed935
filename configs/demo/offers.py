"""What the demo has on offer: three datasets, three adapters trained on them, and their base, published and priced."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chain import Offer
from people import People
from stage import openlora, say

from openlora_node.artifacts import About
from openlora_node.artifacts import Kind as ArtifactKind
from openlora_node.artifacts.packing import Package
from openlora_node.attribution.dataset import read_samples, shares_by_size
from openlora_node.attribution.tracer import FOLDER
from openlora_node.chainview import Kind
from openlora_node.protocol.ids import format_artifact_id, parse_artifact_id

HERE = Path(__file__).resolve().parent
MODEL = Path(sys.prefix) / "share" / "openlora" / "models" / "smollm2-135m-instruct"
ADAPTERS = {"pirate": "adapter-owner", "haiku": "adapter-owner-2", "json": "adapter-owner-2"}
"""Name → who owns it."""
BASE_RATE, ADAPTER_RATE = 10**16, 5 * 10**16
"""Wei per 1,000,000 tokens: 0.01 and 0.05 OPEN."""
TO_BASE_BPS, TO_DATASET_BPS = 1_000, 4_000
"""What an adapter passes on of its royalties: a tenth to its base, four tenths to its data."""
BY_USE_BPS = 7_500
"""What of a dataset's income goes by what responses repeat of it; the rest goes by the size of contributions."""


@dataclass
class Offers:
    """Everything by name."""

    base: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    shares: dict[str, Path] = field(default_factory=dict)
    """Dataset → its share table, as claims need it."""
    on_chain: list[Offer] = field(default_factory=list)


def base_id() -> str:
    """The artifact id of the base model, as every node computes it from the same files."""
    with Package(MODEL, ArtifactKind.BASE, About(), follow_links=True) as package:
        return format_artifact_id(package.read(None, lambda done, total: None).manifest.id)


async def publish(config: Path, home: Path) -> Offers:
    """Put datasets and adapters into a node's store, which sends them to whoever may hold them."""
    offers = Offers()
    offers.base = await asyncio.to_thread(base_id)
    base_owner = People.wallet("base-owner")
    base = Offer("base", parse_artifact_id(offers.base), Kind.BASE, base_owner, (BASE_RATE, 0, []))
    offers.on_chain.append(base)
    for name, owner in ADAPTERS.items():
        source = HERE / "datasets" / f"{name}.jsonl"
        table = shares_by_size(list(read_samples(source.read_bytes().splitlines())))
        offers.shares[name] = home / f"{name}-shares.json"
        offers.shares[name].write_bytes(table.encode())
        about = ("--shares", offers.shares[name], "--licence", "CC-BY-4.0", "--config", config)
        offers.datasets[name] = (await openlora("artifacts", "publish", source, "--kind", "dataset", *about))[
            "artifact"
        ]
        adapter = await openlora(
            *("artifacts", "publish", HERE / "adapters" / name, "--base", offers.base),
            *("--dataset", offers.datasets[name], "--licence", "Apache-2.0", "--config", config),
        )
        offers.adapters[name] = adapter["artifact"]
        dataset = parse_artifact_id(offers.datasets[name])
        offers.on_chain.append(
            Offer(
                f"{name}.jsonl", dataset, Kind.DATASET, People.wallet("dataset-owner"), (0, BY_USE_BPS, []), table.root
            )
        )
        components = sorted([(base.artifact, TO_BASE_BPS), (dataset, TO_DATASET_BPS)])
        terms = (ADAPTER_RATE, 0, components)
        offers.on_chain.append(
            Offer(name, parse_artifact_id(offers.adapters[name]), Kind.ADAPTER, People.wallet(owner), terms)
        )
    say("published", f"{', '.join(ADAPTERS)}, each with the dataset it was trained on")
    return offers


async def index(offers: Offers, nodes: Sequence[Path], home: Path) -> None:
    """Index each dataset, once; give each node the indexes, so that it traces what it answers."""
    made = home / "indexes"

    async def build(name: str) -> int:
        source, where = HERE / "datasets" / f"{name}.jsonl", ("--tokenizer", MODEL, "--out", made / name)
        told = await openlora("attribution", "index", source, "--dataset", offers.datasets[name], *where)
        return int(told["tokens"])

    tokens = await asyncio.gather(*map(build, ADAPTERS))
    for node in nodes:
        await asyncio.to_thread(shutil.copytree, made, node / FOLDER)
    say("indexed", f"{sum(tokens):,} tokens of {len(tokens)} datasets: nodes find what a response repeats of them")
