"""The packed GEMM against torch over random shapes, and that a row never feels its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_kernels import PackedLinear, torch_paths
from openlora_kernels.native import native
from support.engine_kernels import assert_same_bits, randn

SEEDS = st.integers(0, 1 << 30)
ROWS = st.integers(0, 9) | st.integers(10, 70) | st.just(300)
WIDTHS = st.integers(1, 50) | st.sampled_from([191, 384, 385, 576, 1000])


def layer(seed: int, out_features: int, in_features: int, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    return randn(seed, out_features, in_features), randn(seed + 1, out_features) if bias else None


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result = x.double() @ weight.double().T
    return result if bias is None else result + bias.double()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, in_features: int) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=3e-6 * (1 + in_features))


@pytest.mark.slow
@settings(max_examples=60)
@given(seed=SEEDS, rows=ROWS, k=WIDTHS, n=WIDTHS, bias=st.booleans())
def test_product_equals_float64(seed: int, rows: int, k: int, n: int, bias: bool) -> None:
    weight, offset = layer(seed, n, k, bias=bias)
    x = randn(seed + 2, rows, k)
    assert_close(PackedLinear.pack(weight, offset)(x), exact(x, weight, offset), k)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=SEEDS, rows=ROWS, k=WIDTHS, n=WIDTHS, bias=st.booleans(), pad=st.integers(0, 5))
def test_strided_rows_and_accumulation_touch_nothing_else(
    seed: int, rows: int, k: int, n: int, bias: bool, pad: int
) -> None:
    weight, offset = layer(seed, n, k, bias=bias)
    x = randn(seed + 2, rows, k + pad)[:, pad:]
    memory = randn(seed + 3, rows, n + 2 * pad)
    before, out = memory.clone(), memory[:, pad : pad + n]
    PackedLinear.pack(weight, offset)(x, out, accumulate=True)
    assert_close(out, before[:, pad : pad + n].double() + exact(x, weight, offset), k)
    memory[:, pad : pad + n] = before[:, pad : pad + n]
    assert torch.equal(memory, before)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=SEEDS, rows=st.integers(1, 9) | st.integers(10, 300), k=WIDTHS, n=WIDTHS, data=st.data())
def test_a_row_is_the_same_in_any_batch(seed: int, rows: int, k: int, n: int, data: st.DataObject) -> None:
    linear = PackedLinear.pack(*layer(seed, n, k, bias=True))
    x = randn(seed + 2, rows, k)
    whole = linear(x)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    assert_same_bits(linear(x[begin:end]), whole[begin:end])


def test_threads_do_not_change_a_bit() -> None:
    linear = PackedLinear.pack(*layer(0, 1000, 577, bias=True))
    x = randn(2, 33, 577)
    with_all = linear(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same_bits(linear(x), with_all)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (24, 8), (25, 3), (100, 50)])
def test_packing_loses_nothing(n: int, k: int) -> None:
    weight, bias = layer(0, n, k, bias=True)
    linear = PackedLinear.pack(weight, bias)
    assert torch.equal(linear.unpacked(), weight)
    assert (linear.in_features, linear.out_features) == (k, n)
    assert linear.nbytes >= weight.nbytes + n * 4


def test_torch_path_gives_the_same() -> None:
    weight, bias = layer(0, 50, 30, bias=True)
    x, out = randn(2, 7, 30), randn(3, 7, 50)
    packed = PackedLinear.pack(weight, bias)
    with torch_paths():
        plain = PackedLinear.pack(weight, bias)
        assert not plain.packed
        results = [plain(x, out.clone(), accumulate=True), packed(x, out.clone(), accumulate=True)]
    for result in results:
        torch.testing.assert_close(result, packed(x, out.clone(), accumulate=True), rtol=1e-5, atol=1e-4)


def test_other_dtypes_stay_plain() -> None:
    weight = randn(0, 8, 16).bfloat16()
    linear = PackedLinear.pack(weight)
    assert not linear.packed
    assert linear(randn(1, 3, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.skipif(native() is None, reason="the torch path reports shapes in its own words")
@pytest.mark.parametrize(
    ("x", "out"),
    [((3, 5), None), ((4,), None), ((3, 4), (3, 7)), ((3, 4), (2, 6))],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple[int, ...], out: tuple[int, ...] | None) -> None:
    linear = PackedLinear.pack(randn(0, 6, 4))
    with pytest.raises(ValueError, match="must be float32"):
        linear(randn(1, *x), None if out is None else randn(2, *out))


def test_accumulating_into_nothing_and_a_wrong_bias_are_refused() -> None:
    with pytest.raises(ValueError, match="pass out"):
        PackedLinear.pack(randn(0, 6, 4))(randn(1, 3, 4), accumulate=True)
    with pytest.raises(ValueError, match="does not fit"):
        PackedLinear.pack(randn(0, 6, 4), randn(1, 4))
