"""The server's flags: bounds, contradictions, and what is never listened on without a key."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.server.options import API_KEY_VARIABLE, ServerConfig, add_server_flags, is_loopback


def parse(*arguments: str, **environment: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_server_flags(parser)
    return ServerConfig.from_arguments(parser.parse_args(arguments), environment)


def test_defaults_are_loopback() -> None:
    config = parse()
    assert (config.host, config.port, config.uds, config.api_key) == ("127.0.0.1", 8000, None, "")


def test_every_key_has_a_flag_and_a_meaning() -> None:
    parser = argparse.ArgumentParser()
    add_server_flags(parser)
    text = " ".join(parser.format_help().split())
    for item in dataclasses.fields(ServerConfig):
        assert "--" + item.name.replace("_", "-") in text
        assert item.metadata["meaning"] in text
    assert "[256MiB]" in text


def test_flags_are_read() -> None:
    config = parse(
        *("--uds", "/run/engine.sock", "--allowed-hosts", "a", "--allowed-hosts", "b"),
        *("--max-body-size", "1MiB", "--stall-timeout-s", "2.5", "--metrics-prefix", "vllm"),
    )
    assert config.uds == Path("/run/engine.sock")
    assert config.allowed_hosts == ("a", "b")
    assert (config.max_body_size, config.stall_timeout_s, config.metrics_prefix) == (1 << 20, 2.5, "vllm")


def test_the_key_comes_from_the_environment_and_never_shows() -> None:
    config = parse(**{API_KEY_VARIABLE: "s3cret"})
    assert config.api_key == "s3cret"
    assert "s3cret" not in repr(config)
    assert parse("--api-key", "flag", **{API_KEY_VARIABLE: "s3cret"}).api_key == "flag"


def test_the_key_in_a_private_file_goes_before_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("from-file\n")
    path.chmod(0o600)
    assert parse("--api-key-file", str(path), **{API_KEY_VARIABLE: "other"}).api_key == "from-file"
    assert parse("--api-key-file", str(path), "--api-key", "flag").api_key == "flag"


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"key", 0o640, "chmod 600"),
        (b"key", 0o604, "chmod 600"),
        (b" \n", 0o600, "the key alone"),
        (b"k" * 5_000, 0o600, "the key alone"),
        (b"k\xff", 0o600, "printable ASCII"),
        (b"two\nlines", 0o600, "printable ASCII"),
        (None, 0, "cannot be read"),
    ],
)
def test_key_files_that_are_refused(tmp_path: Path, content: bytes | None, mode: int, says: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(EngineError, match=says) as caught:
        parse("--api-key-file", str(path))
    assert caught.value.code is Code.CONFIG_INVALID


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"port": -1}, "--port must be at least 0"),
        ({"port": 65_536}, "--port must be at most 65535"),
        ({"max_connections": 0}, "--max-connections"),
        ({"body_timeout_s": 0.0}, "--body-timeout-s"),
        ({"stall_timeout_s": float("nan")}, "--stall-timeout-s"),
        ({"drain_timeout_s": -1.0}, "--drain-timeout-s"),
        ({"metrics_prefix": "a:b"}, "--metrics-prefix"),
        ({"max_body_memory": 1 << 20}, "--max-body-memory must not be below --max-body-size"),
        ({"uds": Path("/" + "x" * 120)}, "--uds must be at most 90 bytes"),
        ({"api_key": "two words"}, "--api-key"),
        ({"api_key": "schlüssel"}, "--api-key"),
        ({"host": "0.0.0.0"}, "set --api-key, or listen on 127.0.0.1"),
        ({"host": "::"}, "set --api-key"),
        ({"host": ""}, "set --api-key"),
        ({"host": "node.example"}, "set --api-key"),
    ],
)
def test_what_cannot_be_is_refused_by_flag(changes: dict, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        ServerConfig(**changes)
    assert caught.value.code is Code.CONFIG_INVALID
    assert says in caught.value.message


def test_off_loopback_takes_a_key_and_a_unix_socket_takes_none() -> None:
    assert ServerConfig(host="0.0.0.0", api_key="k").host == "0.0.0.0"
    assert ServerConfig(host="0.0.0.0", uds=Path("/run/e.sock")).api_key == ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("10.0.0.1", False), ("a", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
