"""The sampler's tokens are those of the replay and of trusted processors, each row's whatever stands beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from openlora_engine.errors import Code
from openlora_engine.sampling.constraints import GrammarCompiler
from openlora_engine.sampling.params import Constraint, ConstraintKind, SamplingParams
from openlora_engine.sampling.replay import replay
from openlora_engine.sampling.sampler import Sampler, _largest
from openlora_engine.sampling.state import SamplingState
from openlora_kernels.native import torch_paths
from openlora_kernels.sampling import NOT_FINITE
from support.engine_tokenizer import tiny_tokenizer

VOCAB, EOS = 300, 0


@pytest.fixture(params=["native", "torch"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "native":
        yield
    else:
        with torch_paths():
            yield


def state(
    params: SamplingParams, *, seed: int = 7, index: int = 0, prompt: tuple[int, ...] = (5, 6, 5)
) -> SamplingState:
    return SamplingState(params, seed=seed, index=index, vocab_size=VOCAB, prompt_token_ids=prompt, eos_token_ids=[EOS])


params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.just(100),
    temperature=st.sampled_from([0.0, 1e-7, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 10, 10**9]),
    top_p=st.sampled_from([1.0, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    min_tokens=st.sampled_from([0, 3]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (9, 10)]),
    logit_bias=st.sampled_from([{}, {5: 4.0, 9: -100.0, 0: 100.0}]),
    logprobs=st.sampled_from([None, 0, 3]),
)


@pytest.mark.slow
@given(params=st.lists(params_strategy, min_size=1, max_size=4), seed=st.integers(0, 2**64 - 1))
def test_every_token_can_be_replayed(params: list[SamplingParams], seed: int) -> None:
    """Five steps of a batch: each token equals the replay from seed, prompt, output and logits alone."""
    rng = np.random.default_rng(seed % 1_000)
    states = [state(each, seed=seed, index=index) for index, each in enumerate(params)]
    outputs: list[list[int]] = [[] for _ in params]
    sampler = Sampler(VOCAB)
    for _ in range(5):
        logits = (rng.standard_normal((len(params), VOCAB)) * 4).astype(np.float32)
        given_logits = logits.copy()
        for row, result in enumerate(sampler.sample(torch.from_numpy(logits), states)):
            assert result.error is None
            assert result.token_id == replay(
                given_logits[row],
                params[row],
                seed=seed,
                index=row,
                prompt_token_ids=(5, 6, 5),
                output_token_ids=outputs[row],
                eos_token_ids=[EOS],
            )
            outputs[row].append(result.token_id)
            states[row].accept(result.token_id)
        assert np.array_equal(logits, given_logits), "logits come back as they were"


@pytest.mark.usefixtures("_path")
def test_the_same_seed_gives_the_same_output_in_any_company() -> None:
    asked = SamplingParams(temperature=0.9, top_p=0.9, frequency_penalty=0.5, repetition_penalty=1.1)
    others = [SamplingParams(temperature=0.0), SamplingParams(top_k=3), SamplingParams(logit_bias={4: 9.0})]

    def outputs(company: list[SamplingParams], place: int) -> list[int]:
        rng = np.random.default_rng(1)
        states = [state(each, seed=number) for number, each in enumerate(company)]
        states.insert(place, state(asked, seed=42))
        sampler, tokens = Sampler(VOCAB), []
        for step in range(12):
            logits = np.random.default_rng((place, step)).standard_normal((len(states), VOCAB)).astype(np.float32)
            logits[place] = rng.standard_normal(VOCAB).astype(np.float32) * 3
            results = sampler.sample(torch.from_numpy(logits), states)
            for each, result in zip(states, results, strict=True):
                each.accept(result.token_id)
            tokens.append(results[place].token_id)
        return tokens

    alone = outputs([], 0)
    for company, place in ((others, 0), (others, 2), (others * 3, 9)):
        assert outputs(company, place) == alone


def test_choices_of_a_request_differ_and_repeat() -> None:
    logits = torch.zeros(4, VOCAB)
    states = [state(SamplingParams(n=4), seed=3, index=index) for index in range(4)]
    first = [result.token_id for result in Sampler(VOCAB).sample(logits, states)]
    assert len(set(first)) == 4
    assert [result.token_id for result in Sampler(VOCAB).sample(logits, states)] == first


def test_seeds_of_either_sign_are_the_same_64_bits() -> None:
    logits = torch.zeros(1, VOCAB)
    negative, positive = (
        [Sampler(VOCAB).sample(logits, [state(SamplingParams(), seed=seed)])[0].token_id] for seed in (-1, 2**64 - 1)
    )
    assert negative == positive


def edited(params: SamplingParams, logits: torch.Tensor, output: list[int]) -> np.ndarray[Any, Any]:
    """The logits that the sampler draws from."""
    each = state(params)
    for token_id in output:
        each.accept(token_id)
    row: np.ndarray[Any, Any] = logits[0].numpy().copy()
    for token_ids, values in each.edits(row):
        row[token_ids] = values
    return row


def test_repetition_penalty_equals_transformers() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    ids: Any = torch.tensor([[5, 6, 5, 17, 18, 17]])
    expected = RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone())
    ours = edited(SamplingParams(repetition_penalty=1.4), logits, [17, 18, 17])
    assert np.allclose(ours, expected[0].numpy(), rtol=1e-6)


def test_frequency_and_presence_count_the_output_alone() -> None:
    logits = torch.zeros(1, VOCAB)
    ours = edited(SamplingParams(frequency_penalty=0.5, presence_penalty=1.0), logits, [17, 18, 17])
    assert ours[17] == -2.0
    assert ours[18] == -1.5
    assert ours[5] == 0.0
    assert np.count_nonzero(ours) == 2


def test_bias_comes_before_penalties() -> None:
    ours = edited(SamplingParams(logit_bias={5: 3.0}, repetition_penalty=2.0), torch.zeros(1, VOCAB) + 1, [])
    assert ours[5] == 2.0
    assert ours[6] == 0.5


def test_counts_stay_bounded_by_the_distinct_tokens() -> None:
    each = state(SamplingParams(repetition_penalty=1.2), prompt=tuple(range(VOCAB)) * 3)
    for token_id in [*range(VOCAB), *range(VOCAB)]:
        each.accept(token_id)
    assert each._counts is not None
    assert len(each._counts) == VOCAB
    assert (each._counts.counts == 2).all()


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_that_ends_the_choice_is_drawn_before_min_tokens(temperature: float) -> None:
    logits = torch.full((1, VOCAB), -50.0)
    logits[0, [EOS, 9, 30]] = torch.tensor([30.0, 20.0, 10.0])
    params = SamplingParams(temperature=temperature, min_tokens=2, stop_token_ids=(9,))
    each = state(params)
    for expected in (30, 30, EOS):
        token_id = Sampler(VOCAB).sample(logits, [each])[0].token_id
        assert token_id == expected
        each.accept(token_id)


@pytest.mark.usefixtures("_path")
def test_a_broken_row_fails_alone() -> None:
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(4))
    logits[0, 17] = math.nan
    logits[2, 5] = math.inf
    logits[3] = math.nan
    company = [
        SamplingParams(logit_bias={17: 3.0}, logprobs=2),
        SamplingParams(logprobs=1),
        SamplingParams(repetition_penalty=1.2, top_p=0.9),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0),
    ]
    results = Sampler(VOCAB).sample(logits, [state(params) for params in company])
    assert [result.error.code if result.error else None for result in results] == [
        Code.ENGINE_FAILED,
        None,
        Code.ENGINE_FAILED,
        Code.ENGINE_FAILED,
        None,
    ]
    assert results[4].token_id == int(logits[4].argmax())
    assert results[1].logprob is not None


@pytest.mark.usefixtures("_path")
def test_logprobs_are_the_models_before_anything_was_edited() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5)) * 3
    expected = logits.double().log_softmax(-1)
    company = [
        SamplingParams(temperature=0.3, top_k=2, logit_bias={200: 50.0}, logprobs=0),
        SamplingParams(temperature=0.0, repetition_penalty=1.9, logprobs=20),
        SamplingParams(temperature=2.0),
    ]
    results = Sampler(VOCAB).sample(logits, [state(params) for params in company])
    assert results[0].token_id == 200
    assert results[2].logprob is None
    for row, count in ((0, 0), (1, 20)):
        logprob = results[row].logprob
        assert logprob is not None
        assert logprob.chosen.token_id == results[row].token_id
        assert logprob.chosen.logprob == pytest.approx(expected[row, results[row].token_id].item(), abs=1e-6)
        values, token_ids = expected[row].topk(max(count, 1))
        assert [top.token_id for top in logprob.top] == token_ids.tolist()[:count]
        assert [top.logprob for top in logprob.top] == pytest.approx(values.tolist()[:count], abs=1e-6)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_tokenizer(), VOCAB + 212, [EOS])


def constrained(compiler: GrammarCompiler, regex: str, params: SamplingParams) -> SamplingState:
    grammar = compiler.compile(Constraint(ConstraintKind.REGEX, regex))
    return SamplingState(params, seed=1, index=0, vocab_size=512, eos_token_ids=[EOS], grammar=grammar)


@pytest.mark.usefixtures("_path")
def test_masks_hold_for_their_rows_only(compiler: GrammarCompiler) -> None:
    free = SamplingState(SamplingParams(temperature=0.0), seed=1, index=0, vocab_size=512)
    digits, letters = (constrained(compiler, regex, SamplingParams()) for regex in ("[0-9]{9}", "[a-z]{9}"))
    logits = torch.zeros(3, 512)
    logits[:, 511] = 9
    results = Sampler(512).sample(logits, [digits, free, letters])
    texts = [str(tiny_tokenizer().decode([result.token_id])) for result in results]
    assert texts[0].isdigit()
    assert results[1].token_id == 511
    assert texts[2].isalpha()


def test_a_complete_grammar_ends_before_min_tokens(compiler: GrammarCompiler) -> None:
    each = constrained(compiler, "a?", SamplingParams(min_tokens=5, logit_bias={EOS: 100.0}))
    logits = torch.zeros(1, 512)
    token_id = Sampler(512).sample(logits, [each])[0].token_id
    assert tiny_tokenizer().decode([token_id]) == "a", "the end is forbidden while something else is possible"
    each.accept(token_id)
    assert each.ended
    assert Sampler(512).sample(logits, [each])[0].token_id == EOS


def test_a_grammar_that_grows_too_complex_fails_its_row_alone(compiler: GrammarCompiler) -> None:
    costly = constrained(compiler, "(a{1000}){1000}", SamplingParams())
    cheap = constrained(compiler, "[ab]*", SamplingParams())
    sampler = Sampler(512)
    for _ in range(3_000):
        result, other = sampler.sample(torch.zeros(2, 512), [costly, cheap])
        assert other.error is None
        if result.error is not None:
            assert result.error.code is Code.BAD_REQUEST
            assert "too complex" in result.error.message
            assert not costly.ended
            return
        costly.accept(result.token_id)
    pytest.fail("the limit was never reached")


def test_plain_rows_of_another_device_need_no_copy() -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(6))
    logits[1, 3] = math.nan
    logits[2, 8:10] = 100.0
    assert _largest(logits, [0, 1, 2]) == [int(logits[0].argmax()), NOT_FINITE, 8]
    assert _largest(logits, []) == []
    assert state(SamplingParams(temperature=0.0)).is_plain
    for asked in ({"logprobs": 0}, {"min_tokens": 1}, {"logit_bias": {1: 1.0}}, {"presence_penalty": 1.0}):
        assert not state(SamplingParams(temperature=0.0, **asked)).is_plain
    assert not state(SamplingParams(temperature=0.5)).is_plain


def test_an_empty_step_is_nothing() -> None:
    assert Sampler(VOCAB).sample(torch.empty(0, VOCAB), []) == []
