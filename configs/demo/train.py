"""Trains the demo's adapters: `python configs/demo/train.py [NAME ...]`, a LoRA adapter a dataset, on a CPU in minutes.

Each folder of adapters/ gets PEFT's two files and `recipe.json`, the `recipe` of the adapter's manifest: what it was
trained on, by digest, and how. One thread, float32 and fixed seeds, so that one machine gives the same bytes twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
DATASETS, ADAPTERS = HERE / "datasets", HERE / "adapters"
BASE = "smollm2-135m-instruct"
NAMES = ("haiku", "json", "pirate")

SEED, STEPS, BATCH, MAX_TOKENS = 20_251_125, 112, 4, 96
RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "k_proj", "v_proj", "o_proj")
LEARNING_RATE, WARMUP = 1e-3, 8
IGNORED = -100
"""The label of tokens that are not to be learnt: the question and the template around it."""

Example = tuple[list[int], list[int]]
"""Token ids and labels of one sample."""

console = Console(highlight=False, markup=False, soft_wrap=True)


def examples(name: str, tokenizer: PreTrainedTokenizerFast, without: str = "") -> list[Example]:
    """The samples of a dataset as the chat template writes them; only the answer and its end are learnt.

    `without`: a contributor whose samples are left out.
    """
    found = []
    for line in (DATASETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        given = json.loads(line)
        if given["contributor"] == without:
            continue
        messages = given["sample"]["messages"]
        asked = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
        question = tokenizer.encode(asked, add_special_tokens=False)
        answer = tokenizer.encode(messages[-1]["content"] + "<|im_end|>", add_special_tokens=False)
        if len(question) + len(answer) > MAX_TOKENS:
            raise ValueError(f"a sample of {name} has more than {MAX_TOKENS} tokens: {messages[0]['content']!r}")
        found.append((question + answer, [IGNORED] * len(question) + answer))
    return found


def batch_of(chosen: list[Example], pad: int) -> dict[str, torch.Tensor]:
    """Samples padded on the right to the longest."""
    longest = max(len(ids) for ids, _ in chosen)
    rows = [(ids + [pad] * (longest - len(ids)), labels + [IGNORED] * (longest - len(ids))) for ids, labels in chosen]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in chosen]
    return {
        "input_ids": torch.tensor([ids for ids, _ in rows]),
        "labels": torch.tensor([labels for _, labels in rows]),
        "attention_mask": torch.tensor(mask),
    }


def loss_of(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the answers' tokens. Logits are computed for those alone: they are the dearest part."""
    decoder: PreTrainedModel = model.get_base_model()
    hidden = decoder.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    labels = batch["labels"][:, 1:]
    learnt = labels != IGNORED
    return torch.nn.functional.cross_entropy(decoder.lm_head(hidden[:, :-1][learnt]), labels[learnt])


def train(name: str, folder: Path, without: str = "") -> PeftModel:
    """An adapter for one dataset, or for it without one contributor's samples."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    samples = examples(name, tokenizer, without)
    order = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate)
    queue: list[int] = []
    began, shown = time.monotonic(), 0.0
    for step in range(1, STEPS + 1):
        if len(queue) < BATCH:
            queue = torch.randperm(len(samples), generator=order).tolist()
        chosen, queue = [samples[place] for place in queue[:BATCH]], queue[BATCH:]
        loss = loss_of(model, batch_of(chosen, tokenizer.pad_token_id or 0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        shown = loss.item() if step == 1 else 0.9 * shown + 0.1 * loss.item()
        if step % 8 == 0:
            console.print(f"{name}: step {step} of {STEPS}, loss {shown:.3f}, {time.monotonic() - began:.0f} s")
    return model


def _rate(step: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def save(name: str, model: PeftModel, seconds: float) -> None:
    """PEFT's two files, weights in float16, and the recipe."""
    folder = ADAPTERS / name
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.half().save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["target_modules"].sort()  # PEFT keeps them in a set, in another order each time
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps(recipe(name), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size = (folder / "adapter_model.safetensors").stat().st_size
    console.print(f"{name}: {size:,} bytes of weights after {seconds:.0f} s")


def recipe(name: str) -> dict[str, Any]:
    """How the adapter was trained: JSON without floats, as manifests want it."""
    data = (DATASETS / f"{name}.jsonl").read_bytes()
    return {
        "base": BASE,
        "batch": BATCH,
        "datasets": [
            {"file": f"{name}.jsonl", "samples": data.count(b"\n"), "sha256": hashlib.sha256(data).hexdigest()}
        ],
        "learning_rate": str(LEARNING_RATE),
        "lora_alpha": ALPHA,
        "max_tokens": MAX_TOKENS,
        "optimizer": "adamw",
        "rank": RANK,
        "seed": SEED,
        "steps": STEPS,
        "target_modules": sorted(TARGETS),
        "trainer": "peft",
        "warmup_steps": WARMUP,
    }


def main() -> None:
    """Train the adapters named, or all."""
    parser = argparse.ArgumentParser(description="Train the demo's adapters.")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="datasets; default: all")
    parser.add_argument("--base", type=Path, default=Path(sys.prefix) / "share/openlora/models" / BASE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    for name in options.names or NAMES:
        began = time.monotonic()
        save(name, train(name, options.base), time.monotonic() - began)


if __name__ == "__main__":
    main()
