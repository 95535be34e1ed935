"""The native sampler gives the specification's tokens exactly; the specification draws from the truncated softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from openlora_kernels import sampling
from openlora_kernels.native import native, torch_paths
from openlora_kernels.sampling import NOT_FINITE, NOTHING_ALLOWED, ROW


@pytest.fixture(params=["native", "torch"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both paths; where no library can be built both are the reference."""
    if request.param == "native":
        yield
    else:
        with torch_paths():
            yield


def table(count: int, **columns: Any) -> NDArray[np.void]:
    rows = np.zeros(count, dtype=ROW)
    defaults = {"row": np.arange(count), "temperature": 1, "top_p": 1, "min_s": -math.inf, "mask": -1}
    for name, values in (defaults | columns).items():
        rows[name] = values
    return rows


def allowed_by(masks: NDArray[np.int32], index: int, vocab: int) -> NDArray[np.bool_]:
    return np.array([bool(masks[index, token // 32] >> (token % 32) & 1) for token in range(vocab)])


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.void], NDArray[np.int32]]:
    """Logits with ties and impossible tokens, any parameters, masks."""
    vocab = draw(st.sampled_from([1, 2, 7, 8, 31, 32, 63, 64, 65, 129, 1_000, 4_097]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 4))
    logits = rng.standard_normal((count, vocab)) * draw(st.sampled_from([0.0, 1e-30, 0.1, 3.0, 20.0, 1e30]))
    if draw(st.booleans()):
        logits = np.round(logits * 4) / 4
    if draw(st.booleans()):
        logits[rng.random(logits.shape) < draw(st.sampled_from([0.1, 0.9]))] = -np.inf
    masks = rng.integers(-(2**31), 2**31, (3, -(-vocab // 32)), dtype=np.int32)
    masks[0] = draw(st.sampled_from([0, 1, -1]))
    rows = table(count)
    for i in range(count):
        rows["seed"][i] = draw(st.integers(0, 2**64 - 1))
        rows["step"][i] = draw(st.integers(0, 2**32 - 1))
        rows["stream"][i] = draw(st.integers(0, 15))
        rows["temperature"][i] = draw(st.sampled_from([0, 1e-5, 0.2, 1, 1.5, 100]))
        rows["top_k"][i] = draw(st.sampled_from([0, 0, 1, 2, 20, 300, 10**6]))
        rows["top_p"][i] = draw(st.sampled_from([1, 1, 1e-300, 0.1, 0.9, 0.999, 1 - 2**-53]))
        rows["min_s"][i] = sampling.min_s_of(draw(st.sampled_from([0, 0, 0.001, 0.3, 1])))
        rows["mask"][i] = draw(st.integers(-1, 2))
    return logits.astype(np.float32), rows, masks


@given(case=cases())
def test_native_equals_the_specification(case: tuple[NDArray[np.float32], NDArray[np.void], NDArray[np.int32]]) -> None:
    logits, rows, masks = case
    tokens = sampling.sample(torch.from_numpy(logits), rows, masks)
    for token, row in zip(tokens, rows, strict=True):
        allowed = None if row["mask"] < 0 else allowed_by(masks, int(row["mask"]), logits.shape[1])
        names = ("seed", "step", "stream", "temperature", "top_k", "top_p", "min_s")
        assert token == sampling.reference(
            logits[row["row"]],
            **{name: row[name].item() for name in names},
            allowed=allowed,
        )


@pytest.mark.parametrize("vocab", [49_152, 50_257])
def test_native_equals_the_specification_at_full_size(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal((1, vocab)) * 4).astype(np.float32)
    rows = table(
        *(18,),
        row=0,
        step=np.arange(18),
        temperature=np.repeat([0.3, 1.0, 8.0], 6),
        top_k=np.tile([0, 50, 0, 50, 0, 5_000], 3),
        top_p=np.tile([1.0, 1.0, 0.95, 0.9, 1.0, 1.0], 3),
        min_s=np.tile([-np.inf] * 4 + [-3.0, -np.inf], 3),
    )
    native = sampling.sample(torch.from_numpy(logits), rows)
    with torch_paths():
        assert np.array_equal(native, sampling.sample(torch.from_numpy(logits), rows))


@pytest.mark.usefixtures("_path")
def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(5)
    logits = torch.from_numpy((rng.standard_normal((8, 777)) * 3).astype(np.float32))
    rows = table(8, seed=rng.integers(0, 2**63, 8), step=rng.integers(0, 99, 8), top_p=0.9, temperature=[0, 1] * 4)
    together = sampling.sample(logits, rows)
    order = rng.permutation(8)
    assert np.array_equal(sampling.sample(logits, rows[order]), together[order])
    for i in range(8):
        alone = rows[i : i + 1].copy()
        alone["row"] = 0
        assert sampling.sample(logits[i : i + 1].clone(), alone)[0] == together[i]


def expected_counts(probabilities: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = probabilities / probabilities.sum() * draws
    return counts


def chi_square(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    return float((((observed - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("varied", ["step", "seed", "stream"])
def test_draws_follow_the_softmax(varied: str) -> None:
    draws = 40_000
    logits = np.array([[0.0, 1.0, -1.0, 2.0, 0.5, 0.5, -1.2, 1.5, 0.0, -0.5]], dtype=np.float32)
    rows = table(draws, row=0, temperature=1.3, **({"seed": 11} | {varied: np.arange(draws)}))
    observed = np.bincount(sampling.sample(torch.from_numpy(logits), rows), minlength=10)
    expected = expected_counts(np.exp(logits[0].astype(np.float64) / 1.3), draws)
    assert chi_square(observed, expected) < 27.9  # 99.9 % of chi-square with 9 degrees of freedom
    pairs = np.bincount(observed_pairs(logits, rows), minlength=100).astype(np.int64)
    joint = np.outer(expected, expected).ravel() / draws**2 * (draws // 2)
    assert chi_square(pairs, joint) < 149  # 99.9 % with 99 degrees: neighbours are independent


def observed_pairs(logits: NDArray[np.float32], rows: NDArray[np.void]) -> NDArray[np.int64]:
    tokens = sampling.sample(torch.from_numpy(logits), rows).astype(np.int64)
    pairs: NDArray[np.int64] = tokens[::2] * 10 + tokens[1::2]
    return pairs


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(4, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2), (6, 0.8, 0.1)])
def test_truncated_draws_follow_the_truncated_softmax(top_k: int, top_p: float, min_p: float) -> None:
    draws = 20_000
    logits = torch.tensor([[0.0, 1.1, -1.0, 2.0, 0.5, 0.6, -3.0, 1.5]])
    rows = table(
        draws, row=0, step=np.arange(draws), top_k=top_k, top_p=top_p, min_s=sampling.min_s_of(min_p), seed=2**64 - 1
    )
    observed = np.bincount(sampling.sample(logits, rows), minlength=8)
    kept = warped(logits, top_k, top_p, min_p)[0].double()
    expected = expected_counts(kept.softmax(-1).numpy(), draws)
    assert np.array_equal(observed > 0, expected > 0)
    assert chi_square(observed[expected > 0], expected[expected > 0]) < 24.3  # 99.9 % with 7 degrees


def warped(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    if top_k:
        logits = TopKLogitsWarper(top_k)(ids, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(ids, logits)
    if min_p:
        logits = MinPLogitsWarper(min_p)(ids, logits)
    return logits


@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(2, 400),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.3, 0.9, 0.99]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_truncation_keeps_what_transformers_keeps(
    seed: int, vocab: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Distinct logits of few bits and odd parameters, so that no boundary is a matter of rounding."""
    rng = np.random.default_rng(seed)
    logits = (rng.permutation(vocab) / 64 * 10 / temperature).astype(np.float32)[None]
    kept = warped(torch.from_numpy(logits) / temperature, top_k, top_p, min_p)[0].numpy() > -np.inf
    s = (logits[0] - logits[0].max()) / np.float32(temperature)
    ours = sampling._truncate(s, top_k, top_p, sampling.min_s_of(min_p))
    differs = np.flatnonzero(kept != ours)
    if len(differs):  # transformers sums float32: only the token on the boundary may differ
        weights = np.exp(s.astype(np.float64))
        assert len(differs) == 1
        above = weights[s >= s[differs[0]]].sum() - weights[differs[0]]
        total = weights[s >= np.sort(s)[-min(top_k or vocab, vocab)]].sum()
        assert abs(above / total - top_p) < 1e-5


@pytest.mark.usefixtures("_path")
def test_equal_logits_stay_together_and_the_first_wins() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0, 3.0]])
    assert sampling.sample(logits, table(1, temperature=0))[0] == 1
    rows = table(400, row=0, step=np.arange(400), top_k=2)
    assert set(sampling.sample(logits, rows).tolist()) == {1, 2, 3, 5}
    rows["top_k"], rows["top_p"] = 0, 0.01
    assert set(sampling.sample(logits, rows).tolist()) == {1, 2, 3, 5}


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("vocab", [5, 64, 200])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_rows_say_so_and_leave_the_others_alone(vocab: int, temperature: float) -> None:
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(1))
    sound = sampling.sample(logits, table(6, temperature=temperature))
    logits[0, vocab - 1] = math.nan
    logits[1, 0] = math.inf
    logits[2] = -math.inf
    logits[3, 1:] = -math.inf
    logits[5, 0] = math.nan
    masks = np.zeros((1, -(-vocab // 32)), dtype=np.int32)
    tokens = sampling.sample(logits, table(6, temperature=temperature, mask=[-1, -1, -1, -1, 0, 0]), masks)
    assert tokens.tolist() == [NOT_FINITE, NOT_FINITE, NOT_FINITE, 0, NOTHING_ALLOWED, NOT_FINITE]
    logits[4] = torch.randn(vocab)
    assert sound[3] >= 0


@pytest.mark.usefixtures("_path")
def test_a_mask_is_obeyed() -> None:
    masks = np.array([[0b1000100000, 0, 1 << 5]], dtype=np.int32)
    logits = torch.zeros(1, 70)
    rows = table(300, row=0, mask=0, step=np.arange(300))
    assert set(sampling.sample(logits, rows, masks).tolist()) == {5, 9, 69}


@pytest.mark.parametrize(
    ("column", "value"), [("row", 1), ("row", -1), ("mask", 0), ("temperature", math.nan), ("top_p", 0), ("min_s", 1)]
)
def test_native_refuses_rows_out_of_range(column: str, value: float) -> None:
    if native():
        with pytest.raises(ValueError, match="out of range"):
            sampling.sample(torch.zeros(1, 4), table(1, **{column: value}))


def test_logits_elsewhere_or_of_another_type_are_refused() -> None:
    for logits in (torch.zeros(1, 4, dtype=torch.float64), torch.zeros(4, 4).T[:, ::2], torch.zeros(1, 4).half()):
        with pytest.raises(ValueError, match="float32"):
            sampling.sample(logits, table(1))


def test_weights_are_exponentials() -> None:
    s = -np.abs(np.random.default_rng(2).standard_normal(20_000) * 8).astype(np.float32)
    s[:4] = 0, -0.0, -np.inf, -1e38
    exact = np.floor(np.exp(s.astype(np.float64)) * 2.0**40)
    assert sampling.weights(s)[:4].tolist() == [2**40, 2**40, 0, 0]
    assert np.all(np.abs(sampling.weights(s) - exact) <= 1 + exact * 2e-11)


@pytest.mark.usefixtures("_path")
def test_likeliest_tokens_and_their_log_probabilities() -> None:
    logits = torch.randn(5, 1_234, generator=torch.Generator().manual_seed(3)) * 4
    logits[1, :3] = logits[1].max() + 1  # ties go by id
    logits[2, 7:] = -math.inf
    logits[4, 8] = math.nan
    counts = np.array([0, 2, 20, 20, 3], dtype=np.int32)
    tokens, totals = sampling.likeliest(logits, np.arange(5, dtype=np.int32), counts)
    exact = logits.double().logsumexp(-1).numpy()
    assert np.allclose(totals[:4], exact[:4], rtol=0, atol=1e-6)
    assert math.isnan(totals[4])
    assert tokens[1].tolist() == [0, 1] + [-1] * 18
    assert tokens[3].tolist() == logits[3].topk(20).indices.tolist()
    assert tokens[2, :7].tolist() == logits[2, :7].argsort(descending=True).tolist()
    assert (tokens[2, 7:] == -1).all()
    assert (tokens[[0, 4]] == -1).all()
