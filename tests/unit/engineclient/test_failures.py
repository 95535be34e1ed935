"""Every way in which an engine says no, in the protocol's codes; the engine's own table is covered to the last row."""

from __future__ import annotations

import json

import pytest

from openlora_engine.errors import Code
from openlora_node.engineclient.backoff import Backoff, is_hopeless
from openlora_node.engineclient.failures import failure
from openlora_node.protocol.errors import ErrorCode

START_UP_AND_AUTHENTICATION = {
    "UNAUTHORIZED", "FORBIDDEN", "ROUTE_NOT_FOUND", "METHOD_NOT_ALLOWED", "ADAPTER_NAME_TAKEN",
    "CONFIG_INVALID", "MODEL_UNSUPPORTED", "DOES_NOT_FIT",
}  # fmt: skip


def said(code: object, message: str = "say this") -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}}).encode()


def test_every_code_that_a_request_can_meet_has_a_row() -> None:
    for code in set(Code) - {Code(name) for name in START_UP_AND_AUTHENTICATION}:
        mapped = failure(code.http_status, said(code.value))
        assert mapped.message == "say this", code
    for name in START_UP_AND_AUTHENTICATION:
        assert failure(Code(name).http_status, said(name)).message != "say this"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (429, said("BUSY"), "BUSY"),
        (503, said("DRAINING"), "ENGINE_UNAVAILABLE"),
        (400, said("BAD_REQUEST"), "MALFORMED"),
        (400, said("PROMPT_TOO_LONG"), "PROMPT_TOO_LONG"),
        (400, said("UNSUPPORTED"), "UNSUPPORTED"),
        (404, said("MODEL_NOT_FOUND"), "ADAPTER_NOT_FOUND"),
        (422, said("MIX_INVALID"), "UNSUPPORTED"),
        (507, said("OUT_OF_MEMORY"), "ENGINE_FAILED"),
        (401, said("UNAUTHORIZED"), "ENGINE_FAILED"),
        (400, said(400, "This model's maximum context length is 8 tokens"), "PROMPT_TOO_LONG"),
        (400, b'{"object":"error","message":"maximum context length is 8","code":400}', "PROMPT_TOO_LONG"),
        (400, said(400, "/home/me/prompt: bad"), "MALFORMED"),
        (404, said(404), "ADAPTER_NOT_FOUND"),
        (500, b"Internal Server Error", "ENGINE_FAILED"),
        (503, b"", "ENGINE_UNAVAILABLE"),
        (418, b"\xff", "ENGINE_FAILED"),
    ],
)
def test_codes(status: int, body: bytes, code: str) -> None:
    assert failure(status, body).code is ErrorCode(code)


def test_a_foreign_text_is_never_shown() -> None:
    for status in (400, 404, 422, 500, 503):
        assert "secret" not in failure(status, said(status, "secret at /home/x")).message


@pytest.mark.parametrize(
    ("header", "milliseconds"),
    [("2", 2_000), ("0.5", 500), (None, 1_000), ("x", 1_000), ("-1", 1), ("inf", 1_000), ("1e9", 600_000)],
)
def test_the_time_to_wait_is_the_engines_within_reason(header: str | None, milliseconds: int) -> None:
    assert failure(429, said("BUSY"), header).retry_after_ms == milliseconds
    assert failure(400, said("BAD_REQUEST"), header).retry_after_ms is None


def test_a_dying_engine_is_started_ever_more_slowly_and_a_steady_one_at_once() -> None:
    state, waits = Backoff(), []
    for _ in range(9):
        state = state.after(0.0)
        waits.append(state.wait_s)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert state.after(61.0).wait_s == 1
    assert Backoff().wait_s == 0
    assert Backoff(10_000).wait_s == 60
    assert [code for code in (-9, -11, 0, 1, 2, 3, 7) if is_hopeless(code)] == [2, 3, 7]
