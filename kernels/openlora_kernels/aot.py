"""Compiles the Triton kernels ahead for sm_80 and sm_90 without a GPU: `python -m openlora_kernels.aot`.

Shows that every variant compiles, and what it costs: registers a thread, spilled bytes, shared memory. A running engine
does not need it: Triton compiles at first use and keeps a cache. Knows the kernels' signatures and nothing of a model.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .lora import LoraGroup
from .triton_lora import DECODE, MIXED, PREFILL, Tiles, expand_constants, shrink_constants, triton_kernels

ARCHITECTURES = (80, 90)
"""Compute capabilities: A100 (and, by compatibility, sm_86 and sm_89) and H100."""

MAX_SEGMENTS = 32
_TILES = {"decode": DECODE, "mixed": MIXED, "prefill": PREFILL}
_POINTERS = {
    **{"hidden": "*fp32", "rows": "*i32", "offsets": "*i32", "slots": "*i32", "ranks": "*i32"},
    **{"a_table": "*i64", "b_table": "*i64", "scale_table": "*i64"},
}
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel as it would be specialised at run time."""

    kernel: str
    bucket: str
    group: LoraGroup
    dtype: torch.dtype

    @property
    def tiles(self) -> Tiles:
        """Block sizes of the bucket."""
        return _TILES[self.bucket]

    @property
    def name(self) -> str:
        """For files and tables."""
        shape = f"{self.group.in_features}-{'-'.join(map(str, self.group.out_features))}"
        return f"{self.kernel}-{self.bucket}-{shape}-{_DTYPES[self.dtype]}"


@dataclass(frozen=True)
class Compiled:
    """A variant's machine code. Registers and spill are None where cuobjdump is missing."""

    variant: Variant
    architecture: int
    cubin: bytes
    ptx: str
    shared_bytes: int
    registers: int | None
    spill_bytes: int | None


GROUPS = (
    LoraGroup(4096, (4096, 1024, 1024)),  # q, k, v of an 8B Llama
    LoraGroup(14336, (4096,)),  # its down projection
    LoraGroup(576, (576, 192, 192)),  # q, k, v of SmolLM2-135M
    LoraGroup(100, (70, 3)),  # nothing divides anything: every mask at work
)


def variants(
    groups: Sequence[LoraGroup] = GROUPS, dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16)
) -> Iterator[Variant]:
    """Every kernel in every bucket."""
    for group in groups:
        for dtype in dtypes:
            for bucket in _TILES:
                for kernel in ("shrink", "expand"):
                    yield Variant(kernel, bucket, group, dtype)


def compile_variant(variant: Variant, architecture: int) -> Compiled:
    """Run Triton and ptxas. Raises ModuleNotFoundError without triton, saying what to install."""
    function = getattr(triton_kernels(), variant.kernel)
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    constants = {**_constants(variant), "BLOCK_S": MAX_SEGMENTS}
    activation = f"*{_DTYPES[variant.dtype]}"
    types = {**_POINTERS, "x": activation, "y": activation}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    # What Triton's run-time specialisation finds out: aligned pointers, and strides that 16 divides.
    strides = {"x_stride": variant.group.in_features, "y_stride": variant.group.columns[-1]}
    aligned = {*types, "hidden_stride", "split_stride", *(name for name, stride in strides.items() if not stride % 16)}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if name in aligned}
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": variant.tiles.num_warps, "num_stages": variant.tiles.num_stages},
    )
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    registers, spill = _resources(cubin)
    return Compiled(variant, architecture, cubin, ptx, compiled.metadata.shared, registers, spill)


def _constants(variant: Variant) -> dict[str, Any]:
    group, dtype, tiles = variant.group, variant.dtype, variant.tiles
    if variant.kernel == "shrink":
        return shrink_constants(group.in_features, group.num_targets, dtype, dtype, tiles)
    return expand_constants(group.out_features, group.columns[-1], group.in_features, dtype, dtype, tiles)


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and stack bytes as triton's own cuobjdump reads them from the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(  # noqa: S603 - a fixed program of the triton package
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", output)
    return (int(found[1]), int(found[2])) if found else (None, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all variants, print the table, write cubin and PTX where asked."""
    parser = argparse.ArgumentParser(prog="python -m openlora_kernels.aot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for NAME.smXX.cubin and .ptx")
    output: Path | None = parser.parse_args(arguments).output
    if output:
        output.mkdir(parents=True, exist_ok=True)
    row = "{:<48} {:>5} {:>9} {:>9} {:>6} {:>12}\n"
    sys.stdout.write(row.format("kernel", "sm", "cubin B", "registers", "spill", "shared B"))
    for variant in variants():
        for architecture in ARCHITECTURES:
            result = compile_variant(variant, architecture)
            cells = (len(result.cubin), result.registers, result.spill_bytes, result.shared_bytes)
            sys.stdout.write(row.format(variant.name, architecture, *map(str, cells)))
            if output:
                stem = output / f"{variant.name}.sm{architecture}"
                Path(f"{stem}.cubin").write_bytes(result.cubin)
                Path(f"{stem}.ptx").write_text(result.ptx, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
