"""Rules between keys: each broken one names the key to change; each has a neighbour that passes."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from openlora_node.config import Config, ConfigError, Problem, load, rules
from openlora_node.config.engine_rules import (
    engines_are_written_once,
    engines_listen_apart,
    engines_share_a_device_by_consent,
    one_advert_names_all_models,
    several_engines_name_their_models,
)
from openlora_node.config.rules import RULES, broken_rules

OF_SEVERAL = (engines_are_written_once, several_engines_name_their_models, engines_listen_apart,
              engines_share_a_device_by_consent, one_advert_names_all_models)  # fmt: skip
"""Rules that only `engines` can break, which a file alone can hold: tests/unit/config/test_engines.py."""
BROKEN = [
    (("node.network=openledger", "chain.chain_id=1"), "chain.chain_id"),
    (("engine.url=http://127.0.0.1:8000",), "engine.url"),
    (("engine.backend=vllm", "engine.url=http://127.0.0.1:8000"), "engine.spawn"),
    (("engine.backend=vllm", "engine.spawn=false"), "engine.url"),
    (("engine.backend=vllm", "engine.spawn=false", "engine.url=http://a", "engine.socket=/run/a"), "engine.url"),
    (("engine.api_key_file=/k",), "engine.api_key_file"),
    (("engine.spawn=false", "engine.device=cuda:0"), "engine.device"),
    (("engine.spawn=false", "engine.args=[--max-num-seqs=4]"), "engine.args"),
    (("api.health_listen=0.0.0.0:9470",), "api.health_listen"),
    (("api.metrics_listen=[::]:9471",), "api.metrics_listen"),
    (("api.signed_listen=192.168.0.7:443",), "api.signed_listen"),
    (("api.tls_key_file=/etc/k",), "api.tls_certificate_file"),
    (("api.tls_certificate_file=/etc/c",), "api.tls_key_file"),
    (("gateway.listen=0.0.0.0:8470",), "gateway.listen"),
    (("gateway.spend_per_request=1 OPEN", "gateway.spend_per_day=0.9 OPEN"), "gateway.spend_per_request"),
    (("gateway.escrow_per_node=0.4 OPEN",), "gateway.escrow_per_node"),
    (("limits.in_flight_per_payer=65",), "limits.in_flight_per_payer"),
    (("api.metrics_listen=127.0.0.1:9470",), "api.metrics_listen"),
    (("api.metrics_listen=0.0.0.0:9470", "api.metrics_public=true"), "api.metrics_listen"),
    ((f"api.control_socket=/run/{'x' * 103}",), "api.control_socket"),
    ((f"engine.socket=/run/{'x' * 103}",), "engine.socket"),
    ((f"node.data_dir=/{'x' * 100}",), "node.data_dir"),
]
KEPT = [
    ("node.network=openledger", "chain.chain_id=1612"),
    ("node.network=openledger-testnet", "chain.chain_id=161201"),
    ("node.network=devnet", "chain.chain_id=31337"),
    ("engine.backend=vllm", "engine.spawn=false", "engine.url=http://127.0.0.1:8000"),
    ("engine.backend=vllm", "engine.spawn=false", "engine.socket=/run/vllm.sock"),
    ("engine.backend=vllm", "engine.spawn=false", "engine.url=http://127.0.0.1:8000", "engine.api_key_file=/k"),
    ("engine.device=cuda:1", "engine.kv_memory=2GiB", "engine.args=[--max-num-seqs=64, --quantization=int8]"),
    ("api.health_listen=[::1]:9470",),
    ("api.health_listen=localhost:9470", "api.metrics_listen=127.0.0.1:9471"),
    ("api.metrics_listen=0.0.0.0:9471", "api.metrics_public=true"),
    ("api.signed_listen=127.0.0.1:8443",),
    ("api.signed_listen=0.0.0.0:443", "api.tls_certificate_file=/etc/c", "api.tls_key_file=/etc/k"),
    ("gateway.listen=0.0.0.0:8470", "gateway.public=true"),
    ("gateway.spend_per_request=2 OPEN", "gateway.spend_per_day=2 OPEN"),
    ("limits.in_flight_per_payer=64",),
    ("api.health_listen=127.0.0.1:0", "api.metrics_listen=127.0.0.1:0"),
    (f"api.control_socket=/run/{'x' * 102}",),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "key"), BROKEN, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value
)
def test_broken(flags: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={}, flags=flags)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize("flags", KEPT, ids=" ".join)
def test_kept(flags: tuple[str, ...]) -> None:
    assert not list(broken_rules(load(environ={}, flags=flags).config))


def refused(flags: tuple[str, ...]) -> bool:
    try:
        load(environ={}, flags=flags)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in OF_SEVERAL], ids=lambda rule: rule.__name__)
def test_every_rule_has_a_case(rule: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", (rule,))
    assert any(refused(flags) for flags, _ in BROKEN)
    assert not any(refused(flags) for flags in KEPT)


def test_all_broken_rules_are_reported_together_at_their_lines(problems_of: Callable[..., list[Problem]]) -> None:
    problems = problems_of(
        "gateway:\n  listen: 0.0.0.0:1\napi:\n  health_listen: 0.0.0.0:2\n", {"OPENLORA_LIMITS__QUEUE": "1"}
    )
    assert [(problem.place, problem.key) for problem in problems] == [
        ("node.yaml:2", "gateway.listen"),
        ("node.yaml:4", "api.health_listen"),
        ("", "limits.in_flight_per_payer"),
    ]


def test_a_config_built_directly_keeps_the_rules_and_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE", '{"network": "openledger"}')
    monkeypatch.setenv("OPENLORA_NODE__NETWORK", "openledger")
    assert Config().node.network == "devnet"
    with pytest.raises(ValidationError, match="contradict"):
        Config.model_validate({"gateway": {"listen": "0.0.0.0:1"}})
    with pytest.raises(ValidationError, match="Extra inputs"):
        Config.model_validate({"gatway": {}})
