"""A served response is traced between its last token and its receipt, and the bundle proves what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openlora_node.attribution import Output, Part, export, verify
from openlora_node.attribution.epochs import Epochs
from openlora_node.attribution.indexed import PPM, read_datasets
from openlora_node.attribution.parts import Indexed
from openlora_node.journal import Reader
from support.attribution_corpus import owner
from support.serving_world import DATASET, DOMAIN, NODE, NODE_KEY, NOW, World

FOUND = Indexed(b"\x11" * 32, 1, 123_456, ((owner(3), PPM),))


def test_a_bundle_proves_what_was_traced_of_all_that_was_generated(tmp_path: Path) -> None:
    asked: list[tuple[Mapping[str, Any], Output]] = []

    async def trace(parts: tuple[Part, ...], prompt: Mapping[str, Any], output: Output) -> tuple[Part, ...]:
        asked.append((prompt, output))
        await asyncio.sleep(0)
        return tuple(
            replace(part, behind=tuple(replace(one, indexed=FOUND) for one in part.behind if one.artifact == DATASET))
            for part in parts
        )

    async def serve() -> None:
        async with World(tmp_path / "j.sqlite") as world:
            world.serving._desk.trace = trace
            await world.paid(max_tokens=5)

    asyncio.run(serve())
    with Reader(tmp_path / "j.sqlite") as reader:
        epochs = Epochs(reader, NODE, 3600)
        (stored,) = reader.receipts(NODE, 0, 10)
        root = epochs.root(epochs.number_at(stored.receipt.value.finished_at))
        assert root is not None
        data = export(reader, stored, epochs, NOW + 2 * 3600).encode()
    bundle = verify(data, root.root, DOMAIN, NODE_KEY.address)
    (found,) = read_datasets({leaf.name: leaf.value for leaf in bundle.evidence.attribution})
    assert (found.dataset, found.indexed) == (DATASET, FOUND)
    ((prompt, output),) = asked
    assert output.count == stored.receipt.value.completion_tokens > 0
    assert "messages" in prompt or "prompt" in prompt
