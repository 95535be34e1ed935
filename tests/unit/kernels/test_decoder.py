"""The one-call decoder layer against its reference for every family it covers, with LoRA; together equals alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from openlora_kernels import (
    DecoderLayer,
    DecoderWorkspace,
    LayerLora,
    LoraGroup,
    PackedLinear,
    Segments,
    decoder_layer_,
    torch_paths,
)
from openlora_kernels.native import native
from support.engine_kernels import Adapters, Ragged, assert_same_bits, ragged, randn

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 52, 44, 6, 2, 16
QUERIES, LENGTHS = (20, 1, 1), (33, 150, 1)
GROUPS = [
    LoraGroup(HIDDEN, (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM)),
    LoraGroup(HEADS * HEAD_DIM, (HIDDEN,)),
    LoraGroup(HIDDEN, (INTERMEDIATE, INTERMEDIATE)),
    LoraGroup(INTERMEDIATE, (HIDDEN,)),
]


def positive(seed: int, width: int) -> torch.Tensor:
    return randn(seed, width).abs() + 0.5


POST_NORMS = {"attention_post_norm": positive(1, HIDDEN), "mlp_post_norm": positive(2, HIDDEN)}
HEAD_NORMS = {"q_norm": positive(3, HEAD_DIM), "k_norm": positive(4, HEAD_DIM)}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"window": 9},
    "qwen2": {"bias": True},
    "qwen3": HEAD_NORMS,
    "phi3": {"rotary_dim": 8},
    "granite": {"residual_multiplier": 0.22, "scale": 0.1},
    "smollm3 without positions": {"rotary_dim": 0},
    "gemma2": {**POST_NORMS, "softcap": 3.0, "window": 20, "activation": "gelu_tanh"},
    "gemma3": {**POST_NORMS, **HEAD_NORMS, "window": 20, "activation": "gelu_tanh"},
    "post-norms alone": {**POST_NORMS, "attention_norm": None, "mlp_norm": None},
    "sinks": {"sinks": randn(5, HEADS)},
}


def linear(seed: int, out_features: int, in_features: int, *, bias: bool) -> PackedLinear:
    weight = randn(seed, out_features, in_features) * in_features**-0.5
    return PackedLinear.pack(weight, randn(seed + 1, out_features) if bias else None)


def make_layer(*, bias: bool = False, **options: Any) -> DecoderLayer:
    norms = {"attention_norm": positive(6, HIDDEN), "mlp_norm": positive(7, HIDDEN)}
    constants = {"eps": 1e-5, "scale": HEAD_DIM**-0.5}
    return DecoderLayer(
        qkv=linear(10, (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, bias=bias),
        o=linear(20, HIDDEN, HEADS * HEAD_DIM, bias=bias),
        gate_up=linear(30, 2 * INTERMEDIATE, HIDDEN, bias=bias),
        down=linear(40, HIDDEN, INTERMEDIATE, bias=bias),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        **{**norms, **constants, **options},
    )


def make_batch() -> tuple[Ragged, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch, its hidden rows, cos and sin as Hugging Face lays them out."""
    data = ragged(0, LENGTHS, QUERIES, kv_heads=KV_HEADS, head_dim=HEAD_DIM, block_size=4)
    angle = randn(8, data.num_tokens, HEAD_DIM // 2)
    cos, sin = (torch.cat((t, t), dim=1) for t in (angle.cos(), angle.sin()))
    return data, randn(9, data.num_tokens, HIDDEN), cos, sin


def tables_for(layer: DecoderLayer, table: torch.Tensor) -> torch.Tensor:
    half = layer.rotary_width // 2
    return torch.cat((table[:, :half], table[:, :half]), dim=1)


def make_lora(segments: Segments) -> LayerLora:
    ranks = [[[4, 0, 2], [3], [0, 0], [5]], [[16, 16, 16], [8], [8, 16], [1]]]
    adapters = Adapters(GROUPS, ranks, torch.float16)
    lora = LayerLora(segments, adapters.tables, (0, 1, 2, 3))
    lora.tables.owner = adapters  # type: ignore[attr-defined]  # the tables hold addresses only
    return lora


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_equals_the_composed_reference(family: str, with_lora: bool) -> None:
    layer = make_layer(**FAMILIES[family])
    data, hidden, cos, sin = make_batch()
    cos, sin = tables_for(layer, cos), tables_for(layer, sin)
    lora = make_lora(Segments.of([(1, [21]), (0, list(range(15)))])) if with_lora else None
    results = []
    for forced in (False, True):
        caches, rows = [cache.clone() for cache in (data.k_cache, data.v_cache)], hidden.clone()
        arguments = (rows, layer, *caches, data.batch, cos, sin, DecoderWorkspace([layer], 32), lora)
        if forced:
            with torch_paths():
                decoder_layer_(*arguments)
        else:
            decoder_layer_(*arguments)
        results.append((rows, *(cache.nan_to_num() for cache in caches)))
    assert (results[0][0] - hidden).abs().max() > 0.1
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_sequence_alone_has_the_bits_it_has_in_the_batch(family: str) -> None:
    layer = make_layer(**FAMILIES[family])
    data, hidden, cos, sin = make_batch()
    workspace = DecoderWorkspace([layer], 32)
    together = hidden.clone()
    caches = data.k_cache.clone(), data.v_cache.clone()
    lora = make_lora(Segments.of([(1, [21]), (0, list(range(15)))]))
    decoder_layer_(together, layer, *caches, data.batch, cos, sin, workspace, lora, next_caches=caches)
    first, batch = data.rows(0, 0, 20)
    alone = hidden[first : first + 20].clone()
    caches = data.k_cache.clone(), data.v_cache.clone()
    lora = replace(lora, segments=Segments.of([(0, list(range(15)))]))
    decoder_layer_(alone, layer, *caches, batch, cos[first:], sin[first:], workspace, lora)
    assert_same_bits(alone, together[first : first + 20])


def test_a_prompt_in_chunks_has_the_bits_of_the_whole() -> None:
    layer = make_layer()
    data = ragged(0, [40], [40], kv_heads=KV_HEADS, head_dim=HEAD_DIM, block_size=4)
    hidden, angle = randn(9, 40, HIDDEN), randn(8, 40, HEAD_DIM // 2)
    workspace = DecoderWorkspace([layer], 40)
    whole = hidden.clone()
    decoder_layer_(
        whole, layer, data.k_cache.clone(), data.v_cache.clone(), data.batch, angle.cos(), angle.sin(), workspace
    )
    for begin, end in ((0, 1), (1, 17), (17, 40)):
        _, batch = data.rows(0, begin, end)
        part = hidden[begin:end].clone()
        cos, sin = angle[begin:end].cos(), angle[begin:end].sin()
        decoder_layer_(part, layer, data.k_cache, data.v_cache, batch, cos, sin, workspace)
        assert_same_bits(part, whole[begin:end])


def test_a_layer_of_another_dtype_takes_the_composed_path() -> None:
    layer = make_layer(attention_norm=positive(6, HIDDEN).double())
    assert layer.native is None


def test_what_does_not_fit_is_refused() -> None:
    layer = make_layer()
    data, hidden, cos, sin = make_batch()
    workspace, caches = DecoderWorkspace([layer], 32), (data.k_cache, data.v_cache)
    with pytest.raises(ValueError, match="exceed the workspace"):
        decoder_layer_(hidden, layer, *caches, data.batch, cos, sin, DecoderWorkspace([layer], 3))
    with pytest.raises(ValueError, match="do not fit 2 heads"):
        decoder_layer_(hidden, layer, *(c[..., :8] for c in caches), data.batch, cos, sin, workspace)
    with pytest.raises(ValueError, match="rotary dims"):
        decoder_layer_(hidden, layer, *caches, data.batch, cos[:, :6], sin[:, :6], workspace)


@pytest.mark.skipif(native() is None, reason="torch raises its own errors for indices")
def test_indices_and_adapters_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    layer = make_layer()
    data, hidden, cos, sin = make_batch()
    workspace, caches = DecoderWorkspace([layer], 32), (data.k_cache, data.v_cache)
    before = hidden.clone()
    outside = replace(data.batch, slot_mapping=data.batch.slot_mapping + 10_000)
    swapped = replace(make_lora(Segments.of([(0, [0])])), groups=(1, 0, 2, 3))
    beyond = make_lora(Segments.of([(0, [99])]))
    for batch, lora in ((outside, None), (data.batch, swapped), (data.batch, beyond)):
        with pytest.raises(ValueError, match="out of range"):
            decoder_layer_(hidden, layer, *caches, batch, cos, sin, workspace, lora)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "evenly"),
        ({"num_heads": 4}, "do not fit"),
        ({"activation": "relu"}, "activation must be"),
        ({"rotary_dim": 7}, "rotary_dim"),
        ({"mlp_norm": torch.ones(3)}, "norms of the residual stream"),
        ({"q_norm": torch.ones(3)}, "q_norm"),
        ({"down": PackedLinear.pack(torch.ones(HIDDEN, 8))}, "twice as wide"),
    ],
)
def test_layers_whose_parts_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_layer(), **change)
