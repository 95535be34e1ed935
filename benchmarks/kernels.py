"""The CPU kernels beside torch, in one run: GEMM, LoRA, attention, and the decoder step of a 135M model.

Run `python benchmarks/kernels.py [--quick] [--json]`. Every row times both sides in turn, so that what disturbs the
machine disturbs both; weights rotate through more memory than the last-level cache holds, as they do in a model. Shapes
are SmolLM2-135M's: 30 layers, 576 wide, 9 and 3 heads of 64, MLP 1536, 49,152 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from openlora_kernels import (  # before torch: see openlora_kernels.openmp
    AttentionBatch,
    BlobLayout,
    DecoderLayer,
    DecoderWorkspace,
    LayerLora,
    LoraGroup,
    LoraTables,
    PackedLinear,
    Segments,
    decoder_layer_,
    group_weights,
    huge_empty,
    lora_apply_,
    native_status,
    paged_attention,
    rms_norm,
)
from openlora_kernels import lora as lora_module

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip # noqa: N812
from torch import Tensor  # isort: skip

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY = 30, 576, 9, 3, 64, 1536, 49_152
BLOCK_SIZE, ADAPTERS, RANK = 16, 16, 16
KV_WIDTH = KV_HEADS * HEAD_DIM
GROUPS = (
    LoraGroup(HIDDEN, (HIDDEN, KV_WIDTH, KV_WIDTH)),
    LoraGroup(HIDDEN, (HIDDEN,)),
    LoraGroup(HIDDEN, (MLP, MLP)),
    LoraGroup(MLP, (HIDDEN,)),
)
BEYOND_CACHE = 96 << 20


@dataclass(frozen=True)
class Row:
    """Milliseconds (median, least) of ours and of what it is held against; `ratio` is theirs over ours."""

    what: str
    shape: str
    against: str
    ours_ms: float
    ours_least_ms: float
    theirs_ms: float
    theirs_least_ms: float
    ratio: float


def race(what: str, shape: str, against: str, ours: Callable[[], object], theirs: Callable[[], object], n: int) -> Row:
    """Time both in turn `n` times."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(n):
        for taken, call in zip(times, (ours, theirs), strict=True):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    (mine, least), (other, other_least) = ((statistics.median(taken), min(taken)) for taken in times)
    return Row(what, shape, against, mine, least, other, other_least, other / mine)


def rotating(shape: tuple[int, ...], nbytes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs of tensors, more of them than the last-level cache holds."""
    return itertools.cycle([(torch.randn(shape), torch.randn(shape)) for _ in range(max(2, BEYOND_CACHE // nbytes))])


def gemm(rows: Sequence[int], repeats: int) -> Iterator[Row]:
    """The packed GEMM against F.linear (MKL in torch's wheels)."""
    for k, n in ((576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49_152)):
        copies = max(2, BEYOND_CACHE // (4 * k * n))
        weights = [torch.randn(n, k) for _ in range(copies)]
        plain, packed = itertools.cycle(weights), itertools.cycle([PackedLinear.pack(w) for w in weights])
        for m in rows:
            x, out = torch.randn(m, k), torch.empty(m, n)
            yield race(
                *("gemm", f"{m} x {k} -> {n}", "F.linear"),
                lambda x=x, out=out, weights=packed: next(weights)(x, out),
                lambda x=x, weights=plain: F.linear(x, next(weights)),
                max(5, min(repeats, int(2e11 / (2 * m * k * n)))),
            )


def random_adapters(groups: Sequence[LoraGroup], count: int, dtype: torch.dtype) -> tuple[LoraTables, list[Tensor]]:
    """Tables of `count` slots of rank RANK on every target, and the memory that they point into."""
    tables, blobs = LoraTables(groups, count, dtype), []
    for slot in range(count):
        layout = BlobLayout.of(groups, [[RANK] * group.num_targets for group in groups], dtype)
        blob = huge_empty(layout.nbytes)
        for index, group in enumerate(groups):
            weights = group_weights(blob, layout, group, index, dtype)
            for part in (weights.a, *weights.b):
                part.copy_(torch.randn(part.shape) * 0.02)
            weights.scale.fill_(1.0)
        tables.set(slot, blob.data_ptr(), layout)
        blobs.append(blob)
    return tables, blobs


def lora(repeats: int) -> Iterator[Row]:
    """A decode batch of 32 rows under 16 adapters, and one prompt of 512 under one, against slices in torch."""
    groups = GROUPS * LAYERS
    tables, _memory = random_adapters(groups, ADAPTERS, torch.float16)
    decode = Segments.of([(slot, [slot, slot + ADAPTERS]) for slot in range(ADAPTERS)])
    prompt = Segments.of([(0, list(range(512)))])
    for (number, group), (name, segments, m) in itertools.product(
        enumerate(GROUPS), (("decode", decode, 32), ("prompt", prompt, 512))
    ):
        x, y = torch.randn(m, group.in_features), torch.zeros(m, group.columns[-1])
        layer = itertools.cycle(range(number, len(groups), len(GROUPS)))
        yield race(
            *(f"lora {name}", f"{m} x {group.in_features} -> {'+'.join(map(str, group.out_features))}", "torch slices"),
            lambda x=x, y=y, s=segments, at=layer: lora_apply_(y, x, s, tables, next(at)),
            lambda x=x, y=y, s=segments, at=layer: lora_module.reference(y, x, s, tables, next(at)),
            repeats,
        )


def batch_of(lengths: Sequence[int], queries: Sequence[int]) -> AttentionBatch:
    """Sequences of `lengths` tokens whose last `queries` are computed, in blocks one after another."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    starts = [0, *itertools.accumulate(counts)]
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for s, count in enumerate(counts):
        tables[s, :count] = torch.arange(starts[s], starts[s] + count)
    positions = [p for length, query in zip(lengths, queries, strict=True) for p in range(length - query, length)]
    owner = [s for s, query in enumerate(queries) for _ in range(query)]
    slots = [starts[s] * BLOCK_SIZE + p for s, p in zip(owner, positions, strict=True)]
    return AttentionBatch(
        cu_seqlens_q=torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.tensor(slots),
        positions=torch.tensor(positions),
        block_size=BLOCK_SIZE,
        max_query_len=max(queries),
        max_seq_len=max(lengths),
    )


def attention(repeats: int) -> Iterator[Row]:
    """Paged attention against SDPA on keys that lie ready and contiguous (which a server would have to gather)."""
    for sequences, length, query in ((1, 100, 1), (32, 100, 1), (1, 4096, 1), (1, 512, 512), (1, 4096, 512)):
        blocks = sequences * -(-length // BLOCK_SIZE)
        nbytes = 8 * sequences * length * KV_WIDTH
        cache = rotating((blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), nbytes)
        ready = rotating((sequences, KV_HEADS, length, HEAD_DIM), nbytes)
        batch = batch_of([length] * sequences, [query] * sequences)
        q = torch.randn(sequences * query, HEADS, HEAD_DIM)
        padded = q.view(sequences, query, HEADS, HEAD_DIM).transpose(1, 2)
        mask = torch.ones(query, length, dtype=torch.bool).tril(length - query)
        options = {"attn_mask": None if query in (1, length) else mask, "is_causal": query == length > 1}

        yield race(
            *("attention", f"{sequences} x {query} rows, {length} keys", "SDPA, contiguous"),
            lambda q=q, cache=cache, batch=batch: paged_attention(q, *next(cache), batch, scale=0.125),
            lambda q=padded, ready=ready, options=options: F.scaled_dot_product_attention(
                q, *next(ready), enable_gqa=True, **options
            ),
            repeats if query == 1 else max(5, repeats // 5),
        )


class Model:
    """Random weights in SmolLM2-135M's shapes."""

    def __init__(self) -> None:
        self.layers = [self._layer() for _ in range(LAYERS)]
        self.head = self._linear(VOCABULARY, HIDDEN)
        self.norm = torch.ones(HIDDEN)
        self.caches = [tuple(torch.randn(2, 512, BLOCK_SIZE, KV_HEADS, HEAD_DIM)) for _ in range(LAYERS)]
        self.workspace = DecoderWorkspace(self.layers, 512)

    @staticmethod
    def _linear(out_features: int, in_features: int) -> PackedLinear:
        return PackedLinear.pack(torch.randn(out_features, in_features) * in_features**-0.5)

    def _layer(self) -> DecoderLayer:
        return DecoderLayer(
            qkv=self._linear((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            o=self._linear(HIDDEN, HIDDEN),
            gate_up=self._linear(2 * MLP, HIDDEN),
            down=self._linear(HIDDEN, MLP),
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            eps=1e-5,
            scale=HEAD_DIM**-0.5,
            attention_norm=torch.ones(HIDDEN),
            mlp_norm=torch.ones(HIDDEN),
        )

    def step(self, hidden: Tensor, batch: AttentionBatch, segments: Segments | None, tables: LoraTables) -> Tensor:
        """Logits of each sequence's last row."""
        cos = sin = torch.full((hidden.shape[0], HEAD_DIM // 2), 0.7)
        for number, layer in enumerate(self.layers):
            first = number * len(GROUPS)
            lora = LayerLora(segments, tables, (first, first + 1, first + 2, first + 3)) if segments else None
            following = self.caches[(number + 1) % LAYERS]
            decoder_layer_(
                *(hidden, layer, *self.caches[number], batch, cos, sin, self.workspace, lora),
                next_caches=(following[0], following[1]),
            )
        last = batch.cu_seqlens_q[1:].long() - 1
        return self.head(rms_norm(hidden[last], self.norm, 1e-5))


def steps(repeats: int) -> Iterator[Row]:
    """Whole steps with adapters against the same steps of the base alone: `ratio` is the speed that is left."""
    model = Model()
    tables, _memory = random_adapters(GROUPS * LAYERS, ADAPTERS, torch.float16)
    for sequences, length, query in ((1, 100, 1), (8, 100, 1), (32, 100, 1), (1, 512, 512), (8, 64, 64)):
        batch = batch_of([length] * sequences, [query] * sequences)
        used = min(sequences, ADAPTERS)
        rows = [
            [r for s in range(slot, sequences, used) for r in range(s * query, s * query + query)]
            for slot in range(used)
        ]
        segments = Segments.of(enumerate(rows))
        hidden = torch.randn(sequences * query, HIDDEN)
        yield race(
            *("step", f"{sequences} x {query} rows, {length} keys, {used} adapters", "base alone"),
            lambda h=hidden, b=batch, s=segments: model.step(h.clone(), b, s, tables),
            lambda h=hidden, b=batch: model.step(h.clone(), b, None, tables),
            repeats if query == 1 else max(3, repeats // 5),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repetitions")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()
    rows = (1, 32) if arguments.quick else (1, 8, 32, 64, 512)
    repeats = 5 if arguments.quick else 25
    if not arguments.json:
        print(f"{native_status().split(' from ')[0]}, {torch.get_num_threads()} threads, ms: median (least)\n")
        print(f"{'':<15}{'':<42}{'ours':>18}   {'against':<34}{'ratio':>6}")
    with torch.inference_mode():
        for row in itertools.chain(gemm(rows, repeats), lora(repeats), attention(repeats), steps(repeats)):
            if arguments.json:
                print(json.dumps(asdict(row)), flush=True)
                continue
            ours = f"{row.ours_ms:.3f} ({row.ours_least_ms:.3f})"
            theirs = f"{row.against} {row.theirs_ms:.3f} ({row.theirs_least_ms:.3f})"
            print(f"{row.what:<15}{row.shape:<42}{ours:>18}   {theirs:<34}{row.ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
