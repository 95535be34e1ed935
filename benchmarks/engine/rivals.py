"""vLLM and llama.cpp on the closed batch: as they come, and with the best settings that were found for them.

What was tried, on the machine of the figures, is in docs/benchmarks.md; what is here is the outcome.
"""

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
from .peers.process import PeerMissing, PeerProcess
from .peers.serve import PeerSetup
from .workloads import Workload, closed_batch


@dataclass(frozen=True)
class Rival:
    """A peer with settings: `weights` is llama.cpp's storage, the rest are its own parameters."""

    peer: str
    label: str
    plain: bool
    settings: Mapping[str, Any]
    weights: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, bench: Bench, adapters: AdapterSet, names: tuple[str, ...]) -> PeerProcess:
        """Load it with these adapters. Raises PeerMissing, PeerFailed."""
        model, files = str(bench.model), {name: str(adapters.path(name)) for name in names}
        if self.peer == "llamacpp":
            folder = bench.folder / "gguf"
            model = str(model_file(self.weights, folder))
            files = {name: str(lora_file(adapters.path(name), folder)) for name in names}
        settings = dict(self.settings)
        if self.peer == "vllm" and names:
            settings |= {"max_loras": len(names), "max_lora_rank": 16}
        setup = PeerSetup(model, files, settings)
        return PeerProcess(self.label, setup, peer=self.peer, environment=self.environment)


VLLM_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
RIVALS = (
    Rival("vllm", "vLLM", True, {"dtype": "float32", "max_num_seqs": 32}, environment=VLLM_ENVIRONMENT),
    Rival("llamacpp", "llama.cpp, Q4_1", True, {"n_parallel": 32, "n_threads": 2}, weights="q4_1"),
)


def peers(bench: Bench) -> Outcome:
    """16 adapters, closed batch, every engine in turn."""
    adapters = bench.adapters(ALL_R16)
    names = adapters.names(NUM_ADAPTERS)

    def mixed(seed: int) -> Workload:
        return closed_batch(names, seed=seed)

    with ExitStack() as stack:
        ours = stack.enter_context(closing(OurEngine(adapters.folder)))
        ours.resolve(*names)
        ours.run(closed_batch(names, output=2, seed=99))
        mine = "OpenLoRA, float32"
        measures: dict[str, Callable[[int], float]] = {mine: tokens_per_s(ours, mixed)}
        running: list[Rival] = []
        outcome = Outcome()
        for rival in RIVALS:
            try:
                process = stack.enter_context(closing(rival.start(bench, adapters, names)))
            except PeerMissing as missing:
                bench.say(f"  {missing}")
                continue
            process.run(closed_batch(names, output=2, seed=99))
            measures[rival.label] = tokens_per_s(process, mixed)
            running.append(rival)
        taken = bench.in_turn(measures, repeats=min(bench.repeats, 2))
    outcome.samples, outcome.others = taken.samples, taken.others
    for rival in running:
        target = Target(3) if rival.plain else Target()
        outcome.results.append(Result(f"16 adapters ÷ {rival.label}", ratio(outcome, mine, rival.label), target))
        outcome.settings[rival.label] = ", ".join(
            f"{key} {value}"
            for key, value in {**rival.settings, **rival.environment}.items()
            if key != "HF_HUB_OFFLINE"
        )
    return outcome
