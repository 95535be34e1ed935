"""Secrets are recognised wherever they were written, and never repeated in any message."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.config import ConfigError, Problem, load
from openlora_node.config.catalog import KEYS, SECTIONS, Key
from openlora_node.config.leaks import names_secret, secret_in
from openlora_node.protocol.errors import ErrorCode

KEY = hashlib.sha256(b"no key of anyone").hexdigest()
PHRASE = "abandon ability able about above absent absorb abstract absurd abuse access accident"

SECRETS = [
    KEY,
    f"0x{KEY}",
    KEY.upper(),
    f"key is 0x{KEY}.",
    "1" * 64,
    PHRASE,
    f"{PHRASE} acid acoustic acquire",
    PHRASE.replace(" ", ", "),
    "-----BEGIN EC PRIVATE KEY-----",
    "https://operator:hunter22@rpc.example.org",
    "https://hunter22@rpc.example.org/path",
    "wss://rpc.example.org/?apikey=hunter22",
    "https://rpc.example.org/v3/0123456789abcdef0123456789abcdef",
    "https://rpc.example.org/v2/AbC-dEf_0123456789AbCdEfGh",
]
HARMLESS = [
    f"sha256:{'ab' * 32}",
    f"/models/{'ab' * 32}/config.json",
    "0x" + "ab" * 20,
    "ab" * 31,
    "ab" * 33,
    "/ip4/203.0.113.7/tcp/4001/p2p/16Uiu2HAmPWgYWvKgSoRWpZGQjJRXcS8mUKYHUDxk2ytKSSoS1Y7B",
    "https://rpc.openledger.xyz",
    "http://127.0.0.1:8000/v1",
    "https://rpc.example.org/a-long-path-without-any-digit-in-it",
    "eleven words are no phrase so this one is let through",
    "~/.openlora",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets(text: str) -> None:
    assert secret_in(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_no_secrets(text: str) -> None:
    assert secret_in(text) is None


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["", "0x", "0X"]))
def test_every_32_bytes_are_a_key(key: bytes, prefix: str) -> None:
    assert secret_in(prefix + key.hex())
    assert secret_in(f"sha256:{key.hex()}") is None


@given(st.lists(st.from_regex("[a-z]{3,8}", fullmatch=True), min_size=10, max_size=26))
def test_phrases_have_certain_lengths(words: list[str]) -> None:
    assert bool(secret_in(" ".join(words))) == (len(words) in (12, 15, 18, 21, 24))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "password",
            "PASSWORD",
            "keystore_password",
            "privateKey",
            "private-key",
            "priv_key",
            "mnemonic",
            "seed_phrase",
        ),
        *("secret", "client_secret", "token", "api_token", "api_key", "apiKey", "apikey", "access_key", "passphrase"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)
    assert not names_secret(f"{name.lower()}_file")


def test_no_key_of_the_schema_is_taken_for_a_secret() -> None:
    for key in KEYS:
        assert not names_secret(key.name), key.dotted
        assert secret_in(key.default_text) is None, key.dotted
    assert not any(names_secret(section) for section in SECTIONS)


def only_secret(problems: list[Problem]) -> Problem:
    found = [problem for problem in problems if problem.code is ErrorCode.CONFIG_SECRET]
    assert len(found) == 1, problems
    return found[0]


@pytest.mark.parametrize(
    ("content", "place", "key", "fix"),
    [
        ("keys:\n  password: hunter22\n", "node.yaml:2", "keys.password", "keys.password_file"),
        ("keys:\n  private_key: hunter22\n", "node.yaml:2", "keys.private_key", "keys.keystore_file"),
        ("gateway:\n  token: hunter22\n", "node.yaml:2", "gateway.token", "*_file"),
        ("secret: hunter22\n", "node.yaml:1", "secret", "*_file"),
        ("auth:\n  x:\n    api_key: hunter22\n", "node.yaml:3", "auth.x.api_key", "keystore_file"),
        ("log:\n  level:\n    - password: hunter22\n", "node.yaml:3", "log.level[0].password", "password_file"),
        (f"keys:\n  keystore_file: 0x{KEY}\n", "node.yaml:2", "keys.keystore_file", "keys.keystore_file"),
        (f"node:\n  owner: {KEY}\n", "node.yaml:2", "node.owner", "keys.keystore_file"),
        (f"unknown:\n  deep: [[{KEY}]]\n", "node.yaml:2", "unknown.deep[0][0]", "keys.keystore_file"),
        (f"engine:\n  model: {PHRASE}\n", "node.yaml:2", "engine.model", "keys.keystore_file"),
        ("chain:\n  rpc_urls:\n    - https://a:hunter22@b.c\n", "node.yaml:3", "chain.rpc_urls[0]", "rpc_url_file"),
        (f"node:\n  0x{KEY}: 1\n", "node.yaml:2", "(name withheld)", "keys.keystore_file"),
        (f"0x{KEY}: 1\n", "node.yaml:1", "(name withheld)", "keys.keystore_file"),
        (f"node:\n  owner: null\n  owner: {KEY}\n", "node.yaml:3", "node.owner", "keys.keystore_file"),
    ],
)  # fmt: skip
def test_a_secret_in_the_file_is_refused_at_its_line(
    problems_of: Callable[..., list[Problem]], content: str, place: str, key: str, fix: str
) -> None:
    problem = only_secret(problems_of(content))
    assert (problem.place, problem.key) == (place, key)
    assert fix in problem.message


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("OPENLORA_KEYS__PASSWORD", "hunter22", "keys.password_file"),
        ("OPENLORA_PRIVATE_KEY", "hunter22", "keys.keystore_file"),
        ("OPENLORA_NODE__OWNER", f"0x{KEY}", "keys.keystore_file"),
        ("OPENLORA_CHAIN__RPC_URLS", "[https://a:hunter22@b.c]", "chain.rpc_url_file"),
        ("OPENLORA_NO__SUCH", KEY, "keys.keystore_file"),
    ],
)
def test_a_secret_in_a_variable_is_refused_by_its_name(
    problems_of: Callable[..., list[Problem]], name: str, value: str, fix: str
) -> None:
    problem = only_secret(problems_of("", {name: value}))
    assert problem.place == name
    assert fix in problem.message


@pytest.mark.parametrize("flag", ["keys.password=hunter22", f"node.owner={KEY}", f"no.such={KEY}", f"{KEY}=1"])
def test_a_secret_in_a_flag_is_refused(problems_of: Callable[..., list[Problem]], flag: str) -> None:
    assert only_secret(problems_of("", flags=(flag,))).place == "--set"


def test_a_secret_in_the_file_is_refused_even_when_overridden(problems_of: Callable[..., list[Problem]]) -> None:
    only_secret(problems_of(f"node:\n  owner: {KEY}\n", flags=("node.owner=null",)))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.dotted)
def test_no_message_repeats_a_value(write: Callable[[str | bytes], Path], key: Key) -> None:
    """Whatever is written to whatever key, a known secret or not: what was written is in no message."""
    for secret in ("hunter22", *SECRETS):
        shapes = (secret, [secret], {secret: 1}, {"x": secret})
        texts = [json.dumps({key.section: {key.name: value}}) for value in shapes]
        attempts: list[Callable[[], object]] = [
            *(partial(lambda text: load(write(text), environ={}), text) for text in texts),
            partial(load, environ={key.env: secret}),
            partial(load, environ={}, flags=(f"{key.dotted}={secret}",)),
        ]
        for attempt in attempts:
            with pytest.raises(ConfigError) as caught:
                attempt()
            assert secret not in str(caught.value)
            assert all(secret not in problem.key + problem.place for problem in caught.value.problems)
