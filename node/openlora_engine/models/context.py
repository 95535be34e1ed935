"""What a forward pass knows beside its tensors: the batch's layout, the KV cache, and who wears which adapter.

Transformers' layers do not all pass keyword arguments on, so attention and linears find it here instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from openlora_kernels import AttentionBatch, LoraTables, Segments


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass. `segments` is None when no row wears an adapter: then LoRA costs nothing.

    `kv_caches[layer]` is (key, value), each [num_blocks, block_size, KV, D].
    """

    batch: AttentionBatch
    kv_caches: Sequence[tuple[Tensor, Tensor]]
    segments: Segments | None = None
    tables: LoraTables | None = None


_CURRENT: ContextVar[ForwardContext] = ContextVar("forward_context")


def current() -> ForwardContext:
    """The pass under way. Raises LookupError outside one."""
    return _CURRENT.get()


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make `context` current for the pass inside."""
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)
