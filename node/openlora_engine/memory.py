"""The memory plan: what weights, KV blocks, slots and host cache take, and a refusal that names the flag to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import EngineConfig, flag
from .errors import Code, EngineError

KV_SHARE = 0.25
"""Most of the free memory that KV blocks take when --kv-cache-memory is not given."""
RESERVE = 256 << 20
"""Left to activations, Python and the system."""


@dataclass(frozen=True)
class ModelSize:
    """What the plan must know of a model, in bytes and tokens."""

    weights: int
    kv_per_token: int
    max_model_len: int
    activations: int
    """Largest intermediate results of one step."""
    slot: int
    """One device slot at the highest rank; 0 where slots point into the host cache (CPU)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, and how many KV blocks that makes."""

    device: str
    available: int
    weights: int
    kv_blocks: int
    num_blocks: int
    block_size: int
    slots: int
    num_slots: int
    host_cache: int
    activations: int

    @property
    def total(self) -> int:
        """What the device must hold; the host cache counts where device and host are one."""
        host = self.host_cache if self.device == "cpu" else 0
        return self.weights + self.kv_blocks + self.slots + self.activations + host

    def lines(self) -> list[str]:
        """The plan as a table for the start-up log."""
        tokens = self.num_blocks * self.block_size
        slots = "point into the host cache" if self.slots == 0 else gibibytes(self.slots)
        rows = [
            ("weights", gibibytes(self.weights), ""),
            ("KV blocks", gibibytes(self.kv_blocks), f"{self.num_blocks:,} × {self.block_size} = {tokens:,} tokens"),
            (
                "adapter slots",
                slots if self.slots else "–",
                f"{self.num_slots} slots" + ("" if self.slots else f" {slots}"),
            ),
            ("host cache", gibibytes(self.host_cache), "adapters, least recently used leave"),
            ("activations", gibibytes(self.activations), ""),
            ("in all", gibibytes(self.total), f"of {gibibytes(self.available)} free on {self.device}"),
        ]
        return [f"{name:<14}{amount:>12}  {note}".rstrip() for name, amount, note in rows]


def gibibytes(nbytes: int) -> str:
    """A size for people."""
    return f"{nbytes / (1 << 30):.2f} GiB" if nbytes >= 1 << 28 else f"{nbytes / (1 << 20):.1f} MiB"


def plan_memory(config: EngineConfig, model: ModelSize, device: str, available: int) -> MemoryPlan:
    """Divide `available` bytes (free before weights are loaded). Raises EngineError DOES_NOT_FIT naming the flag."""
    slots = model.slot * config.max_loras
    host = config.host_cache if device == "cpu" else 0
    left = available - model.weights - slots - host - model.activations - RESERVE
    per_block = model.kv_per_token * config.block_size
    blocks_of_one = -(-model.max_model_len // config.block_size)
    if config.kv_cache_memory is not None:
        num_blocks = config.kv_cache_memory // per_block
        if num_blocks * per_block > left:
            raise _does_not_fit("kv_cache_memory", config.kv_cache_memory, left, config, model, slots, host)
    else:
        usable = min(left, int(max(available * KV_SHARE, blocks_of_one * per_block)))
        num_blocks = min(usable // per_block, blocks_of_one * config.max_num_seqs)
    if num_blocks < 1 or num_blocks * config.block_size < min(model.max_model_len, config.max_num_batched_tokens):
        raise _does_not_fit("kv_cache_memory", per_block * blocks_of_one, max(left, 0), config, model, slots, host)
    if num_blocks < blocks_of_one:
        need = f"{-(-per_block * blocks_of_one // (1 << 20))}MiB"
        longest = num_blocks * config.block_size
        raise EngineError(
            Code.DOES_NOT_FIT,
            f"KV blocks hold {longest} tokens, one sequence may have {model.max_model_len}: "
            f"set --max-model-len {longest} or less, or --kv-cache-memory to {need} or more",
            param="max_model_len",
        )
    return MemoryPlan(
        device=device,
        available=available,
        weights=model.weights,
        kv_blocks=num_blocks * per_block,
        num_blocks=num_blocks,
        block_size=config.block_size,
        slots=slots,
        num_slots=config.max_loras,
        host_cache=config.host_cache,
        activations=model.activations,
    )


def _does_not_fit(
    name: str, wanted: int, left: int, config: EngineConfig, model: ModelSize, slots: int, host: int
) -> EngineError:
    """Name the largest share that a flag can shrink."""
    shares: Sequence[tuple[int, str]] = (
        (host, "host_cache"),
        (slots, "max_loras"),
        (config.kv_cache_memory or 0, "kv_cache_memory"),
    )
    largest, lever = max(shares)
    advice = (
        f"lower {flag(lever)} (now {gibibytes(largest)})" if largest else "use a smaller model or --quantization int8"
    )
    return EngineError(
        Code.DOES_NOT_FIT,
        f"{gibibytes(wanted)} for KV blocks, {gibibytes(left)} left beside {gibibytes(model.weights)} of weights: "
        f"{advice}",
        param=name,
    )


def host_memory_available() -> int:
    """Bytes this process may still take: the kernel's estimate, cut by the control group's limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text(encoding="ascii").strip()
        if text != "max":
            available = min(available, int(text) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no control group with a memory limit
    return available
