"""The gate of the allow-list: every architecture gives the plain model's logits at every step of a ragged batch."""

from __future__ import annotations

import pytest
import torch

from openlora_engine.models.architectures import ARCHITECTURES
from support.engine_models import CONFIGS, VOCAB, Driver, architecture, tiny_causal_lm, tiny_model

TOLERANCE = 1e-5
PROGRAM = (
    # per sequence: tokens computed at each step; 0 sits the step out
    (5, 1, 1, 1, 1),
    (37, 1, 1, 1, 1),
    (17, 1, 0, 1, 1),
    (0, 20, 30, 1, 1),  # chunked prefill beside decode
    (0, 0, 16, 16, 33),  # chunks that end on block borders
)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def run_and_compare(name: str, *, fuse: bool) -> float:
    """The largest relative error over every row of every step."""
    reference = tiny_causal_lm(name)
    driver = Driver(tiny_model(name, fuse=fuse))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB, (sum(steps),), generator=generator).tolist() for steps in PROGRAM]
    with torch.inference_mode():
        wanted = [reference(torch.tensor([ids])).logits[0] for ids in prompts]
    rows = [driver.row(ids) for ids in prompts]
    worst = 0.0
    for step in range(len(PROGRAM[0])):
        parts = [(rows[number], steps[step]) for number, steps in enumerate(PROGRAM) if steps[step]]
        logits = driver.step(*parts)
        for (row, _), got in zip(parts, logits, strict=True):
            want = wanted[rows.index(row)][row.num_computed_tokens - 1]
            worst = max(worst, relative_error(got, want))
    return worst


@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_gives_the_plain_models_logits(name: str) -> None:
    assert run_and_compare(name, fuse=True) <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in CONFIGS if architecture(name).fusable])
def test_the_unfused_shell_gives_them_too(name: str) -> None:
    assert run_and_compare(name, fuse=False) <= TOLERANCE


def test_every_architecture_is_gated() -> None:
    assert {architecture(name) for name in CONFIGS} == set(ARCHITECTURES)


def test_soft_cap_is_applied() -> None:
    """Scores far beyond the cap: dropping it would change the logits by orders of magnitude more than the tolerance."""
    reference, plain = tiny_causal_lm("gemma2"), tiny_causal_lm("gemma2")
    plain.config.attn_logit_softcapping = None
    model = tiny_model("gemma2", fuse=False)
    fused = tiny_causal_lm("gemma2")
    with torch.no_grad():
        for causal_lm in (reference, plain, fused):
            for layer in causal_lm.model.layers:
                layer.self_attn.q_proj.weight.mul_(400)
    for layer in plain.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    ids = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        want, uncapped = (causal_lm(torch.tensor([ids])).logits[0, -1] for causal_lm in (reference, plain))
    assert relative_error(uncapped, want) > 1e-2
    from openlora_engine.models.attention import PAGED
    from openlora_engine.models.loading import rebuild

    for fuse in (True, False):
        causal_lm = tiny_causal_lm("gemma2", attention=PAGED)
        with torch.no_grad():
            for layer in causal_lm.model.layers:
                layer.self_attn.q_proj.weight.mul_(400)
        model = rebuild(causal_lm, architecture("gemma2"), max_num_tokens=64, fuse=fuse)
        driver = Driver(model)
        row = driver.row(ids)
        driver.step((row, 20))
        assert relative_error(driver.step((row, 20))[0], want) <= TOLERANCE
