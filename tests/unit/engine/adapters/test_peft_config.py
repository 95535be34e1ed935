"""adapter_config.json: PEFT's rules held against PEFT itself, and refusals that name every key."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from openlora_engine.adapters.patterns import Matcher, PatternTable
from openlora_engine.adapters.peft_config import LoraConfig, parse_lora_config
from openlora_engine.errors import Code, EngineError
from support.engine_adapters import llama_targets, plain_config

PATHS = [target.path for target in llama_targets()]
WORDS = ("q_proj", "k_proj", "up_proj", "self_attn", "mlp", "layers", "model", "0", "1", "11")


def parse(**changes: Any) -> LoraConfig:
    return parse_lora_config(json.dumps(plain_config(**changes)).encode())


def refusal(config: dict[str, Any] | bytes) -> EngineError:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    with pytest.raises(EngineError) as refused:
        parse_lora_config(data)
    assert refused.value.code is Code.ADAPTER_INVALID
    return refused.value


names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join)
regexes = st.sampled_from((
    r".*\.(q|v)_proj", r".*self_attn\.[qk]_proj$", r"model\.layers\.(0|11)\..*", r"(?!.*mlp).*_proj", ".*", "q_proj",
    r".*\.layers\.\d{1,2}\.mlp\.(up|down)_proj", r"(?i).*Q_PROJ",
))  # fmt: skip
paths = st.one_of(st.sampled_from(PATHS), names)


@given(
    target_modules=st.one_of(st.lists(names, min_size=1, max_size=3), regexes),
    exclude_modules=st.one_of(st.none(), st.lists(names, max_size=2), regexes),
    layers=st.one_of(st.none(), st.integers(0, 2), st.lists(st.sampled_from((0, 1, 11)), max_size=2)),
    layers_pattern=st.sampled_from((None, "layers", ["layers", "h"], r"lay\w+")),
    path=paths,
)
def test_selects_the_modules_that_peft_selects(
    target_modules: Any, exclude_modules: Any, layers: Any, layers_pattern: Any, path: str
) -> None:
    if isinstance(target_modules, str) or layers is None:
        layers, layers_pattern = (None, None) if isinstance(target_modules, str) else (layers, None)
    settings = {
        "target_modules": target_modules,
        "exclude_modules": exclude_modules,
        "layers_to_transform": layers,
        "layers_pattern": layers_pattern,
    }
    expected = bool(check_target_module_exists(PeftLoraConfig(**settings), path))
    assert parse(**settings).selects(path, Matcher()) == expected


@given(
    patterns=st.lists(
        st.one_of(
            names, st.sampled_from((r"^model\.layers\.0.*", r"layers.\d+.mlp.up_proj", "q.proj", ".", "(q|k)_proj"))
        ),
        unique=True,
        max_size=6,
    ),
    path=paths,
)
def test_the_pattern_that_counts_is_the_one_that_counts_for_peft(patterns: list[str], path: str) -> None:
    key = get_pattern_key(patterns, path)
    expected = patterns.index(key) if key in patterns else None
    assert PatternTable([(pattern, order) for order, pattern in enumerate(patterns)]).first(path, Matcher()) == expected


def test_scale_is_alpha_over_r_or_over_its_root() -> None:
    path = "model.layers.1.mlp.up_proj"
    config = parse(r=8, lora_alpha=16, rank_pattern={"up_proj": 4}, alpha_pattern={"layers.1.mlp.up_proj": 3})
    assert config.rank_of(path, Matcher()) == 4
    assert config.scale_of(path, 4, Matcher()) == 3 / 4
    assert config.scale_of("model.layers.0.mlp.up_proj", 4, Matcher()) == 16 / 4
    assert parse(r=8, lora_alpha=16, use_rslora=True).scale_of(path, 8, Matcher()) == 16 / math.sqrt(8)


def test_every_key_that_is_not_served_is_named_at_once() -> None:
    unserved = {
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "bias": "all",
        "lora_bias": True,
        "alora_invocation_tokens": [1, 2],
        "trainable_token_indices": [7],
        "layer_replication": [[0, 2]],
        "init_lora_weights": "pissa_niter_4",
        "use_qalora": True,
    }
    message = refusal(plain_config(**unserved)).message
    assert all(key in message for key in unserved)


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "loftq", "lora_ga", "pissa_niter_16", 3])
def test_an_initialisation_that_altered_the_base_is_refused(init: object) -> None:
    assert "init_lora_weights" in refusal(plain_config(init_lora_weights=init)).message


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_an_initialisation_of_the_adapter_alone_is_served(init: object) -> None:
    assert parse(init_lora_weights=init).r == 4


def test_a_key_from_the_future_is_ignored_while_it_is_off_and_refused_while_it_is_on() -> None:
    assert parse(hyper_lora=None, super_lora=False, mega_lora={}).r == 4
    message = refusal(plain_config(hyper_lora={"power": 9000})).message
    assert "hyper_lora" in message
    assert "9000" in message


def test_what_peft_itself_writes_is_served() -> None:
    saved = PeftLoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    saved["target_modules"] = sorted(saved["target_modules"])
    assert parse_lora_config(json.dumps(saved, default=str).encode()).target_modules == ("q_proj",)


@pytest.mark.parametrize(
    "config",
    [
        b"", b"{", b"[]", b"null", b'{"peft_type": "LORA", "r": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
        {}, {"peft_type": "LOHA"}, {"peft_type": ["LORA"]},
        plain_config(r=0), plain_config(r=-3), plain_config(r="16"), plain_config(r=True), plain_config(r=2.5),
        plain_config(r=1 << 40), plain_config(lora_alpha="x"), plain_config(lora_alpha=1e300),
        plain_config(use_rslora=1), plain_config(alpha_pattern={"q": "1"}),
        plain_config(target_modules=None), plain_config(target_modules=[]), plain_config(target_modules=[1]),
        plain_config(target_modules={"q_proj": 1}), plain_config(target_modules=["m"] * 10_000),
        plain_config(rank_pattern=[1]), plain_config(rank_pattern={"q_proj": 0}),
        plain_config(rank_pattern={f"m{i}": 1 for i in range(9_000)}),
        plain_config(target_modules="x", layers_to_transform=[1]), plain_config(layers_pattern="layers"),
        plain_config(layers_to_transform=["0"]), plain_config(layers_to_transform=[-1]),
        plain_config(exclude_modules=[None]),
    ],
)  # fmt: skip
def test_a_malformed_configuration_is_refused(config: dict[str, Any] | bytes) -> None:
    refusal(config)


class Clock:
    """Time that passes with every look at it."""

    def __init__(self, step: float) -> None:
        self.now, self._step = 0.0, step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


@pytest.mark.parametrize("pattern", [r"(?:.|..|...)+[xyz]", r"((?:a|.)+)+[^a]", r"(a|a)+[bc]"])
def test_a_pattern_that_takes_for_ever_is_given_up(pattern: str) -> None:
    """The path is long: real ones match within microseconds whatever the pattern."""
    config = parse(target_modules=pattern)
    with pytest.raises(EngineError, match="takes too long"):
        config.selects("a" * 200, Matcher(seconds=0.05))


def test_all_patterns_of_an_adapter_share_one_budget_of_time() -> None:
    config = parse(rank_pattern={f"layers.{i}.x+": 1 for i in range(4_000)})
    with pytest.raises(EngineError, match="too long to match"):
        config.rank_of(PATHS[0], Matcher(seconds=0.5, clock=Clock(0.01)))


@pytest.mark.parametrize("pattern", ["(", "(?R)", "a{e<=2}", "[[a]--[b]]", "(?&x)", "(" * 3_000, "x" * 5_000, r"\p{L}"])
def test_a_pattern_that_re_would_read_otherwise_is_refused(pattern: str) -> None:
    with pytest.raises(EngineError) as refused:
        parse(target_modules=pattern).selects(PATHS[0], Matcher())
    assert refused.value.code is Code.ADAPTER_INVALID


def test_the_canonical_form_depends_on_what_counts_and_nothing_else() -> None:
    same = [
        parse(target_modules=["q_proj", "k_proj"], lora_alpha=16),
        parse(target_modules=["k_proj", "q_proj", "q_proj"], lora_alpha=16.0, peft_version="0.99", lora_dropout=0.5),
    ]
    assert same[0].canonical() == same[1].canonical()
    others = [
        parse(target_modules=["q_proj"], lora_alpha=16),
        parse(target_modules=["q_proj", "k_proj"], lora_alpha=17),
        parse(target_modules=["q_proj", "k_proj"], lora_alpha=16, use_rslora=True),
        parse(target_modules=["q_proj", "k_proj"], lora_alpha=16, alpha_pattern={"q_proj": 1, "k_proj": 2}),
        parse(target_modules=["q_proj", "k_proj"], lora_alpha=16, alpha_pattern={"k_proj": 2, "q_proj": 1}),
    ]
    assert len({config.canonical() for config in (*same, *others)}) == 1 + len(others)
