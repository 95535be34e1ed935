"""Puts an engine together from its configuration: the only place that knows every room."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from openlora_kernels import LoraTables, flash

from .adapters.blob import Storage
from .adapters.device import slot_bytes
from .adapters.loader import LoadObserver
from .adapters.manager import AdapterManager
from .config import AUTO, EngineConfig, flag
from .default_model import default_model_dir, is_complete
from .engine import Engine
from .errors import Code, EngineError
from .memory import MemoryPlan, ModelSize, host_memory_available, plan_memory
from .models.loading import DTYPES, LoadedModel, load_model, load_tokenizer
from .runner import ModelRunner
from .scheduling.blocks import BlockManager
from .scheduling.limits import SchedulerConfig
from .scheduling.prefix import PrefixHasher
from .scheduling.scheduler import Scheduler
from .scheduling.slots import SlotPool

logger = logging.getLogger(__name__)

CUDA_SHARE = 0.9
"""Of the device's memory that is planned with; the rest is the allocator's and other processes'."""


@dataclass(frozen=True)
class Assembly:
    """An engine ready to step, and what its server needs beside it."""

    engine: Engine
    model: LoadedModel
    tokenizer: PreTrainedTokenizerFast
    plan: MemoryPlan
    lora_dtype: torch.dtype


def model_folder(config: EngineConfig) -> Path:
    """The folder to load. Raises CONFIG_INVALID where none is named and set-up converted none."""
    if config.model is not None:
        return config.model
    folder = default_model_dir()
    if not is_complete(folder):
        message = "--model is not set and the default model is missing: run python -m openlora_engine.default_model"
        raise EngineError(Code.CONFIG_INVALID, message, param="model")
    return folder


def assemble(config: EngineConfig, observer: LoadObserver, *, clock: Callable[[], float] = time.monotonic) -> Assembly:
    """Load the model, plan the memory, wire the rooms. Raises EngineError with the flag to change."""
    torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    folder = model_folder(config)
    available = host_memory_available()
    tokenizer = load_tokenizer(folder)
    model = load_model(config, folder)
    return wire(config, model, tokenizer, observer, available=available, clock=clock)


def wire(
    config: EngineConfig,
    model: LoadedModel,
    tokenizer: PreTrainedTokenizerFast,
    observer: LoadObserver,
    *,
    available: int,
    clock: Callable[[], float] = time.monotonic,
) -> Assembly:
    """Everything but the model's loading: `available` is what the host had free before it."""
    config = _with_block_size(config, model)
    storage = Storage(
        targets=model.targets,
        dtype=_lora_dtype(config, model),
        max_lora_rank=config.max_lora_rank,
        max_file_bytes=config.max_adapter_size,
        pinned=model.device.type == "cuda",
    )
    plan = _plan(config, model, storage, available)
    tables = LoraTables(model.targets.groups, config.max_loras, storage.dtype, model.device)
    runner = ModelRunner(model, plan.num_blocks, config.block_size, tables)

    def wake() -> None:
        engine.wake()  # bound below: loads are asked for by its requests alone

    adapters = AdapterManager(
        storage,
        tables,
        observer,
        adapters=config.adapters,
        host_cache=config.host_cache,
        max_mix_adapters=config.max_mix_adapters,
        wake=wake,
    )
    for module in config.lora_modules:
        name, _, path = module.partition("=")
        adapters.load_module(name, Path(path))
    slots = SlotPool(config.max_loras, adapters.slots)
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_queue=config.max_queue,
            max_queue_per_tenant=config.max_queue_per_tenant,
            max_wait_s=config.max_wait_s,
        ),
        BlockManager(
            plan.num_blocks,
            # One process, one base, one cache: the name tells it from no other.
            PrefixHasher(model.name, config.block_size),
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        slots,
        adapters.host,
    )
    engine = Engine(config, model, tokenizer, scheduler, slots, runner, adapters, clock)
    adapters.on_forget = lambda digest: engine.pin(digest, pinned=False)
    return Assembly(engine, model, tokenizer, plan, storage.dtype)


def _with_block_size(config: EngineConfig, model: LoadedModel) -> EngineConfig:
    """The block size that the device's attention wants, unless one is given; on CUDA, why flash-attn is not used."""
    head_dim = max(layer.head_dim for layer in model.kv_layers)
    if config.block_size == 0:
        on_cuda = model.device.type == "cuda"
        size = flash.preferred_block_size(model.device, model.dtype, head_dim) if on_cuda else flash.SDPA_BLOCK_SIZE
        config = dataclasses.replace(config, block_size=size)
    if model.device.type == "cuda" and (reason := flash.unfit(model.device, model.dtype, head_dim, config.block_size)):
        logger.warning("attention by torch's SDPA, which is slower: %s", reason)
    return config


def _lora_dtype(config: EngineConfig, model: LoadedModel) -> torch.dtype:
    name = config.lora_dtype
    if name == AUTO:
        return torch.float16 if model.device.type == "cpu" else model.dtype
    if model.device.type == "cpu" and name == "bfloat16":
        raise EngineError(Code.CONFIG_INVALID, f"{flag('lora_dtype')} bfloat16 is for CUDA: use float16 or float32")
    return DTYPES[name]


def _plan(config: EngineConfig, model: LoadedModel, storage: Storage, available: int) -> MemoryPlan:
    on_cuda = model.device.type == "cuda"
    if on_cuda:
        free, _ = torch.cuda.mem_get_info(model.device)
        available = int(CUDA_SHARE * (free + model.weights_nbytes))
    itemsize = model.dtype.itemsize
    widest = max(target.out_features for target in model.targets)
    size = ModelSize(
        weights=model.weights_nbytes,
        kv_per_token=sum(2 * layer.num_kv_heads * layer.head_dim * itemsize for layer in model.kv_layers),
        max_model_len=model.max_model_len,
        # The widest projections of a step's tokens, and logits with their copy for every sequence.
        activations=8 * config.max_num_batched_tokens * widest * itemsize + 8 * config.max_num_seqs * model.vocab_size,
        slot=slot_bytes(storage) if on_cuda else 0,
    )
    return plan_memory(config, size, model.device.type, available)
