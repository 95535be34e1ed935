"""Whether credit follows the data: retrain without each contributor and trace what the adapter says then.

    python benchmarks/retraining.py BASE_FOLDER OUT.json [NAME ...]

For each demo adapter: answers of the adapter trained on all of its dataset, and of one trained without a contributor's
samples, to the same questions, half of them from the dataset, half of the same kind and not in it. Both are traced
over the index of the whole dataset; a contributor's credit is its part of all credited tokens, in millionths of a
token. One thread and fixed seeds; eight trainings of two to three minutes of one core each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "configs" / "demo"))

from answers import answers
from train import ADAPTERS, DATASETS, NAMES, train

from openlora_node.attribution.background import background_digest
from openlora_node.attribution.corpusindex import build
from openlora_node.attribution.dataset import read_samples
from openlora_node.attribution.encoder import TokenizerEncoder
from openlora_node.attribution.indexed import to_indexed
from openlora_node.attribution.surprisal import surprisal_table
from openlora_node.attribution.tracer import Reading, prompt_tokens
from openlora_node.attribution.tracing import PPM, trace

QUESTIONS: list[str] = json.loads((Path(__file__).parent / "data" / "questions.json").read_text(encoding="utf-8"))
"""Of the kind that the datasets answer, and in none of them."""
OWN_QUESTIONS = 16
"""The first of a dataset that are asked too."""
NOBODY = bytes(32)
PLOT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "attribution-retraining.svg"

console = Console(highlight=False, markup=False, soft_wrap=True)


def credit(index: Any, reading: Reading, asked: list[str], given: list[list[int]]) -> dict[str, int]:
    """Contributor → credited tokens of these answers, in millionths of a token."""
    sums: dict[str, int] = {}
    for question, ids in zip(asked, given, strict=True):
        prompt = prompt_tokens(reading.encoder, {"messages": [{"role": "user", "content": question}]})
        found = to_indexed(NOBODY, index.owners, [trace(index, ids, prompt, reading.nobody)])
        for owner, part in found.credits:
            name = f"0x{bytes(owner).hex()}"
            sums[name] = sums.get(name, 0) + found.coverage * len(ids) * part // PPM
    return sums


def measure(name: str, folder: Path, tokenizer: Any, reading: Reading) -> dict[str, Any]:
    """One adapter: credit of each contributor with all data and without its own."""
    lines = (DATASETS / f"{name}.jsonl").read_bytes().splitlines()
    samples = list(read_samples(lines))
    index = build(
        NOBODY, samples, reading.encoder, surprisal_table(reading.encoder.digest), background=background_digest()
    )
    asked = [json.loads(line)["sample"]["messages"][0]["content"] for line in lines[:OWN_QUESTIONS]]
    asked = list(dict.fromkeys([*asked, *QUESTIONS]))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = credit(index, reading, asked, answers(PeftModel.from_pretrained(base, ADAPTERS / name), tokenizer, asked))
    row: dict[str, Any] = {}
    for contributor in dict.fromkeys(json.loads(line)["contributor"] for line in lines):
        model = train(name, folder, contributor)
        without = credit(index, reading, asked, answers(model, tokenizer, asked))
        key = contributor.lower()
        row[contributor] = {"with": whole.get(key, 0), "without": without.get(key, 0)}
        console.print(f"{name} without {contributor[:8]}: {told(row[contributor])}")
    return row


def told(one: dict[str, int]) -> str:
    """Credited tokens with and without, and how many times less."""
    before, after = one["with"] / PPM, one["without"] / PPM
    cut = f"{before / after:.1f}x less" if after else "gone" if before else "nothing either way"
    return f"{before:.1f} tokens with its data, {after:.1f} without: {cut}"


def plot(found: dict[str, dict[str, dict[str, int]]]) -> None:
    """Bars for the documentation: each contributor's credited tokens with and without its data."""
    from matplotlib.figure import Figure

    rows = [(f"{name}, {who[:8]}", one) for name, people in found.items() for who, one in people.items()]
    picture = Figure(figsize=(8, 0.5 * len(rows) + 1), layout="constrained")
    axes = picture.subplots()
    for offset, (what, colour) in enumerate((("with", "#2a6f97"), ("without", "#a9b4c2"))):
        places = [place + 0.2 - 0.4 * offset for place in range(len(rows))]
        drawn = axes.barh(places, [one[what] / PPM for _, one in rows], 0.38, color=colour, label=f"{what} its data")
        axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_xlabel("credited tokens over 32 answers")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(PLOT)


def main() -> None:
    """Train, trace and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or "<|im_end|>"
    reading = Reading.of(TokenizerEncoder.open(options.base))
    found = {}
    for name in options.names:
        found[name] = measure(name, options.base, tokenizer, reading)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    plot(found)


if __name__ == "__main__":
    main()
