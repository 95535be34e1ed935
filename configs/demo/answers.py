"""Writes what the demo's adapters and the base alone answer, greedily, for benchmarks/attribution.py to trace.

    python configs/demo/answers.py BASE_FOLDER OUT.json [--prompts N]

The questions are the first N of each dataset; token ids only, so that tracing needs no model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).resolve().parent
NAMES = ("haiku", "json", "pirate")
MAX_TOKENS = 48

console = Console(highlight=False, markup=False, soft_wrap=True)


def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[list[int]]:
    """Greedy token ids, up to the end token."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.inference_mode():
        out = model.generate(**given, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end)[
            :, given["input_ids"].shape[1] :
        ].tolist()
    return [row[: row.index(end)] if end in row else row for row in out]


def main() -> None:
    """Generate for each adapter and for the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or "<|im_end|>"
    found = {}
    for name in NAMES:
        lines = (DEMO / "datasets" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[: options.prompts]
        questions = [json.loads(line)["sample"]["messages"][0]["content"] for line in lines]
        base = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
        alone = answers(base, tokenizer, questions)
        adapted = answers(PeftModel.from_pretrained(base, DEMO / "adapters" / name), tokenizer, questions)
        found[name] = {"questions": questions, "base": alone, "adapter": adapted}
        options.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        console.print(f"{name}: {tokenizer.decode(alone[0])[:80]} | {tokenizer.decode(adapted[0])[:80]}")


if __name__ == "__main__":
    main()
