"""The engine's configuration: flags, units, bounds, and a refusal that names the flag."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from openlora_engine.config import EngineConfig, add_flags, parse_size
from openlora_engine.errors import Code, EngineError


def parse(*arguments: str) -> EngineConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineConfig)
    return EngineConfig.from_arguments(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("17", 17), ("17B", 17), ("2GiB", 2 << 30), ("1.5 MiB", 3 << 19), ("4kib", 4096), ("1TiB", 1 << 40)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "2GB", "-1", "1e9", "2 GiB 1", "٣GiB x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_no_flags_give_the_defaults() -> None:
    assert parse() == EngineConfig()


def test_flags_override() -> None:
    config = parse(
        *("--model", "/m", "--host-cache", "2GiB", "--max-loras", "7", "--no-enable-prefix-caching"),
        *("--lora-modules", "a=/x", "--lora-modules", "b=/y", "--max-wait-s", "2.5", "--kv-cache-memory", "1GiB"),
    )
    assert config == EngineConfig(
        model=Path("/m"),
        host_cache=2 << 30,
        max_loras=7,
        enable_prefix_caching=False,
        lora_modules=("a=/x", "b=/y"),
        max_wait_s=2.5,
        kv_cache_memory=1 << 30,
    )


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_batched_tokens": 1}, "--max-num-batched-tokens"),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 17}, "--max-num-batched-tokens"),
        ({"max_loras": 0}, "--max-loras"),
        ({"max_lora_rank": 0}, "--max-lora-rank"),
        ({"host_cache": 5}, "--host-cache"),
        ({"max_wait_s": 0.0}, "--max-wait-s"),
        ({"max_queue": 1, "max_queue_per_tenant": 2}, "--max-queue-per-tenant"),
        ({"lora_modules": ("nameless",)}, "--lora-modules"),
        ({"lora_modules": ("=folder",)}, "--lora-modules"),
        ({"device": "tpu"}, "--device"),
        ({"quantization": "int3"}, "--quantization"),
    ],
)
def test_bad_values_name_their_flag(values: dict[str, object], flag: str) -> None:
    with pytest.raises(EngineError) as caught:
        EngineConfig(**values)  # type: ignore[arg-type]
    assert caught.value.code is Code.CONFIG_INVALID
    assert caught.value.message.startswith(flag)


def test_help_says_every_meaning() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, EngineConfig)
    text = " ".join(parser.format_help().split())
    assert "Host memory for adapters (least recently used leave). [4GiB]" in text
    assert "--enable-prefix-caching, --no-enable-prefix-caching" in text
