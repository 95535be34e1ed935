"""What an engine's process is told: every key of its entry becomes a flag, and one card is all that it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openlora_engine.__main__ import parser
from openlora_engine.config import EngineConfig
from openlora_node.config import Config
from openlora_node.engineclient.command import engine_command, engine_environment

MODEL = Path("/srv/llama")


def told(**keys: Any) -> tuple[str, ...]:
    config = Config.model_validate(
        {"node": {"data_dir": "/srv/x"}, "engine": {"grace": "7s"}, "engines": {"a": {"model": str(MODEL), **keys}}}
    )
    return engine_command(config, config.all_engines[0], MODEL, "sha256:" + "ab" * 32)


def parsed(command: tuple[str, ...]) -> tuple[EngineConfig, Any]:
    """As the engine itself would read it: first the interpreter's part, then its own flags."""
    assert command[1:4] == ("-P", "-m", "openlora_engine")
    options = parser().parse_args(command[4:])
    return EngineConfig.from_arguments(options), options


def test_every_key_is_a_flag_that_the_engine_takes() -> None:
    command = told(
        device="cuda:1", max_loras=64, kv_memory="2GiB", host_cache="1GiB",
        args=("--max-num-seqs=48", "--no-enable-prefix-caching"),
    )  # fmt: skip
    engine, server = parsed(command)
    assert (engine.model, engine.model_digest, engine.adapters) == (
        MODEL, "sha256:" + "ab" * 32, Path("/srv/x/devnet/artifacts"),
    )  # fmt: skip
    assert (engine.device, engine.max_loras, engine.kv_cache_memory, engine.host_cache) == (
        "cuda",
        64,
        2 << 30,
        1 << 30,
    )
    assert (engine.max_num_seqs, engine.enable_prefix_caching) == (48, False)
    assert (server.uds, server.drain_timeout_s) == (Path("/srv/x/devnet/engine-a.sock"), 7.0)


def test_what_is_not_set_is_left_to_the_engine() -> None:
    engine, _ = parsed(told())
    assert (engine.device, engine.max_loras, engine.kv_cache_memory) == ("auto", 32, None)


@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ("cuda:3", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3"}),
        ("cuda", {}),
        ("cpu", {}),
        ("auto", {}),
    ],
)
def test_one_card_is_all_that_its_engine_sees(device: str, environment: dict[str, str]) -> None:
    config = Config.model_validate({"engine": {"device": device}})
    assert engine_environment(config.all_engines[0]) == environment
