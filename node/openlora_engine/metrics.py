"""What the engine tells Prometheus: vLLM's names, and what the adapter tiers did. Knows no scheduler and no socket.

Counts and times of requests are recorded here as they happen; levels (queues, caches, slots) are read from an
`EngineStats` snapshot when somebody scrapes. Names follow vLLM with another prefix (`--metrics-prefix vllm` gives
vLLM's own, for its dashboards and for the Kubernetes gateway); adapter tiers have no counterpart there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .request import FinishReason, Timings

TIERS = ("base", "slot", "host", "disk")

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
ITL_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
LOAD_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True)
class EngineStats:
    """The engine's levels and running totals at one moment. Ratios lie in 0..1, sizes are bytes, the rest are counts.

    `evictions` counts by (tier left, cause); `adapter_bytes` gives what each tier holds.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_requests_paused: int = 0
    """Of the running ones: held because their reader lags."""
    kv_cache_usage: float = 0.0
    num_blocks: int = 0
    block_size: int = 0
    prefix_cache_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_cache_hits: int = 0
    """Prompt tokens found there."""
    num_preemptions: int = 0
    slots_used: int = 0
    slots_total: int = 0
    adapters_registered: int = 0
    adapters_pinned: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    adapter_bytes: Mapping[str, int] = field(default_factory=dict)
    host_cache_limit: int = 0
    evictions: Mapping[tuple[str, str], int] = field(default_factory=dict)


class EngineMetrics:
    """All metrics of one engine process, in a registry of their own. Recording is thread-safe."""

    def __init__(self, model_name: str, prefix: str = "openlora") -> None:
        # Else a time stamp stands beside every counter, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._model = {"model_name": model_name}
        self._prefix = prefix
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens evaluated or found in the cache.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._success = self._counter("request_success", "Choices that ended, by reason.", "finished_reason")
        self._errors = self._counter("request_errors", "Requests answered with an error, by code.", "code")
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self._itl = self._histogram("inter_token_latency_seconds", "Between tokens of a choice.", ITL_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first step.", REQUEST_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token.", REQUEST_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "First token to last.", REQUEST_BUCKETS)
        self._request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens a request.", TOKEN_BUCKETS)
        self._request_output = self._histogram("request_generation_tokens", "Tokens a choice.", TOKEN_BUCKETS)
        self._adapter_requests = self._counter("adapter_requests", "Choices, by where the adapter was found.", "tier")
        self._adapter_wait = self._histogram(
            "adapter_wait_seconds", "Time a choice waited for its adapter.", LOAD_BUCKETS, "tier"
        )
        self._adapter_load = self._histogram(
            "adapter_load_seconds", "Time of one load out of a tier into the next.", LOAD_BUCKETS, "tier"
        )
        self._load_failures = self._counter("adapter_load_failures", "Loads that failed, by code.", "code")

    # What the server saw of a request.

    def first_token(self, seconds: float) -> None:
        """A choice's first token came `seconds` after its request arrived."""
        self._ttft.labels(**self._model).observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """`count` tokens of one choice came `seconds` after its previous ones."""
        for _ in range(count):
            self._itl.labels(**self._model).observe(seconds / count)

    def choice_finished(self, reason: FinishReason, output_tokens: int, timings: Timings | None) -> None:
        """A choice ended."""
        self._success.labels(**self._model, finished_reason=reason.value).inc()
        self._generation_tokens.labels(**self._model).inc(output_tokens)
        self._request_output.labels(**self._model).observe(output_tokens)
        if timings is None:
            return
        self._queue.labels(**self._model).observe(timings.queue_s)
        self._prefill.labels(**self._model).observe(timings.prefill_s)
        self._decode.labels(**self._model).observe(timings.decode_s)
        self._adapter_requests.labels(**self._model, tier=timings.adapter_tier).inc()
        if timings.adapter_tier != "base":
            self._adapter_wait.labels(**self._model, tier=timings.adapter_tier).observe(timings.adapter_wait_s)

    def prompt_computed(self, prompt_tokens: int) -> None:
        """A prompt was evaluated to its end."""
        self._prompt_tokens.labels(**self._model).inc(prompt_tokens)
        self._request_prompt.labels(**self._model).observe(prompt_tokens)

    def request_finished(self, seconds: float) -> None:
        """All choices of a prompt ended well, `seconds` after its request arrived."""
        self._e2e.labels(**self._model).observe(seconds)

    def request_failed(self, code: str) -> None:
        """A request was answered with an error."""
        self._errors.labels(**self._model, code=code).inc()

    # What the loader did.

    def adapter_loaded(self, tier: str, seconds: float) -> None:
        """An adapter was loaded out of `tier`: `disk` into host memory, `host` into a slot."""
        self._adapter_load.labels(**self._model, tier=tier).observe(seconds)

    def adapter_load_failed(self, code: str) -> None:
        """An adapter could not be loaded."""
        self._load_failures.labels(**self._model, code=code).inc()

    def expose(self, stats: EngineStats) -> bytes:
        """Everything in Prometheus' text format, levels as in `stats`."""
        levels = CollectorRegistry()
        levels.register(_Levels(self._prefix, self._model, stats))
        return generate_latest(self._registry) + generate_latest(levels)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{self._prefix}:{name}", meaning, ["model_name", *labels], registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        names = ["model_name", *labels]
        return Histogram(f"{self._prefix}:{name}", meaning, names, buckets=buckets, registry=self._registry)


class _Levels:
    """One snapshot as Prometheus metrics."""

    def __init__(self, prefix: str, model: Mapping[str, str], stats: EngineStats) -> None:
        self._prefix, self._model, self._stats = prefix, model, stats

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's interface of a collector."""
        stats = self._stats
        yield self._gauge("num_requests_running", "Sequences that run.", stats.num_requests_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.num_requests_waiting)
        yield self._gauge("num_requests_paused", "Sequences whose reader lags.", stats.num_requests_paused)
        yield self._gauge("kv_cache_usage_perc", "KV blocks in use; 1 is all.", stats.kv_cache_usage)
        yield self._total("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries)
        yield self._total("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits)
        yield self._total("num_preemptions", "Sequences preempted.", stats.num_preemptions)
        yield self._gauge("lora_pool_slots_used", "Device slots in use.", stats.slots_used)
        yield self._gauge("lora_pool_slots_total", "Device slots.", stats.slots_total)
        yield self._gauge("adapters_registered", "Adapters known by name.", stats.adapters_registered)
        yield self._gauge("adapters_pinned", "Adapters that are never evicted.", stats.adapters_pinned)
        yield self._gauge("adapter_host_cache_limit_bytes", "Bound of the host tier.", stats.host_cache_limit)
        yield self._by_label("adapter_bytes", "Bytes of adapters a tier holds.", "tier", stats.adapter_bytes)
        yield self._evictions()
        sizes = {"block_size": stats.block_size, "num_gpu_blocks": stats.num_blocks}  # vLLM calls them so on CPUs too
        yield self._info("cache_config_info", "The KV cache.", **sizes)
        yield self._lora_info()

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"{self._prefix}:{name}", meaning, labels=["model_name"])
        metric.add_metric(list(self._model.values()), value)
        return metric

    def _total(self, name: str, meaning: str, value: float) -> Metric:
        metric = CounterMetricFamily(f"{self._prefix}:{name}", meaning, labels=["model_name"])
        metric.add_metric(list(self._model.values()), value)
        return metric

    def _by_label(self, name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
        metric = GaugeMetricFamily(f"{self._prefix}:{name}", meaning, labels=["model_name", label])
        for key, value in values.items():
            metric.add_metric([*self._model.values(), key], value)
        return metric

    def _evictions(self) -> Metric:
        names = ["model_name", "tier", "cause"]
        metric = CounterMetricFamily(f"{self._prefix}:adapter_evictions", "Adapters that left a tier.", labels=names)
        for (tier, cause), count in self._stats.evictions.items():
            metric.add_metric([*self._model.values(), tier, cause], count)
        return metric

    def _info(self, name: str, meaning: str, **labels: object) -> Metric:
        metric = GaugeMetricFamily(f"{self._prefix}:{name}", meaning, labels=["model_name", *labels])
        metric.add_metric([*self._model.values(), *(str(value) for value in labels.values())], 1)
        return metric

    def _lora_info(self) -> Metric:
        """vLLM's shape, which the Kubernetes gateway reads: names joined by commas, the value is the time."""
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        metric = GaugeMetricFamily(f"{self._prefix}:lora_requests_info", "Adapters in use.", labels=labels)
        running, waiting = ",".join(self._stats.running_adapters), ",".join(self._stats.waiting_adapters)
        metric.add_metric([str(self._stats.slots_total), running, waiting], time.time())
        return metric
