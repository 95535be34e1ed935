"""vLLM and llama.cpp on the closed batch: as they come, with the best settings found for them, and the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from .adapters import ALL_R16, AdapterSet
from .closed import NUM_ADAPTERS, tokens_per_s
from .figure import Bench, Outcome, Result, Target, ratio
from .ours import OurEngine
from .peers.gguf_files import lora_file, model_file
from .peers.process import PeerFailed, PeerMissing, PeerProcess
from .peers.serve import PeerSetup
from .workloads import Workload, closed_batch

OURS = "OpenLoRA, float32"


@dataclass(frozen=True)
class Rival:
    """A peer with settings: `weights` is how llama.cpp's model is stored, the rest are its own parameters' names."""

    peer: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "q4_1"
    plain: bool = False

    def start(self, bench: Bench, adapters: AdapterSet, names: tuple[str, ...]) -> PeerProcess:
        """Load it with these adapters. Raises PeerMissing, PeerFailed."""
        settings = {**COMMON[self.peer], **self.settings}
        model, files = str(bench.model), {name: str(adapters.path(name)) for name in names}
        if self.peer == "llamacpp":
            folder = bench.folder / "gguf"
            model = str(model_file(self.weights, folder))
            files = {name: str(lora_file(adapters.path(name), folder)) for name in names}
        setup = PeerSetup(model, files, settings)
        return PeerProcess(self.label, setup, peer=self.peer, environment=ENVIRONMENT.get(self.peer))

    def __str__(self) -> str:
        """Its settings, for a reader."""
        stored = [f"weights {self.weights}"] if self.peer == "llamacpp" else []
        settings = {**COMMON[self.peer], **self.settings}
        return ", ".join((*stored, *(f"{name} {value}" for name, value in settings.items())))


# As many seats and slots as the workload needs, one thread a core: without these neither batches at all.
COMMON: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"dtype": "float32", "max_num_seqs": 32, "max_loras": NUM_ADAPTERS, "max_lora_rank": 16},
    "llamacpp": {"n_parallel": 32, "n_threads": 2},
}
ENVIRONMENT = {
    # "all" crashes vLLM where it cannot read the machine's topology.
    "vllm": {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
}

RIVALS = (
    Rival("vllm", "vLLM", plain=True),
    Rival("llamacpp", "llama.cpp, Q4_1", plain=True),
    Rival("vllm", "vLLM, best", {"max_num_batched_tokens": 256}),
    Rival("llamacpp", "llama.cpp, Q4_0, best", {"poll": 0, "kv_unified": True}, "q4_0"),
)

TRIED = (
    *(rival for rival in RIVALS if rival.plain),
    # With LoRA on CPU, vLLM 0.32 switches its compiler off whatever is asked (vllm/platforms/cpu.py), and its LoRA
    # kernels are torch's: nothing to win from enforce_eager or from Triton, which has no CPU back end on PyPI.
    Rival("vllm", "vLLM, bfloat16", {"dtype": "bfloat16"}),
    Rival("vllm", "vLLM, steps of 256 tokens", {"max_num_batched_tokens": 256}),
    Rival("vllm", "vLLM, steps of 128 tokens", {"max_num_batched_tokens": 128}),
    Rival("vllm", "vLLM, steps of 64 tokens", {"max_num_batched_tokens": 64}),
    Rival("vllm", "vLLM, blocks of 32", {"block_size": 32}),
    Rival("llamacpp", "llama.cpp, float32", {}, "f32"),
    Rival("llamacpp", "llama.cpp, float16", {}, "f16"),
    Rival("llamacpp", "llama.cpp, Q8_0", {}, "q8_0"),
    Rival("llamacpp", "llama.cpp, Q4_0", {}, "q4_0"),
    Rival("llamacpp", "llama.cpp, Q4_0, waiting threads sleep", {"poll": 0}, "q4_0"),
    Rival("llamacpp", "llama.cpp, Q4_0, flash attention", {"poll": 0, "flash_attn_type": 1}, "q4_0"),
    Rival("llamacpp", "llama.cpp, Q4_0, batches of 512 in 128", {"poll": 0, "n_batch": 512, "n_ubatch": 128}, "q4_0"),
    Rival("llamacpp", "llama.cpp, Q4_0, one KV cache", {"poll": 0, "kv_unified": True}, "q4_0"),
    Rival("llamacpp", "llama.cpp, Q8_0, one KV cache", {"poll": 0, "kv_unified": True}, "q8_0"),
    Rival("llamacpp", "llama.cpp, Q4_0, 1 thread", {"poll": 0, "n_threads": 1}, "q4_0"),
)


def peers(bench: Bench) -> Outcome:
    """16 adapters, closed batch, ours and the peers in turn."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(NUM_ADAPTERS)

    def mixed(seed: int) -> Workload:
        return closed_batch(names, seed=seed)

    with ExitStack() as stack:
        ours = stack.enter_context(closing(OurEngine(adapters.folder)))
        ours.resolve(*names)
        ours.run(closed_batch(names, output=2, seed=99))
        measures: dict[str, Callable[[int], float]] = {OURS: tokens_per_s(ours, mixed)}
        running: list[Rival] = []
        for rival in RIVALS:
            try:
                process = stack.enter_context(closing(rival.start(bench, adapters, names)))
                process.run(closed_batch(names, output=2, seed=99))
            except (PeerMissing, PeerFailed) as problem:
                bench.say(f"  {problem}")
                continue
            measures[rival.label] = tokens_per_s(process, mixed)
            running.append(rival)
        outcome = bench.in_turn(measures, repeats=bench.repeats)
    for rival in running:
        target = Target(3) if rival.plain else Target()
        outcome.results.append(Result(f"16 adapters ÷ {rival.label}", ratio(outcome, OURS, rival.label), target))
        outcome.settings[rival.label] = str(rival)
    return outcome


def tuning(bench: Bench) -> Outcome:
    """What was tried for the peers: each setting by itself on a shorter closed batch (32 outputs), two runs."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(NUM_ADAPTERS)
    outcome = Outcome()
    for rival in TRIED:
        try:
            with closing(rival.start(bench, adapters, names)) as process:
                process.run(closed_batch(names, output=2, seed=99))
                measure = tokens_per_s(process, lambda seed: closed_batch(names, output=32, seed=seed))
                for index in range(1 if bench.quick else 2):
                    bench.one_round(outcome, index, {rival.label: measure})
        except (PeerMissing, PeerFailed) as problem:
            bench.say(f"  {rival.label}: {problem}")
            outcome.settings[f"{rival.label} (failed)"] = str(rival)
        else:
            outcome.settings[rival.label] = str(rival)
    return outcome
