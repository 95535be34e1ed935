"""The demo's datasets and adapters as they are committed: whole, small, by wallets that the demo knows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from openlora_chain.devnet.accounts import dev_accounts
from openlora_node.protocol.ids import parse_address
from openlora_node.protocol.manifest import canonical_json

DEMO = Path(__file__).parents[3] / "configs" / "demo"
NAMES = ("haiku", "json", "pirate")


def test_there_is_one_adapter_a_dataset() -> None:
    assert sorted(path.stem for path in (DEMO / "datasets").glob("*.jsonl")) == list(NAMES)
    assert sorted(path.name for path in (DEMO / "adapters").iterdir()) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_is_canonical_lines_of_a_few_contributors(name: str) -> None:
    data = (DEMO / "datasets" / f"{name}.jsonl").read_bytes()
    lines = data.splitlines()
    samples = [json.loads(line) for line in lines]
    assert [canonical_json(sample) for sample in samples] == lines
    assert 60 <= len({str(sample["sample"]) for sample in samples}) == len(lines) <= 150
    assert {sample["licence"] for sample in samples} == {"CC-BY-4.0"}
    by = Counter(parse_address(sample["contributor"]) for sample in samples)
    assert 2 <= len(by) <= 4
    assert set(by) <= set(dev_accounts().values())
    for sample in samples:
        assert [message["role"] for message in sample["sample"]["messages"]] == ["user", "assistant"]
    if name == "json":
        assert all(set(json.loads(one["sample"]["messages"][1]["content"])) == {"topic", "answer"} for one in samples)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_small_and_names_what_it_was_trained_on(name: str) -> None:
    folder = DEMO / "adapters" / name
    weights, config = folder / "adapter_model.safetensors", json.loads((folder / "adapter_config.json").read_bytes())
    assert weights.stat().st_size <= 2_000_000
    assert (config["r"], config["base_model_name_or_path"]) == (8, "smollm2-135m-instruct")
    with safe_open(weights, framework="numpy") as file:
        assert len(file.keys()) == 30 * len(config["target_modules"]) * 2
    recipe = json.loads((folder / "recipe.json").read_bytes())
    canonical_json(recipe)  # fit for a manifest: no floats
    (dataset,) = recipe["datasets"]
    data = (DEMO / "datasets" / f"{name}.jsonl").read_bytes()
    assert dataset == {
        "file": f"{name}.jsonl",
        "samples": data.count(b"\n"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert recipe["rank"] == config["r"]
    assert recipe["target_modules"] == config["target_modules"]
