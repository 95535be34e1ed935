"""Flag over environment over file over default, and every problem at once with its place."""

import re
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openlora_node.config import Config, ConfigError, HostPort, Loaded, Problem, Rate, load, loader
from openlora_node.config.catalog import BY_DOTTED, KEYS, Key
from openlora_node.protocol.errors import ErrorCode

LoadText = Callable[..., Loaded]
ProblemsOf = Callable[..., list[Problem]]

FILE = "log:\n  level: debug\n"
ENVIRON = {"OPENLORA_LOG__LEVEL": "warning"}
FLAGS = ("log.level=error",)


def setting(loaded: Loaded, dotted: str) -> tuple[str, str]:
    found = next(item for item in loaded.settings if item.key.dotted == dotted)
    return found.text, re.sub(r".*/", "", found.source)


@pytest.mark.parametrize(("file", "environ", "flag"), list(product((False, True), repeat=3)))
def test_precedence(load_text: LoadText, file: bool, environ: bool, flag: bool) -> None:
    loaded = load_text(FILE if file else "", ENVIRON if environ else None, FLAGS if flag else ())
    expected = (
        ("error", "--set") if flag else ("warning", "OPENLORA_LOG__LEVEL") if environ
        else ("debug", "node.yaml:2") if file else ("info", "default")
    )  # fmt: skip
    assert setting(loaded, "log.level") == expected
    assert loaded.config.log.level == expected[0]
    assert loaded.config.log.format == "json"


def test_layers_mix_within_a_section_and_lists_replace(load_text: LoadText) -> None:
    loaded = load_text(
        "network:\n  max_connections: 9\n  bootstrap: []\n  listen: [/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/2]\n",
        {"OPENLORA_NETWORK__LISTEN": "[/ip4/127.0.0.1/tcp/3/ws]"},
        ("network.relay=serve",),
    )
    assert loaded.config.network.listen == ("/ip4/127.0.0.1/tcp/3/ws",)
    assert setting(loaded, "network.max_connections") == ("9", "node.yaml:2")
    assert setting(loaded, "network.listen") == ("[/ip4/127.0.0.1/tcp/3/ws]", "OPENLORA_NETWORK__LISTEN")
    assert setting(loaded, "network.relay") == ("serve", "--set")


def test_null_in_a_higher_layer_clears_a_key(load_text: LoadText) -> None:
    content = "api:\n  metrics_listen: 127.0.0.1:9\n  control_socket: /run/a\n"
    loaded = load_text(content, {"OPENLORA_API__METRICS_LISTEN": "null"}, ("api.control_socket=null",))
    assert loaded.config.api.metrics_listen is None
    assert loaded.config.api.control_socket is None
    assert setting(loaded, "api.control_socket") == ("null", "--set")


def test_typed_values(load_text: LoadText) -> None:
    config = load_text(
        """
node: {data_dir: ~/node, owner: "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}
chain: {rpc_urls: [https://rpc.example.org, "http://[::1]:8545/"], max_fee_per_gas: 2.5 gwei, chain_id: 1612}
network:
  bootstrap:
    - /dns4/boot.example.org/tcp/4001/p2p/16Uiu2HAmPWgYWvKgSoRWpZGQjJRXcS8mUKYHUDxk2ytKSSoS1Y7B
  advert_interval: 30s
engine: {host_cache: 512MB, spawn: false}
limits: {signer_rate: 10/s}
api: {health_listen: "[::1]:0"}
"""
    ).config
    assert config.node.data_dir == Path("/home/operator/node")
    assert config.node.owner == bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed")
    assert config.chain.rpc_urls == ("https://rpc.example.org", "http://[::1]:8545/")
    assert config.chain.max_fee_per_gas == 25 * 10**8
    assert config.engine.host_cache == 512_000_000
    assert config.engine.spawn is False
    assert config.limits.signer_rate == Rate(10, timedelta(seconds=1))
    assert config.api.health_listen == HostPort("::1", 0)
    assert config.network.advert_interval == timedelta(seconds=30)
    assert config.advert_ttl == timedelta(seconds=90)


def test_paths_follow_the_network_unless_set(load_text: LoadText) -> None:
    content = "node: {data_dir: /srv/x, network: openledger-testnet}\n"
    config = load_text(content).config
    state = Path("/srv/x/openledger-testnet")
    assert (config.state_dir, config.control_socket, config.all_engines[0].socket, config.adapters_dir) == (
        state, state / "control.sock", state / "engine.sock", state / "artifacts",
    )  # fmt: skip
    assert (config.deployment_file, config.node_keystore, config.payer_keystore) == (
        state / "deployment.json", state / "keys" / "node.json", state / "keys" / "payer.json",
    )  # fmt: skip
    own = load_text(
        content,
        flags=(
            *("api.control_socket=/a", "engine.socket=/b", "engine.adapters_dir=/c"),
            *("chain.deployment_file=/d", "keys.keystore_file=/e"),
        ),
    ).config
    found = (own.control_socket, own.all_engines[0].socket, own.adapters_dir, own.deployment_file, own.node_keystore)
    assert [str(path) for path in found] == ["/a", "/b", "/c", "/d", "/e"]
    assert own.payer_keystore == own.node_keystore


@pytest.mark.parametrize("content", ["", "\n# nothing\n", "---\n", "node:\nlog:\n", "{}"])
def test_an_empty_file_is_all_defaults(load_text: LoadText, content: str) -> None:
    loaded = load_text(content)
    assert loaded.config == Config()
    assert all(item.source == "default" for item in loaded.settings)


def test_a_config_is_frozen() -> None:
    config = Config()
    for section, name in (("log", "level"), ("node", "network")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(getattr(config, section), name, "x")
    with pytest.raises(ValueError, match="frozen"):
        config.log = config.log


def test_which_file(write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = write(FILE)
    system = tmp_path / "system.yaml"
    other = tmp_path / "other.yaml"
    other.write_text("log:\n  level: error\n")
    assert load(environ={}).file is None
    assert load(environ={"OPENLORA_CONFIG": str(named)}).config.log.level == "debug"
    assert load(other, environ={"OPENLORA_CONFIG": str(named)}).config.log.level == "error"
    monkeypatch.setattr(loader, "SYSTEM_FILE", system)
    assert load(environ={}).file is None
    system.write_text("log:\n  level: warning\n")
    assert load(environ={}).config.log.level == "warning"
    assert load(environ={"OPENLORA_CONFIG": str(named)}).config.log.level == "debug"
    absent = tmp_path / "absent.yaml"
    for attempt in ({"file": absent, "environ": {}}, {"environ": {"OPENLORA_CONFIG": str(absent)}}):
        with pytest.raises(ConfigError, match="no such file"):
            load(**attempt)


@pytest.mark.parametrize(
    ("content", "place", "key", "message"),
    [
        ("nodes:\n  data_dir: /x\n", "node.yaml:1", "nodes", "no such section; did you mean node?"),
        ("node:\n\n  data_dri: /x\n", "node.yaml:3", "node.data_dri", "no such key; did you mean node.data_dir?"),
        ("node:\n  keystore_file: /x\n", "node.yaml:2", "node.keystore_file", "did you mean keys.keystore_file?"),
        ("node:\n  zzzz: 1\n", "node.yaml:2", "node.zzzz", "config reference"),
        ("log:\n  level: info\n  level: debug\n", "node.yaml:3", "", "on line 2 already"),
        ("log: {level: info}\nlog: {level: debug}\n", "node.yaml:2", "", "on line 1 already"),
        ("log: info\n", "node.yaml:1", "log", "this is a section"),
        ("log: [info]\n", "node.yaml:1", "log", "this is a section"),
        ("- log\n", "node.yaml:1", "", "write sections"),
        ("info\n", "node.yaml:1", "", "write sections"),
        ("log:\n  level: loud\n", "node.yaml:2", "log.level", "write debug or info or warning or error"),
        ("log:\n  level:\n", "node.yaml:2", "log.level", "write debug"),
        ("engine:\n  spawn: yes\n", "node.yaml:2", "engine.spawn", "write true or false"),
        ("engine:\n  spawn: 1\n", "node.yaml:2", "engine.spawn", "write true or false"),
        ("engine:\n  host_cache: 16\n", "node.yaml:2", "engine.host_cache", "bare number has no unit"),
        ("engine:\n  host_cache: 5TiB\n", "node.yaml:2", "engine.host_cache", "write a size from 0B to 4TiB"),
        ("network:\n  advert_interval: 30\n", "node.yaml:2", "network.advert_interval", "bare number has no unit"),
        ("network:\n  advert_interval: 2m\n", "node.yaml:2", "network.advert_interval", "from 5s to 1m"),
        ("network:\n  advert_interval: true\n", "node.yaml:2", "network.advert_interval", "such as 30s"),
        ("pricing:\n  input: 0.25\n", "node.yaml:2", "pricing.input", "bare number has no unit"),
        ("pricing:\n  input: -1 OPEN\n", "node.yaml:2", "pricing.input", "such as 0.25 OPEN"),
        ("pricing:\n  input: 0.5 wei\n", "node.yaml:2", "pricing.input", "cannot be divided"),
        ("limits:\n  signer_rate: 60\n", "node.yaml:2", "limits.signer_rate", "bare number has no unit"),
        ("limits:\n  signer_rate: 0/s\n", "node.yaml:2", "limits.signer_rate", "from 1/h to 1000/s"),
        ("limits:\n  queue: 64.0\n", "node.yaml:2", "limits.queue", "whole number from 1 to 100000"),
        ("limits:\n  queue: '64'\n", "node.yaml:2", "limits.queue", "whole number"),
        ("limits:\n  queue: true\n", "node.yaml:2", "limits.queue", "whole number"),
        ("settlement:\n  redeem_max_age: 14d\n", "node.yaml:2", "settlement.redeem_max_age", "to 13d"),
        ("node:\n  data_dir: relative/path\n", "node.yaml:2", "node.data_dir", "absolute path"),
        ("node:\n  data_dir: ~other/x\n", "node.yaml:2", "node.data_dir", "absolute path"),
        ('node:\n  data_dir: "/a\\x1b[2J"\n', "node.yaml:2", "node.data_dir", "absolute path"),
        ("node:\n  data_dir: 7\n", "node.yaml:2", "node.data_dir", "absolute path"),
        ("node:\n  owner: 0x12\n", "node.yaml:2", "node.owner", "0x<40 hex>"),
        ("node:\n  owner: 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD\n", "node.yaml:2", "node.owner", "EIP-55"),
        ("network:\n  listen: /ip4/0.0.0.0/tcp/1\n", "node.yaml:2", "network.listen", "a list of multiaddr"),
        ("network:\n  listen:\n    - /ip4/0.0.0.0/tcp/1\n    - x\n", "node.yaml:4", "network.listen[1]", "multiaddr"),
        ("network:\n  announce: [/ip4/0.0.0.0/tcp/1]\n", "node.yaml:2", "network.announce[0]", "others can dial"),
        ("network:\n  bootstrap: [/ip4/1.2.3.4/tcp/1]\n", "node.yaml:2", "network.bootstrap[0]", "/p2p/<peer id>"),
        ("network:\n  listen: [/ip4/1.2.3.400/tcp/1]\n", "node.yaml:2", "network.listen[0]", "valid IP"),
        ("network:\n  listen: [/ip4/::1/tcp/1]\n", "node.yaml:2", "network.listen[0]", "/ip6/ before IPv6"),
        ("network:\n  listen: [/dns4/a.b/tcp/1]\n", "node.yaml:2", "network.listen[0]", "IP address"),
        ("network:\n  listen: [/ip4/1.2.3.4/tcp/65536]\n", "node.yaml:2", "network.listen[0]", "multiaddr"),
        ("network:\n  announce: [/ip4/1.2.3.4/tcp/0]\n", "node.yaml:2", "network.announce[0]", "port that others"),
        (f"chain:\n  rpc_urls: [{', '.join(['http://a'] * 9)}]\n", "node.yaml:2", "chain.rpc_urls", "at most 8"),
        ("chain:\n  rpc_urls: [ftp://a]\n", "node.yaml:2", "chain.rpc_urls[0]", "https://"),
        ("chain:\n  rpc_urls: ['http://a:99999']\n", "node.yaml:2", "chain.rpc_urls[0]", "https://"),
        ("gateway:\n  listen: 8470\n", "node.yaml:2", "gateway.listen", "an IP address and a port"),
        ("gateway:\n  listen: example.org:80\n", "node.yaml:2", "gateway.listen", "an IP address and a port"),
        ("gateway:\n  listen: 127.0.0.1:65536\n", "node.yaml:2", "gateway.listen", "an IP address and a port"),
        ("gateway:\n  listen: 127.0.0.999:80\n", "node.yaml:2", "gateway.listen", "valid IPv4"),
        ("gateway:\n  listen: '[127.0.0.1]:80'\n", "node.yaml:2", "gateway.listen", "IPv6 addresses only"),
        ("gateway:\n  listen: null\n", "node.yaml:2", "gateway.listen", "an IP address and a port"),
        ("engine:\n  model: sha256:ABC\n", "node.yaml:2", "engine.model", "sha256:<64 lower-case hex>"),
        ("engine:\n  model: llama\n", "node.yaml:2", "engine.model", "absolute path"),
        ("a: &x 1\nb: *x\n", "node.yaml:1", "", "aliases"),
        ("log:\n\tlevel: info\n", "node.yaml:2", "", "tabs"),
        (b"log:\n  level: \xff\n", "node.yaml:2", "", "UTF-8"),
        (b"#" * ((1 << 20) + 1), "node.yaml", "", "exceeds 1MiB"),
        ("node:\n  ? [a]\n  : 1\n", "node.yaml:2", "", "plain word"),
        ("node:\n  1: 2\n", "node.yaml:2", "node.1", "no such key"),
        ('node:\n  "\\x1b[2J": 2\n', "node.yaml:2", r"'node.\x1b[2J'", "no such key"),
    ],
)
def test_each_problem_in_a_file(problems_of: ProblemsOf, content: str, place: str, key: str, message: str) -> None:
    (problem,) = problems_of(content)
    assert (problem.place, problem.key, problem.code) == (place, key, ErrorCode.CONFIG_INVALID)
    assert message in problem.message


@pytest.mark.parametrize(
    ("name", "value", "key", "message"),
    [
        ("OPENLORA_LOG__LEVLE", "info", "", "no such variable; did you mean OPENLORA_LOG__LEVEL?"),
        ("OPENLORA_LOG_LEVEL", "info", "", "did you mean OPENLORA_LOG__LEVEL?"),
        ("OPENLORA_log__level", "info", "", "no such variable"),
        ("OPENLORA_LOG", "{level: info}", "", "no such variable"),
        ("OPENLORA_NETWORK__LISTEN__0", "x", "", "did you mean OPENLORA_NETWORK__LISTEN?"),
        ("OPENLORA_LOG__LEVEL", "", "log.level", "write debug"),
        ("OPENLORA_LOG__LEVEL", "info ", "log.level", "write debug"),
        ("OPENLORA_LOG__LEVEL", "null", "log.level", "write debug"),
        ("OPENLORA_LIMITS__QUEUE", "many", "limits.queue", "whole number"),
        ("OPENLORA_LIMITS__QUEUE", "", "limits.queue", "whole number"),
        ("OPENLORA_ENGINE__SPAWN", "True", "engine.spawn", "true or false"),
        ("OPENLORA_ENGINE__HOST_CACHE", "16", "engine.host_cache", "bare number"),
        ("OPENLORA_NETWORK__LISTEN", "/ip4/1.2.3.4/tcp/1", "network.listen", "list in brackets"),
        ("OPENLORA_NETWORK__LISTEN", "[a", "network.listen", "list in brackets"),
        ("OPENLORA_NETWORK__LISTEN", "[a]", "network.listen[0]", "multiaddr"),
        ("OPENLORA_NODE__DATA_DIR", "/a\udcff", "node.data_dir", "absolute path"),
    ],
)
def test_each_problem_in_a_variable(problems_of: ProblemsOf, name: str, value: str, key: str, message: str) -> None:
    (problem,) = problems_of("", {name: value})
    assert (problem.place, problem.key, problem.code) == (name, key, ErrorCode.CONFIG_INVALID)
    assert message in problem.message


def test_a_variable_with_odd_bytes_in_its_name(problems_of: ProblemsOf) -> None:
    (problem,) = problems_of("", {"OPENLORA_\udcff\x1b": "x"})
    assert problem.place == r"'OPENLORA_\udcff\x1b'"


def test_other_variables_are_none_of_ours(load_text: LoadText) -> None:
    assert load_text("", {"PATH": "/bin", "OPENLOR_LOG__LEVEL": "x", "LOG__LEVEL": "x"}).config == Config()


@pytest.mark.parametrize(
    ("flags", "key", "message"),
    [
        (("log.level",), "", "section.key=value"),
        (("log.levle=info",), "log.levle", "did you mean log.level?"),
        (("log=info",), "log", "no such key"),
        (("=",), "''", "no such key"),
        (("log.level=info", "log.level=debug"), "log.level", "set twice"),
        (("log.level=",), "log.level", "write debug"),
        (("network.listen=null",), "network.listen", "list in brackets"),
    ],
)
def test_each_problem_in_a_flag(problems_of: ProblemsOf, flags: tuple[str, ...], key: str, message: str) -> None:
    (problem,) = problems_of("", flags=flags)
    assert (problem.place, problem.key) == ("--set", key)
    assert message in problem.message


def test_a_flags_value_may_hold_anything_yaml_would_trip_over(load_text: LoadText) -> None:
    assert load_text("", flags=("node.data_dir=/a: b #c='d'",)).config.node.data_dir == Path("/a: b #c='d'")


def test_all_problems_at_once_in_reading_order(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        "log:\n  level: loud\n  colour: blue\nlimits:\n  queue: 0\n  queue: 1\nnod:\n",
        {"OPENLORA_LOG__FORMAT": "xml", "OPENLORA_X": "1"},
        ("engine.spawn=maybe", "a=b"),
    )
    assert [(problem.place, problem.key) for problem in problems] == [
        ("node.yaml:2", "log.level"),
        ("node.yaml:3", "log.colour"),
        ("node.yaml:5", "limits.queue"),
        ("node.yaml:6", ""),
        ("node.yaml:7", "nod"),
        ("OPENLORA_LOG__FORMAT", "log.format"),
        ("OPENLORA_X", ""),
        ("--set", "a"),
        ("--set", "engine.spawn"),
    ]
    assert all("\n" not in str(problem) for problem in problems)


def test_a_flood_of_problems_is_cut_in_the_message_only(write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("node:\n" + "".join(f"  q{n}: 1\n" for n in range(1000))), environ={})
    assert len(caught.value.problems) == 1000
    lines = caught.value.message.splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 950 more: correct these first"


def test_no_home_matters_only_where_it_is_used(load_text: LoadText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    with pytest.raises(ConfigError, match="write an absolute path: HOME is not set"):
        load_text("")
    assert load_text("node:\n  data_dir: /srv\n").config.node.data_dir == Path("/srv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.sampled_from(KEYS),
    st.text(max_size=20) | st.sampled_from(["null", "[]", "1", "1s", "1GiB", "1 OPEN", "1/s", "true", "/x", "~/x"]),
)
def test_no_text_raises_anything_but_config_errors(load_text: LoadText, key: Key, text: str) -> None:
    for environ, flags in (({key.env: text}, ()), ({}, (f"{key.dotted}={text}",))):
        try:
            loaded = load_text("", environ, flags)
        except ConfigError as error:
            assert {re.sub(r"\[\d+\]$", "", problem.key) for problem in error.problems} <= set(BY_DOTTED)
        else:
            # What was accepted is shown in a form that is accepted again, with the same meaning.
            shown = setting(loaded, key.dotted)[0]
            again = load_text("", {key.env: shown}).config
            assert key.of(again) == key.of(loaded.config)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_config_errors(load_text: LoadText, content: bytes) -> None:
    try:
        load_text(content)
    except ConfigError as error:
        assert error.problems


def test_the_catalog_is_one_to_one() -> None:
    assert len({key.env for key in KEYS}) == len(BY_DOTTED) == len(KEYS)
    assert {key.section for key in KEYS} == set(Config.model_fields) - {"engines"}
