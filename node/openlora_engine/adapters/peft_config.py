"""PEFT's adapter_config.json, read strictly: which modules, at which rank and scale, and a refusal that names the rest.

What changes the computation and is not served is refused, every such key at once. What only served training is on a
list and ignored. Rules are those of peft 0.21 (`tuners_utils.check_target_module_exists`, `other.get_pattern_key`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from .folder import CONFIG_FILE
from .patterns import Matcher, PatternTable, ends_of
from .problems import invalid, listed

_T = TypeVar("_T")

MAX_PATTERNS = 8_192
"""Entries in rank_pattern and alpha_pattern: EVA writes one a module."""
MAX_NAMES = 8_192
MAX_ALPHA = 1e6
ALL_LINEAR = "all-linear"

INITS_OF_LORA_ONLY = ("gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights, beside true and false, that leave the base as it was."""

HARMLESS = frozenset({
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "unsloth_fixed"),
})  # fmt: skip
"""Keys that do not change what a saved adapter computes: training, initialisation, book-keeping."""

SERVED = frozenset({
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "bias", "init_lora_weights"),
})  # fmt: skip

REASONS = {
    "use_dora": "DoRA rescales the base's weights; merge it, or extract a LoRA from it",
    "modules_to_save": "whole modules would replace the base's",
    "bias": 'only "none" is served',
    "lora_bias": "lora_B with a bias",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "changed token embeddings",
    "layer_replication": "a base with other layers",
    "target_parameters": "LoRA on parameters that are no linear's",
    "use_qalora": "QA-LoRA pools the input",
    "init_lora_weights": "it altered the base; save with path_initial_model_for_weight_conversion",
    "megatron_config": "layers of Megatron",
}


@dataclass(frozen=True)
class LoraConfig:
    """What of PEFT's configuration decides the computation.

    Patterns are in the file's order: the first that matches counts. `target_modules` is a regular expression or
    "all-linear" where it is a string, module names otherwise.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]

    def canonical(self) -> bytes:
        """The one way to write this configuration, for the digest: sets sorted, order kept where it counts."""
        fields = {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": self.layers_pattern,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def selects(self, path: str, matcher: Matcher) -> bool:
        """Whether PEFT would put LoRA on the linear at `path`."""
        if isinstance(self.exclude_modules, str):
            if self.exclude_modules and matcher.fullmatch(self.exclude_modules, path):
                return False
        elif self._excluded.intersection(ends_of(path)):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == ALL_LINEAR or matcher.fullmatch(self.target_modules, path)
        # PEFT does not ask for the layer where the whole path is named.
        return path in self._targeted or (
            not self._targeted.isdisjoint(ends_of(path)) and self._in_layers(path, matcher)
        )

    def rank_of(self, path: str, matcher: Matcher) -> int:
        """Rank of lora_A and lora_B at `path`."""
        found = self._ranks.first(path, matcher)
        return self.r if found is None else found

    def scale_of(self, path: str, rank: int, matcher: Matcher) -> float:
        """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv 2312.03732)."""
        found = self._alphas.first(path, matcher)
        alpha = self.lora_alpha if found is None else found
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @cached_property
    def _targeted(self) -> frozenset[str]:
        return frozenset(self.target_modules)

    @cached_property
    def _excluded(self) -> frozenset[str]:
        return frozenset(self.exclude_modules)

    @cached_property
    def _ranks(self) -> PatternTable[int]:
        return PatternTable(self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable[float]:
        return PatternTable(self.alpha_pattern)

    def _in_layers(self, path: str, matcher: Matcher) -> bool:
        if not self.layers_to_transform:
            return True
        patterns = self.layers_pattern or (None,)
        found = (matcher.layer_index(pattern, path) for pattern in patterns)
        return next((index for index in found if index is not None), None) in self.layers_to_transform


def parse_lora_config(data: bytes) -> LoraConfig:
    """adapter_config.json → the configuration. Raises ADAPTER_INVALID: malformed, or naming every key not served."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise invalid(f"{CONFIG_FILE} is not JSON") from None
    if not isinstance(raw, dict):
        raise invalid(f"{CONFIG_FILE} is not a JSON object")
    if raw.get("peft_type") != "LORA":
        raise invalid(f"peft_type {_short(raw.get('peft_type'))} is not served; LORA is")
    _refuse_unserved(raw)
    config = LoraConfig(
        r=_integer(raw.get("r", 8), "r", low=1),
        lora_alpha=_number(raw.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_boolean(raw.get("use_rslora"), "use_rslora"),
        rank_pattern=_pattern(raw, "rank_pattern", lambda value, key: _integer(value, key, low=1)),
        alpha_pattern=_pattern(raw, "alpha_pattern", _number),
        target_modules=_target_modules(raw),
        exclude_modules=_modules(raw.get("exclude_modules"), "exclude_modules") or (),
        layers_to_transform=_layers(raw.get("layers_to_transform")),
        layers_pattern=_layers_pattern(raw.get("layers_pattern")),
    )
    if isinstance(config.target_modules, str) and (config.layers_to_transform or config.layers_pattern):
        raise invalid("layers_to_transform and layers_pattern need target_modules as a list of names")
    if config.layers_pattern and config.layers_to_transform is None:
        raise invalid("layers_pattern needs layers_to_transform")
    return config


def _refuse_unserved(raw: dict[str, Any]) -> None:
    """Unknown keys that are off (null, false, empty) are a newer PEFT's features not used: they change nothing."""
    unserved = [key for key, value in raw.items() if key not in HARMLESS | SERVED and _is_on(value)]
    if raw.get("bias", "none") != "none":
        unserved.append("bias")
    init = raw.get("init_lora_weights", True)
    if not isinstance(init, bool) and init is not None and init not in INITS_OF_LORA_ONLY:
        unserved.append("init_lora_weights")
    if unserved:
        named = [f"{key[:80]}={_short(raw[key])} ({REASONS.get(key, 'not known')})" for key in sorted(unserved)]
        raise invalid(f"{CONFIG_FILE} asks for what is not served: {listed(named)}")


def _is_on(value: Any) -> bool:
    return not (value is None or value is False or value in ("", [], {}))


def _target_modules(raw: dict[str, Any]) -> str | tuple[str, ...]:
    modules = _modules(raw.get("target_modules"), "target_modules")
    if not modules:
        raise invalid("target_modules is empty: name the modules that the adapter changes")
    return modules


def _modules(value: Any, key: str) -> str | tuple[str, ...]:
    """A regular expression, or names: a set, hence sorted."""
    if value is None:
        return ()
    return value if isinstance(value, str) else tuple(sorted(set(_strings(value, key))))


def _strings(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(name, str) for name in value):
        raise invalid(f"{key} must be a list of at most {MAX_NAMES:,} strings")
    return value


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if len(listed) > MAX_NAMES:
        raise invalid(f"layers_to_transform names more than {MAX_NAMES:,} layers")
    return tuple(sorted({_integer(layer, "layers_to_transform", low=0) for layer in listed}))


def _layers_pattern(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(_strings(value, "layers_pattern"))


def _pattern(raw: dict[str, Any], key: str, read: Callable[[Any, str], _T]) -> tuple[tuple[str, _T], ...]:
    value = raw.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise invalid(f"{key} must be an object of at most {MAX_PATTERNS:,} entries")
    return tuple((pattern, read(number, key)) for pattern, number in value.items())


def _integer(value: Any, key: str, *, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
        raise invalid(f"{key} must be a whole number from {low} on, not {_short(value)}")
    return value


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_ALPHA:
        raise invalid(f"{key} must be a number of at most {MAX_ALPHA:.0f}, not {_short(value)}")
    return float(value)


def _boolean(value: Any, key: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{key} must be true or false, not {_short(value)}")
    return bool(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
