"""What choosing tokens costs a step: 32 rows of 49,152 logits, by what the requests ask, beside torch's own operations.

`python benchmarks/sampling.py [--json] [--model DIR] [--threads N]`. Logits look like a language model's: a few likely
tokens above a broad floor. Each figure is the best of its rounds, in milliseconds a step of 32 rows; the rows on JSON
and text need the tokenizer of a model folder and are left out without one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from openlora_engine.sampling.constraints import GrammarCompiler
from openlora_engine.sampling.detokenizer import TextDecoder
from openlora_engine.sampling.output import OutputRules
from openlora_engine.sampling.params import Constraint, ConstraintKind, SamplingParams
from openlora_engine.sampling.sampler import Sampler
from openlora_engine.sampling.state import SamplingState
from openlora_kernels.native import native_status, torch_paths

ROWS, VOCAB = 32, 49_152
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age"],
}

CASES = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top-k 50": SamplingParams(temperature=0.8, top_k=50),
    "top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "min-p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "top-k 50, top-p 0.9": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "penalties, 600 tokens": SamplingParams(temperature=0.8, repetition_penalty=1.1, frequency_penalty=0.2),
    "logprobs 5": SamplingParams(temperature=0.8, logprobs=5),
}


def model_like_logits() -> torch.Tensor:
    """Floor N(0, 2.5) and, a row, 40 tokens that rise above it to about 16."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((ROWS, VOCAB)) * 2.5
    for row in range(ROWS):
        logits[row, rng.integers(0, VOCAB, 40)] = rng.uniform(8, 16, 40)
    return torch.from_numpy(logits.astype(np.float32))


def milliseconds(action: Callable[[], object], rounds: int = 40) -> float:
    """Best of the rounds."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return round(best * 1e3, 3)


def states(params: SamplingParams) -> list[SamplingState]:
    """One state a row, after a prompt of 500 tokens and 100 of output."""
    rng = np.random.default_rng(1)
    made = []
    for row in range(ROWS):
        prompt = rng.integers(0, VOCAB, 500).tolist()
        state = SamplingState(params, seed=row, index=0, vocab_size=VOCAB, prompt_token_ids=prompt, eos_token_ids=[2])
        for token_id in rng.integers(0, VOCAB, 100).tolist():
            state.accept(token_id)
        made.append(state)
    return made


def torch_top_p(logits: torch.Tensor) -> torch.Tensor:
    """The usual way: sort the vocabulary, sum, draw."""
    probabilities, order = (logits / 0.8).softmax(-1).sort(dim=-1, descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities > 0.95] = 0
    return order.gather(-1, torch.multinomial(probabilities, 1))


def measure(model: Path | None) -> dict[str, float]:
    """All figures, by name."""
    logits, sampler = model_like_logits(), Sampler(VOCAB)
    figures = {}
    for name, params in CASES.items():
        made = states(params)
        figures[name] = milliseconds(lambda made=made: sampler.sample(logits, made))  # type: ignore[misc]
    with torch_paths():
        for name in ("greedy", "temperature", "top-p 0.95"):
            made = states(CASES[name])
            action: Callable[[], object] = lambda made=made: sampler.sample(logits, made)  # type: ignore[misc] # noqa: E731
            figures[f"{name}, without the library"] = milliseconds(action, rounds=3)
    figures["torch: argmax"] = milliseconds(lambda: logits.argmax(-1))
    figures["torch: softmax and multinomial"] = milliseconds(lambda: torch.multinomial(logits.softmax(-1), 1))
    figures["torch: sort, top-p, multinomial"] = milliseconds(lambda: torch_top_p(logits), rounds=10)
    if model is not None:
        figures |= with_tokenizer(logits, sampler, model)
    return figures


def with_tokenizer(logits: torch.Tensor, sampler: Sampler, model: Path) -> dict[str, float]:
    """JSON-constrained rows, and the text of a step's tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    compiler = GrammarCompiler(tokenizer, VOCAB, [2])
    constraint = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA))
    started = time.perf_counter()
    grammar = compiler.compile(constraint)
    figures = {"JSON: first compile": round((time.perf_counter() - started) * 1e3, 1)}
    other = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA | {"title": "again"}))
    figures["JSON: another compile"] = milliseconds(lambda: compiler.compile(other), rounds=1)
    made = [
        SamplingState(CASES["temperature"], seed=row, index=0, vocab_size=VOCAB, eos_token_ids=[2], grammar=grammar)
        for row in range(ROWS)
    ]

    def step() -> None:
        for state, result in zip(made, sampler.sample(logits, made), strict=True):
            if result.error is None and not state.ended:
                state.accept(result.token_id)

    figures["JSON, with its matchers"] = milliseconds(step)
    rules = OutputRules(
        SamplingParams(max_tokens=10**6, stop=("\nUser:", "###")),
        TextDecoder(tokenizer),
        eos_token_ids=[2],
        num_prompt_tokens=1,
        max_model_len=10**6,
    )
    choices = [rules.choice() for _ in range(ROWS)]
    figures["text of 32 tokens, two stop strings"] = milliseconds(lambda: [choice.add(504) for choice in choices])
    compiler.close()
    return figures


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path, help="folder with a tokenizer of 49,152 tokens (SmolLM2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = measure(options.model)
    if options.json:
        print(json.dumps({"threads": options.threads, "milliseconds": figures}, indent=2))
        return
    print(f"{ROWS} rows of {VOCAB:,} logits, {options.threads} threads; {native_status()}")
    for name, value in figures.items():
        print(f"{name:40s} {value:9.3f} ms")


if __name__ == "__main__":
    main()
