"""The checks before a body is looked at: key, Host, Origin."""

from __future__ import annotations

import pytest

from openlora_engine.errors import Code, EngineError
from openlora_engine.server.guard import Guard


def verdict(guard: Guard, path: str = "/v1/models", **headers: str) -> str:
    try:
        guard.check(path, headers)
    except EngineError as error:
        return error.code.value
    return "ok"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", "ok"),
        ("localhost:8000", "ok"),
        ("LOCALHOST:8000", "ok"),
        ("127.0.0.1", "ok"),
        ("127.0.0.1:8000", "ok"),
        ("[::1]:8000", "ok"),
        ("[::1]", "ok"),
        ("192.168.1.7:80", "ok"),
        ("node.example:8000", "ok"),
        ("evil.example", "FORBIDDEN"),
        ("evil.example:8000", "FORBIDDEN"),
        ("localhost.evil.example", "FORBIDDEN"),
        ("127.0.0.1.evil.example", "FORBIDDEN"),
        ("evil.example#localhost", "FORBIDDEN"),
        ("[evil.example]", "FORBIDDEN"),
        ("", "FORBIDDEN"),
    ],
)
def test_host(host: str, expected: str) -> None:
    assert verdict(Guard("", ("node.example",), local=False), Host=host) == expected


def test_a_client_without_a_host_is_no_browser() -> None:
    assert verdict(Guard("", (), local=False)) == "ok"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8000", "ok"),
        ("http://localhost:3000", "FORBIDDEN"),
        ("https://evil.example", "FORBIDDEN"),
        ("null", "FORBIDDEN"),
        ("file://", "FORBIDDEN"),
        ("http://[", "FORBIDDEN"),
    ],
)
def test_origin(origin: str, expected: str) -> None:
    assert verdict(Guard("", (), local=False), Host="localhost:8000", Origin=origin) == expected


def test_no_browser_reaches_a_unix_socket() -> None:
    assert verdict(Guard("", (), local=True), Host="evil.example", Origin="https://evil.example") == "ok"


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer s3cret", "ok"),
        ("bearer  s3cret ", "ok"),
        ("Bearer s3cre", "UNAUTHORIZED"),
        ("Bearer s3cret2", "UNAUTHORIZED"),
        ("Bearer", "UNAUTHORIZED"),
        ("Basic s3cret", "UNAUTHORIZED"),
        ("s3cret", "UNAUTHORIZED"),
        ("Bearer schlüssel", "UNAUTHORIZED"),
        ("Bearer \udcff", "UNAUTHORIZED"),
        ("", "UNAUTHORIZED"),
    ],
)
def test_key(authorization: str, expected: str) -> None:
    for local in (False, True):
        guard = Guard("s3cret", (), local=local)
        assert verdict(guard, Authorization=authorization) == expected
        assert verdict(guard, "/health") == "ok"
        assert verdict(guard, "/metrics") == "UNAUTHORIZED"


def test_without_a_key_nothing_asks_for_one() -> None:
    assert verdict(Guard("", (), local=False), Authorization="Bearer anything") == "ok"


def test_the_error_names_the_code_that_was_meant() -> None:
    with pytest.raises(EngineError) as caught:
        Guard("", (), local=False).check("/v1/models", {"Host": "evil.example"})
    assert caught.value.code is Code.FORBIDDEN
    assert "--allowed-hosts" in caught.value.message
