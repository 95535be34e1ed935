"""Who may speak to the endpoint, and the token's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.gateway.guard import Guard, open_token, read_token
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

TOKEN = {"Authorization": "Bearer secret-of-the-test"}
GUARD = Guard("secret-of-the-test")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1:8470"},
        {"Host": "localhost"},
        {"Host": "[::1]:8470"},
        {},
        {"Host": "127.0.0.1:8470", "Origin": "http://127.0.0.1:8470"},
    ],
)
def test_local_callers_with_the_token_pass(headers: dict[str, str]) -> None:
    GUARD.check("/v1/models", {**headers, **TOKEN})


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, ErrorCode.UNAUTHORIZED),
        ({"Authorization": "Bearer "}, ErrorCode.UNAUTHORIZED),
        ({"Authorization": "Bearer secret-of-the-tes"}, ErrorCode.UNAUTHORIZED),
        ({"Authorization": "Basic secret-of-the-test"}, ErrorCode.UNAUTHORIZED),
        ({"Authorization": "Bearer \udcff"}, ErrorCode.UNAUTHORIZED),
        ({**TOKEN, "Host": "gateway.example"}, ErrorCode.FORBIDDEN),
        ({**TOKEN, "Host": "127.0.0.1.example"}, ErrorCode.FORBIDDEN),
        ({**TOKEN, "Host": "localhost.example:80"}, ErrorCode.FORBIDDEN),
        ({**TOKEN, "Host": "127.0.0.1:8470", "Origin": "https://example.org"}, ErrorCode.FORBIDDEN),
        ({**TOKEN, "Host": "127.0.0.1:8470", "Origin": "null"}, ErrorCode.FORBIDDEN),
    ],
)
def test_others_do_not(headers: dict[str, str], code: ErrorCode) -> None:
    with pytest.raises(OpenLoraError) as caught:
        GUARD.check("/v1/models", headers)
    assert caught.value.code is code


def test_health_is_open_but_for_web_pages() -> None:
    GUARD.check("/healthz", {"Host": "127.0.0.1"})
    with pytest.raises(OpenLoraError):
        GUARD.check("/healthz", {"Host": "rebound.example"})


def test_by_consent_the_name_of_the_host_is_not_judged() -> None:
    Guard("secret-of-the-test", any_host=True).check("/v1/models", {**TOKEN, "Host": "gateway.example"})


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(OpenLoraError) as caught:
        read_token(path)
    assert caught.value.code is ErrorCode.NOT_FOUND
    made = open_token(path)
    assert len(made) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_token(path) == read_token(path) == made
    assert "secret-of-the-test" not in repr(GUARD)
    path.chmod(0o644)
    with pytest.raises(OpenLoraError, match="chmod 600"):
        open_token(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(OpenLoraError, match="holds no token"):
        read_token(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OpenLoraError):
        open_token(path)
