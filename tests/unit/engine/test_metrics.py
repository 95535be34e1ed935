"""Metrics as Prometheus reads them: vLLM's names, tiers, and any prefix."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openlora_engine.metrics import EngineMetrics, EngineStats
from openlora_engine.request import FinishReason, Timings

STATS = EngineStats(
    num_requests_running=3,
    num_requests_waiting=2,
    num_requests_paused=1,
    kv_cache_usage=0.5,
    num_blocks=64,
    block_size=16,
    prefix_cache_queries=100,
    prefix_cache_hits=40,
    num_preemptions=5,
    slots_used=2,
    slots_total=4,
    adapters_registered=9,
    adapters_pinned=1,
    running_adapters=("law", 'odd"name'),
    waiting_adapters=("sql",),
    adapter_bytes={"host": 1_000, "slot": 500},
    host_cache_limit=4_000,
    evictions={("slot", "lru"): 7, ("host", "lru"): 1},
)


def samples(prefix: str = "openlora") -> dict[tuple[str, tuple[str, ...]], float]:
    metrics = EngineMetrics("m", prefix)
    metrics.first_token(0.03)
    metrics.next_tokens(0.4, 2)
    metrics.choice_finished(FinishReason.LENGTH, 12, Timings(0.1, 0.05, "disk", 0.2, 0.3, 4, 0))
    metrics.choice_finished(FinishReason.STOP, 3, Timings(0.1, 0.0, "base", 0.2, 0.3, 4, 0))
    metrics.prompt_computed(20)
    metrics.request_finished(0.7)
    metrics.request_failed("BUSY")
    metrics.adapter_loaded("disk", 0.02)
    metrics.adapter_load_failed("ADAPTER_INVALID")
    text = metrics.expose(STATS).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            rest = tuple(value for name, value in sample.labels.items() if name not in ("model_name", "le"))
            if sample.labels.get("le") in (None, "+Inf"):
                found[sample.name, rest] = sample.value
            assert sample.labels.get("model_name", "m") == "m"
    return found


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("num_requests_running", (), 3),
        ("num_requests_waiting", (), 2),
        ("num_requests_paused", (), 1),
        ("kv_cache_usage_perc", (), 0.5),
        ("prefix_cache_queries_total", (), 100),
        ("prefix_cache_hits_total", (), 40),
        ("num_preemptions_total", (), 5),
        ("prompt_tokens_total", (), 20),
        ("generation_tokens_total", (), 15),
        ("request_success_total", ("length",), 1),
        ("request_success_total", ("stop",), 1),
        ("request_errors_total", ("BUSY",), 1),
        ("time_to_first_token_seconds_count", (), 1),
        ("inter_token_latency_seconds_sum", (), 0.4),
        ("inter_token_latency_seconds_count", (), 2),
        ("e2e_request_latency_seconds_sum", (), 0.7),
        ("request_queue_time_seconds_count", (), 2),
        ("request_prefill_time_seconds_sum", (), 0.4),
        ("request_decode_time_seconds_sum", (), 0.6),
        ("request_prompt_tokens_sum", (), 20),
        ("request_generation_tokens_sum", (), 15),
        ("cache_config_info", ("16", "64"), 1),
        ("lora_pool_slots_used", (), 2),
        ("lora_pool_slots_total", (), 4),
        ("adapters_registered", (), 9),
        ("adapters_pinned", (), 1),
        ("adapter_bytes", ("host",), 1_000),
        ("adapter_bytes", ("slot",), 500),
        ("adapter_host_cache_limit_bytes", (), 4_000),
        ("adapter_requests_total", ("disk",), 1),
        ("adapter_requests_total", ("base",), 1),
        ("adapter_wait_seconds_sum", ("disk",), 0.05),
        ("adapter_load_seconds_bucket", ("disk",), 1),
        ("adapter_load_failures_total", ("ADAPTER_INVALID",), 1),
        ("adapter_evictions_total", ("lru", "slot"), 7),
    ],
)
def test_names_and_values(name: str, labels: tuple[str, ...], value: float) -> None:
    assert samples()[f"openlora:{name}", labels] == pytest.approx(value)


def test_requests_of_the_base_wait_for_no_adapter() -> None:
    assert ("openlora:adapter_wait_seconds_sum", ("base",)) not in samples()


def test_the_gateways_adapter_metric_is_vllms() -> None:
    found = {labels: value for (name, labels), value in samples("vllm").items() if name == "vllm:lora_requests_info"}
    [(labels, value)] = found.items()
    assert labels == ("4", 'law,odd"name', "sql")
    assert value > 1_600_000_000


def test_no_series_tells_when_it_began() -> None:
    assert not [name for name, _ in samples() if name.endswith("_created")]


def test_another_prefix_renames_everything() -> None:
    assert all(name.startswith("vllm:") for name, _ in samples("vllm"))
