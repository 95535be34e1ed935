"""`engines:`: several engines in one file; what is taken, what is refused and where; `engine:` is its short form."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from openlora_node.config import Config, Loaded, Problem
from openlora_node.config.engine_rules import ENGINE_RULES
from openlora_node.config.engines import OWN_FLAGS, EachEngine, NamedEngine
from openlora_node.config.rules import RULES
from openlora_node.protocol.errors import ErrorCode

TWO = """
node: {data_dir: /srv/x}
engine: {grace: 5s, adapters_dir: /srv/adapters}
engines:
  llama-0:
    model: /srv/llama
    device: cuda:0
    max_loras: 64
    kv_memory: 2GiB
    args: [--max-num-seqs=64, --no-enable-prefix-caching]
  qwen:
    model: /srv/qwen
    backend: vllm
    spawn: false
    url: http://10.0.0.7:8000
    api_key_file: /etc/openlora/qwen.key
"""


def entry(**keys: str) -> str:
    return "".join(f"    {key}: {value}\n" for key, value in ({"model": "/m"} | keys).items())


def two(one: dict[str, str], other: dict[str, str]) -> str:
    return f"engines:\n  a:\n{entry(**one)}  b:\n{entry(**other)}"


def test_each_engine_has_its_name_its_keys_and_its_socket(load_text: Callable[..., Loaded]) -> None:
    config = load_text(TWO).config
    llama, qwen = config.all_engines
    assert (llama.name, llama.where, llama.socket) == (
        "llama-0", "engines.llama-0", Path("/srv/x/devnet/engine-llama-0.sock"),
    )  # fmt: skip
    assert (llama.keys.model, llama.keys.device, llama.keys.max_loras, llama.keys.kv_memory) == (
        "/srv/llama", "cuda:0", 64, 2 << 30,
    )  # fmt: skip
    assert llama.keys.args == ("--max-num-seqs=64", "--no-enable-prefix-caching")
    assert (qwen.keys.url, qwen.keys.api_key_file) == ("http://10.0.0.7:8000", Path("/etc/openlora/qwen.key"))
    assert qwen.keys.host_cache == EachEngine().host_cache


def test_the_section_engine_is_the_short_form_of_one(load_text: Callable[..., Loaded]) -> None:
    config = load_text("node: {data_dir: /srv/x}\nengine: {model: /m, device: cpu}\n").config
    assert config.all_engines == (NamedEngine("main", "engine", config.engine, Path("/srv/x/devnet/engine.sock")),)
    assert load_text("engines:\n").config.engines == {}, "an empty section is none"


def test_every_key_is_shown_with_its_line(load_text: Callable[..., Loaded], tmp_path: Path) -> None:
    settings = {item.key.dotted: item for item in load_text(TWO).settings}
    device = settings["engines.llama-0.device"]
    assert (device.text, device.source, device.key.env) == ("cuda:0", f"{tmp_path}/node.yaml:7", "")
    assert settings["engines.qwen.device"].source == "default"
    assert settings["engines.llama-0.args"].text == "[--max-num-seqs=64, --no-enable-prefix-caching]"
    assert sum(name.startswith("engines.") for name in settings) == 2 * len(EachEngine.model_fields)


BROKEN = [
    (f"engine: {{model: /m}}\n{two({'device': 'cuda:0'}, {'device': 'cuda:1'})}", ["engine.model"]),
    ("engines:\n  a:\n    device: cpu\n", ["engines.a.model"]),
    (two({"device": "cuda:0"}, {"device": "cuda:0"}), ["engines.a.kv_memory", "engines.b.kv_memory"]),
    (two({"device": "cuda:0", "kv_memory": "1GiB"}, {"device": "cuda"}), ["engines.b.kv_memory"]),
    (two({"device": "auto"}, {"device": "cpu", "kv_memory": "1GiB"}), ["engines.a.kv_memory"]),
    (two({"device": "cuda:0", "socket": "/r/s"}, {"device": "cuda:1", "socket": "/r/s"}), ["engines.b.socket"]),
    (
        two({"backend": "vllm", "spawn": "false", "url": "http://h:1"},
            {"backend": "vllm", "spawn": "false", "url": "http://h:1"}),
        ["engines.b.url"],
    ),
    (two({"url": "http://h:1"}, {"device": "cpu", "kv_memory": "1GiB"}), ["engines.a.url", "engines.a.kv_memory"]),
    (two({"device": "cuda:0", "api_key_file": "/k"}, {"device": "cuda:1"}), ["engines.a.api_key_file"]),
    (two({"device": "cuda:0", "socket": f"/r/{'x' * 110}"}, {"device": "cuda:1"}), ["engines.a.socket"]),
]  # fmt: skip
BROKEN += [
    (
        "engines:\n" + "".join(f"  e{n}:\n{entry(model=f'/m{n}', device=f'cuda:{n}')}" for n in range(6)),
        ["engines.e4.model"],
    ),
]
KEPT = [
    two({"device": "cuda:0"}, {"device": "cuda:1"}),
    two({"device": "cuda:0"}, {"device": "cpu"}),
    two({"device": "cuda:0", "kv_memory": "1GiB"}, {"device": "cuda:0", "kv_memory": "1GiB"}),
    two({"spawn": "false"}, {"spawn": "false"}),
    two({"backend": "vllm", "spawn": "false", "url": "http://h:1"},
        {"backend": "vllm", "spawn": "false", "url": "http://h:2"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "keys"), BROKEN)
def test_contradictions_name_the_key_to_change_and_its_line(
    problems_of: Callable[..., list[Problem]], content: str, keys: list[str]
) -> None:
    problems = problems_of(content)
    assert sorted(problem.key for problem in problems) == sorted(keys)
    assert all(problem.place.startswith("node.yaml:") or not problem.place for problem in problems)


def test_many_engines_of_few_models_are_kept(load_text: Callable[..., Loaded]) -> None:
    content = "engines:\n" + "".join(f"  e{n}:\n{entry(model=f'/m{n % 4}', device=f'cuda:{n}')}" for n in range(16))
    assert len(load_text(content).config.all_engines) == 16


@pytest.mark.parametrize("content", KEPT)
def test_neighbours_of_contradictions_are_kept(load_text: Callable[..., Loaded], content: str) -> None:
    assert len(load_text(content).config.all_engines) == 2


def test_every_rule_of_engines_is_in_force() -> None:
    assert set(ENGINE_RULES) <= set(RULES)


@pytest.mark.parametrize(
    ("content", "place", "key", "says"),
    [
        ("engines:\n  a:\n    model: /m\n    devise: cpu\n", "node.yaml:4", "engines.a.devise", "there is no such key"),
        ("engines:\n  A_1:\n    model: /m\n", "node.yaml:2", "engines.A_1", "at most 24 of a-z, 0-9 and -"),
        ("engines:\n  a: /m\n", "node.yaml:2", "engines.a", "write its keys below it"),
        ("engines:\n  a: null\n", "node.yaml:2", "engines.a", "write its keys below it"),
        ("engines: [a]\n", "node.yaml:1", "engines", "write a name for each engine"),
        ("engines:\n  a:\n    model: /m\n    device: gpu\n", "node.yaml:4", "engines.a.device", "cuda:0 to cuda:99"),
        (
            "engines:\n  a:\n    model: /m\n    grace: 5s\n",
            "node.yaml:4",
            "engines.a.grace",
            "did you mean engine.grace",
        ),
        ("engines:\n  a:\n    model: /m\n    args: [--uds=/x]\n", "node.yaml:4", "engines.a.args[0]", "the key socket"),
        ("engines:\n  a:\n    model: /m\n    args: [-v]\n", "node.yaml:4", "engines.a.args[0]", "--flag=value"),
        ("engines:\n  a:\n    model: /m\n  a:\n    model: /n\n", "node.yaml:4", "", "stands on line 2 already"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(
    problems_of: Callable[..., list[Problem]], content: str, place: str, key: str, says: str
) -> None:
    (problem,) = problems_of(content)
    assert (problem.place, problem.key) == (place, key)
    assert says in problem.message


def test_a_secret_in_an_entry_is_refused_and_never_repeated(problems_of: Callable[..., list[Problem]]) -> None:
    problems = problems_of("engines:\n  a:\n    model: /m\n    api_key: sk-hunter22\n")
    assert [(each.place, each.code) for each in problems] == [("node.yaml:4", ErrorCode.CONFIG_SECRET)]
    assert "hunter22" not in str(problems)


def test_the_operators_file_shows_engines_that_load(load_text: Callable[..., Loaded]) -> None:
    text = (Path(__file__).parents[3] / "configs/operator.yaml").read_text()
    (block,) = re.findall(r"(?m)^#engines:\n(?:#.*\n)+", text)
    shown = re.sub(r"(?m)^#", "", block).replace("<64 hex>", "ab" * 32)
    engines = load_text(shown).config.all_engines
    assert [engine.name for engine in engines] == ["llama-0", "llama-1", "qwen"]
    assert len({engine.keys.model for engine in engines}) == 2


def test_the_operators_page_shows_engines_that_load(load_text: Callable[..., Loaded]) -> None:
    page = (Path(__file__).parents[3] / "docs/operator.md").read_text()
    (shown,) = re.findall(r"```\n(engine: .*?)```", page, re.DOTALL)
    engines = load_text(shown.replace("sha256:…", "sha256:" + "ab" * 32)).config.all_engines
    assert [engine.name for engine in engines] == ["llama-0", "llama-1", "qwen", "small", "cluster"]
    assert engines[4].keys.api_key_file is not None


def test_no_more_engines_than_a_node_takes(problems_of: Callable[..., list[Problem]]) -> None:
    content = "engines:\n" + "".join(f"  e{n}:\n    model: /m\n    device: cuda:{n}\n" for n in range(17))
    (problem,) = problems_of(content)
    assert (problem.key, problem.message) == ("engines", "at most 16 engines in one node")


def test_a_config_built_directly_keeps_the_rules_too() -> None:
    with pytest.raises(ValidationError, match="contradict"):
        Config.model_validate({"engines": {"a": {"device": "cpu"}}})


def test_the_flags_that_keys_decide_are_flags_of_the_engine() -> None:
    """Read off the engine's own help: a flag that changed its name would be let through."""
    import subprocess
    import sys

    told = subprocess.run(
        [sys.executable, "-P", "-m", "openlora_engine", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    ).stdout
    assert [flag for flag in OWN_FLAGS if f"{flag} " not in told] == []
