"""A process whose Triton is the interpreter: applies LoRA by the kernels and by the reference, a JSON line a case.

TRITON_INTERPRET must be set before triton's first import and cannot be taken back, so it never is in the test run's own
process. `with TritonWorker() as worker: worker.run(case)`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One call: `ranks[slot][target]`, `segments` of (slot, rows). `spare` rows of the index belong to no segment."""

    in_features: int
    out_features: Sequence[int]
    ranks: Sequence[Sequence[int]]
    segments: Sequence[tuple[int, Sequence[int]]]
    num_rows: int
    activation: str = "float32"
    weight: str = "float32"
    spare: int = 0
    row_stride_extra: int = 0


@dataclass(frozen=True)
class Outcome:
    """Largest deviation from the float32 reference over the largest reference value; rows outside segments; repeats."""

    error: float
    outside_unchanged: bool
    repeat_equal: bool


class TritonWorker:
    """Owns the process."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def run(self, case: Case) -> Outcome:
        """Send a case, read its outcome. A kernel's exception is in the worker's stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the worker died: its stderr says why"
        return Outcome(**json.loads(answer))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def _mend_interpreter() -> None:
    """Triton 3.7's interpreter multiplies bfloat16's bit patterns in tl.dot: multiply their exact float32 instead."""
    import triton.language as tl

    from openlora_kernels import triton_lora

    constants = triton_lora.shrink_constants

    def mended(*arguments: Any) -> dict[str, Any]:
        found = constants(*arguments)
        return {**found, "DOT": tl.float32} if found["DOT"] == tl.bfloat16 else found

    triton_lora.shrink_constants = mended  # type: ignore[assignment]


def _serve() -> None:
    _mend_interpreter()
    for line in sys.stdin:
        print(json.dumps(asdict(_run(Case(**json.loads(line))))), flush=True)


def _run(case: Case) -> Outcome:
    import torch

    from openlora_kernels import lora, triton_lora

    torch.manual_seed(0)
    activation, weight = getattr(torch, case.activation), getattr(torch, case.weight)
    groups = [lora.LoraGroup(case.in_features, tuple(case.out_features))]
    # CPU tables refuse bfloat16, which only CUDA stores; its addresses are like float16's.
    tables = lora.LoraTables(groups, len(case.ranks), torch.float32 if weight == torch.float32 else torch.float16)
    tables.dtype = weight
    blobs = []
    for slot, ranks in enumerate(case.ranks):
        layout = lora.BlobLayout.of(groups, [ranks], weight)
        memory = torch.zeros(layout.nbytes + 64, dtype=torch.uint8)
        blob = memory[-memory.data_ptr() % 64 :][: layout.nbytes]
        parts = lora.group_weights(blob, layout, groups[0], 0, weight)
        for part in (parts.a, *parts.b):
            part.normal_()
        parts.scale.uniform_(-2, 2)
        tables.set(slot, blob.data_ptr(), layout)
        blobs.append(memory)
    width, extra = sum(case.out_features), case.row_stride_extra
    x = torch.randn(case.num_rows, case.in_features + extra).to(activation)[:, : case.in_features]
    y = torch.randn(case.num_rows, width + extra).to(activation)[:, :width]
    rows = [row for _, part in case.segments for row in part]
    offsets = torch.tensor([0, *(len(part) for _, part in case.segments)]).cumsum(0)
    segments = lora.Segments(  # built by hand: empty segments and spare rows, as a captured graph has
        torch.tensor(rows + [0] * case.spare, dtype=torch.int32),
        offsets.to(torch.int32),
        torch.tensor([slot for slot, _ in case.segments], dtype=torch.int32),
    )
    expected, before, again = y.to(torch.float32, copy=True), y.clone(), y.clone()
    lora.reference(expected, x, segments, tables, 0)
    triton_lora.lora_apply_(y, x, segments, tables, 0)
    triton_lora.lora_apply_(again, x, segments, tables, 0)
    outside = torch.ones(case.num_rows, dtype=torch.bool)
    outside[rows] = False
    return Outcome(
        error=float((y.float() - expected).abs().max() / expected.abs().max()),
        outside_unchanged=torch.equal(y[outside], before[outside]),
        repeat_equal=torch.equal(y, again),
    )


if __name__ == "__main__":
    _serve()
