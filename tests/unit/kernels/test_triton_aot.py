"""The Triton kernels compile for sm_80 and sm_90 on a machine without a GPU, without spills and with wide loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from openlora_kernels import aot

pytest.importorskip("triton")
QKV = aot.GROUPS[0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
@pytest.mark.parametrize("bucket", ["decode", "mixed", "prefill"])
@pytest.mark.parametrize("kernel", ["shrink", "expand"])
def test_kernel_compiles_without_spilling(kernel: str, bucket: str, architecture: int) -> None:
    compiled = aot.compile_variant(aot.Variant(kernel, bucket, QKV, torch.bfloat16), architecture)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert f".target sm_{architecture}" in compiled.ptx
    assert compiled.spill_bytes == 0
    assert 0 < compiled.shared_bytes <= 100 << 10  # sm_86 and sm_89 have less than sm_80
    # Weights move 16 bytes at a time although their addresses are read from a table.
    wide = "cp.async.cg.shared.global" if bucket != "decode" else "ld.global.v4.b32"
    assert wide in compiled.ptx
    assert not re.search(r"\b(atom|red)\.", compiled.ptx)


def test_variants_cover_both_kernels_in_every_bucket() -> None:
    assert len(set(aot.variants())) == 2 * 3 * len(aot.GROUPS) * 2


@pytest.mark.slow
def test_command_prints_a_table_and_writes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = aot.Variant("expand", "decode", aot.GROUPS[3], torch.float16)
    monkeypatch.setattr(aot, "variants", lambda: iter((variant,)))
    assert aot.main(["--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(aot.ARCHITECTURES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{variant.name}.sm{architecture}.{kind}" for architecture in aot.ARCHITECTURES for kind in ("cubin", "ptx")
    ]
