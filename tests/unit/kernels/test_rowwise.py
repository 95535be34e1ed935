"""Norm, rotary embedding and gated activations against their references, tails and accuracy included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_kernels import activation, norm, rms_norm, rope, rope_, rope_and_write_kv, torch_paths
from openlora_kernels.activation import ACTIVATIONS, gated, gelu_tanh_mul, silu_mul
from support.engine_kernels import assert_same_bits, ragged, randn

SEEDS = st.integers(0, 1 << 30)
ROWS = st.integers(0, 7) | st.just(60)
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 577])


@settings(max_examples=40)
@given(seed=SEEDS, rows=ROWS, width=WIDTHS, pad=st.integers(0, 3))
def test_rms_norm_equals_its_reference(seed: int, rows: int, width: int, pad: int) -> None:
    x, weight = randn(seed, rows, width + pad)[:, :width] * 5, randn(seed + 1, width)
    expected = norm.reference(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-6)
    if rows:
        assert_same_bits(rms_norm(x[rows - 1 :], weight, 1e-5)[0], rms_norm(x, weight, 1e-5)[rows - 1])
    rms_norm(x, weight, 1e-5, out=x)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(seed=SEEDS, rows=ROWS, width=WIDTHS, kind=st.sampled_from(ACTIVATIONS))
def test_gated_activations_equal_their_reference(seed: int, rows: int, width: int, kind: str) -> None:
    gate_up = randn(seed, rows, 2 * width) * 10
    exact = activation.reference(gate_up.double(), kind).float()  # torch's own float32 GELU cancels far below 0
    torch.testing.assert_close(gated(gate_up, kind), exact, rtol=1e-5, atol=1e-6)


def test_named_activations_are_the_two() -> None:
    gate_up = randn(0, 3, 16)
    assert torch.equal(silu_mul(gate_up), gated(gate_up, "silu"))
    assert torch.equal(gelu_tanh_mul(gate_up), gated(gate_up, "gelu_tanh"))


def test_exponentials_are_accurate_over_the_whole_range() -> None:
    """For x far below 0 silu(x) is x e^x, so that its relative error shows that of the exponential."""
    x = torch.linspace(-85.0, 85.0, 100_000, dtype=torch.float64).float()
    ours = silu_mul(torch.stack((x, torch.ones_like(x)), dim=1)).double().squeeze(1)
    exact = x.double() / (1 + torch.exp(-x.double()))
    assert ((ours - exact) / exact).abs().max() < 1e-6
    extremes = torch.tensor([[-1e4, 1.0], [1e4, 1.0]])
    assert silu_mul(extremes).flatten().tolist() == [pytest.approx(0.0, abs=1e-30), 1e4]


@settings(max_examples=40)
@given(
    seed=SEEDS, rows=ROWS, heads=st.integers(1, 4), half=st.integers(0, 20), rest=st.integers(0, 9), full=st.booleans()
)
def test_rotation_equals_its_reference(seed: int, rows: int, heads: int, half: int, rest: int, full: bool) -> None:
    x = randn(seed, rows, heads + 1, 2 * half + rest)[:, :heads]
    angle = randn(seed + 1, rows, half)
    cos, sin = (torch.cat((t, t), dim=1) if full else t for t in (angle.cos(), angle.sin()))
    expected = x.clone()
    rope.reference(expected, cos, sin, 2 * half)
    rope_(x, cos, sin, 2 * half)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rotation_agrees_with_hugging_face() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = randn(0, 5, 4, 16), randn(1, 5, 2, 16)
    angle = randn(2, 5, 8)
    cos, sin = (torch.cat((t, t), dim=1) for t in (angle.cos(), angle.sin()))
    heads_first = (x.transpose(0, 1)[None] for x in (q, k))
    expected = modeling.apply_rotary_pos_emb(*heads_first, cos[None], sin[None])
    for x, wanted in zip((q, k), expected, strict=True):
        rope_(x, cos, sin)
        torch.testing.assert_close(x, wanted[0].transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_rotated_keys_reach_the_cache() -> None:
    data = ragged(0, [6], [3], kv_heads=2, head_dim=8, block_size=4)
    q, k, v = randn(1, 3, 4, 8), randn(2, 3, 2, 8), randn(3, 3, 2, 8)
    cos, sin = randn(4, 3, 4), randn(5, 3, 4)
    expected = k.clone()
    rope.reference(expected, cos, sin, 8)
    rope_and_write_kv(q, k, v, cos, sin, data.k_cache, data.v_cache, data.batch)
    stored = data.k_cache.view(-1, 2, 8)[data.batch.slot_mapping]
    torch.testing.assert_close(stored, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(data.v_cache.view(-1, 2, 8)[data.batch.slot_mapping], v)


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="rotary dims"):
        rope_(randn(0, 3, 2, 8), randn(1, 3, 5), randn(2, 3, 5))


def test_torch_paths_give_the_same() -> None:
    x, weight, gate_up = randn(0, 5, 24), randn(1, 24), randn(2, 5, 24)
    native_results = rms_norm(x, weight, 1e-5), silu_mul(gate_up), gelu_tanh_mul(gate_up)
    with torch_paths():
        torch_results = rms_norm(x, weight, 1e-5), silu_mul(gate_up), gelu_tanh_mul(gate_up)
    for actual, expected in zip(native_results, torch_results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
