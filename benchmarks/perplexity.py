"""What rounding the base's weights costs: perplexity, top-1 agreement, memory and speed of fp32, int8 and int4.

Run `python benchmarks/perplexity.py [--tokens N] [--text FILE] [--model DIR] [--json]`. The text is Python's own
reference, which every CPython carries (pydoc_data.topics), in windows of 512 tokens. Everything runs through the
engine's forward pass. int8 is what `--quantization int8` does. The engine offers no int4: its rows round to 4 bits
as torchao's CUDA kernel would (groups with a bfloat16 scale and offset) and compute in fp32, for quality alone.

The default model comes from a Q4_1 file, whose blocks of 32 weights an int4 of groups of 32 restores exactly: that row
flatters int4. `shuffled` rows group columns in a random order, as for weights that were never 4-bit; read those.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from openlora_engine.default_model import default_model_dir
from openlora_engine.models.architectures import Architecture, architecture_of
from openlora_engine.models.attention import register
from openlora_engine.models.context import ForwardContext
from openlora_engine.models.decoder import FusedDecoder
from openlora_engine.models.linear import LoraLinear
from openlora_engine.models.loading import LoadedModel, load_tokenizer, rebuild
from openlora_engine.models.quantization import stored_tensors
from openlora_kernels import AttentionBatch

WINDOW = 512
DECODE_STEPS = 32
BLOCK = 16
Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Figures:
    """One way to hold the weights. Speeds are None where nothing is offered that has them."""

    weights: str
    perplexity: float
    change: float
    top1_agreement: float
    megabytes: float
    prefill_per_second: float | None
    decode_per_second: float | None


def int4(group_size: int, *, shuffled: bool, seed: int = 0) -> Rounding:
    """Round [N, K] to 16 levels a group of `group_size` columns between its least and greatest weight."""

    def rounded(weight: Tensor) -> Tensor:
        n, k = weight.shape
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(k, generator=generator) if shuffled else torch.arange(k)
        groups = weight[:, order].reshape(n, k // group_size, group_size)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-6).bfloat16().float()
        middle = (low + 8 * scale).bfloat16().float()
        codes = ((groups - middle) / scale).round().clamp(-8, 7)
        out = torch.empty_like(weight)
        out[:, order] = (codes * scale + middle).reshape(n, k)
        return out

    return rounded


def load(folder: Path, *, quantization: str = "none", rounding: Rounding | None = None) -> LoadedModel:
    """The served model, its reachable linears rounded where asked."""
    causal_lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=register())
    causal_lm.eval().requires_grad_(requires_grad=False)
    architecture = architecture_of(causal_lm.config)
    if rounding is not None:
        for linear in reachable(causal_lm, architecture):
            linear.weight.copy_(rounding(linear.weight))
    return rebuild(causal_lm, architecture, quantization=quantization, max_num_tokens=WINDOW)


def reachable(causal_lm: nn.Module, architecture: Architecture) -> list[nn.Linear]:
    """The linears that quantisation touches."""
    layers = causal_lm.get_submodule(architecture.layers).children()
    paths = [path for group in architecture.projections for path in group]
    found = [layer.get_submodule(path) for layer in layers for path in paths]
    return [linear for linear in found if isinstance(linear, nn.Linear)]


class Sequence:
    """One sequence's KV cache and its place in it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.num_blocks = -(-(WINDOW + DECODE_STEPS) // BLOCK)
        self.caches = [
            (torch.zeros(shape), torch.zeros(shape))
            for geometry in model.kv_layers
            for shape in [(self.num_blocks, BLOCK, geometry.num_kv_heads, geometry.head_dim)]
        ]
        self.length = 0

    def feed(self, ids: Tensor, *, all_logits: bool) -> Tensor:
        """Logits [rows, V] of `ids` [T] appended to the sequence: of every row, or of the last."""
        start, self.length = self.length, self.length + len(ids)
        positions = torch.arange(start, self.length)
        batch = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, len(ids)], dtype=torch.int32),
            seq_lens=torch.tensor([self.length], dtype=torch.int32),
            block_tables=torch.arange(self.num_blocks, dtype=torch.int32)[None],
            slot_mapping=positions,
            positions=positions,
            block_size=BLOCK,
            max_query_len=len(ids),
            max_seq_len=self.length,
        )
        rows = torch.arange(len(ids)) if all_logits else torch.tensor([len(ids) - 1])
        return self.model.forward(ids, rows, ForwardContext(batch, self.caches))


@dataclass(frozen=True, eq=False)
class Result:
    """Figures, and the most likely token at every place of the text."""

    figures: Figures
    top1: Tensor


@torch.inference_mode()
def measure(name: str, model: LoadedModel, windows: Tensor, base: Result | None, weight_bits: float | None) -> Result:
    """Score every window, then decode greedily after the last one. `weight_bits`: of a rounding without a kernel."""
    loss, predictions, sequence = 0.0, [], Sequence(model)
    start = time.perf_counter()
    for window in windows:
        sequence.length = 0
        logits = sequence.feed(window, all_logits=True)[:-1]
        loss -= float(logits.log_softmax(-1).gather(1, window[1:, None]).sum())
        predictions.append(logits.argmax(-1))
    prefill = windows.numel() / (time.perf_counter() - start)
    token = predictions[-1][-1:]
    start = time.perf_counter()
    for _ in range(DECODE_STEPS):
        token = sequence.feed(token, all_logits=False).argmax(-1)
    decode = DECODE_STEPS / (time.perf_counter() - start)
    perplexity, top1 = math.exp(loss / (windows.shape[0] * (WINDOW - 1))), torch.cat(predictions)
    figures = Figures(
        weights=name,
        perplexity=perplexity,
        change=perplexity / base.figures.perplexity - 1 if base else 0.0,
        top1_agreement=float((top1 == base.top1).float().mean()) if base else 1.0,
        megabytes=megabytes(model, weight_bits),
        prefill_per_second=None if weight_bits else prefill,
        decode_per_second=None if weight_bits else decode,
    )
    return Result(figures, top1)


def megabytes(model: LoadedModel, weight_bits: float | None) -> float:
    """Of all weights as they are held, tied ones once; or what they would be with `weight_bits` a reachable weight."""
    if weight_bits:
        rounded = sum(target.in_features * target.out_features for target in model.targets)
        embedding = model.causal_lm.get_input_embeddings().weight.nbytes
        return (rounded * weight_bits / 8 + embedding) / 1e6
    held = {part.data_ptr(): part.nbytes for tensor in model.causal_lm.parameters() for part in stored_tensors(tensor)}
    packed = (module.nbytes for module in model.causal_lm.modules() if isinstance(module, LoraLinear | FusedDecoder))
    return (sum(held.values()) + sum(packed)) / 1e6


def benchmark(folder: Path, windows: Tensor, show: Callable[[Figures], None]) -> list[Figures]:
    """fp32 first, then everything against it."""
    base = measure("fp32", load(folder), windows, None, None)
    show(base.figures)
    found = [base.figures]
    candidates = [("int8 a channel", "int8", None, None)]
    for group in (32, 64):
        for shuffled in (False, True):
            name = f"int4 groups of {group}{', shuffled' if shuffled else ''}"
            candidates.append((name, "none", int4(group, shuffled=shuffled), 4 + 32 / group))
    for name, quantization, rounding, bits in candidates:
        model = load(folder, quantization=quantization, rounding=rounding)
        found.append(measure(name, model, windows, base, bits).figures)
        show(found[-1])
    return found


def text_windows(folder: Path, path: Path | None, tokens: int) -> Tensor:
    """The text's first `tokens` tokens, [windows, WINDOW]."""
    text = (
        path.read_text(encoding="utf-8") if path else "\n\n".join(topics.topics[key] for key in sorted(topics.topics))
    )
    ids = load_tokenizer(folder)(text[: tokens * 8])["input_ids"]
    count = min(tokens, len(ids)) // WINDOW
    if count == 0:
        raise SystemExit(f"the text has {len(ids)} tokens: {WINDOW} make a window")
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def show(f: Figures) -> None:
    """One line of the table."""
    speeds = "".join(
        f"{'–' if speed is None else format(speed, ',.0f'):>10}"
        for speed in (f.prefill_per_second, f.decode_per_second)
    )
    print(
        f"{f.weights:<28}{f.perplexity:>9.3f}{f.change:>+9.1%}{f.top1_agreement:>8.1%}{f.megabytes:>8,.0f}{speeds}",
        flush=True,
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the text")
    parser.add_argument("--text", type=Path, help="English text, UTF-8; default: Python's reference text")
    parser.add_argument(
        "--model", type=Path, default=default_model_dir(), help="default: the model that set-up converted"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    windows = text_windows(options.model, options.text, options.tokens)
    if options.json:
        print(json.dumps({"perplexity": [asdict(f) for f in benchmark(options.model, windows, lambda _: None)]}))
        return
    print(f"{'weights':<28}{'ppl':>9}{'change':>9}{'top-1':>8}{'MB':>8}{'prefill/s':>10}{'decode/s':>10}")
    benchmark(options.model, windows, show)


if __name__ == "__main__":
    main()
