"""What the assembly decides by itself."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from openlora_engine import assembly
from openlora_engine.config import EngineConfig
from openlora_engine.models.loading import KVGeometry


def model(device: str, dtype: torch.dtype = torch.bfloat16) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), dtype=dtype, kv_layers=(KVGeometry(2, 64),) * 2)


@pytest.mark.parametrize(("given", "device", "unfit", "size"), [
    (0, "cpu", None, 16),
    (0, "cuda", None, 256),
    (0, "cuda", "no flash-attn", 16),
    (64, "cuda", "blocks of 256", 64),
])  # fmt: skip
def test_the_block_size_is_what_the_devices_attention_wants(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    given: int,
    device: str,
    unfit: str | None,
    size: int,
) -> None:
    monkeypatch.setattr(assembly.flash, "unfit", lambda *_: unfit)
    with caplog.at_level(logging.WARNING):
        config = assembly._with_block_size(EngineConfig(block_size=given), model(device))  # type: ignore[arg-type]
    assert config.block_size == size
    assert [record.getMessage() for record in caplog.records] == (
        [f"attention by torch's SDPA, which is slower: {unfit}"] if unfit else []
    )
