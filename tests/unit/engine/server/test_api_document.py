"""docs/engine-api.md stays true: every route, field, code and metric is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openlora_engine.errors import Code
from openlora_engine.metrics import EngineMetrics, EngineStats
from openlora_engine.server import requests
from openlora_engine.server.app import ROUTES
from openlora_engine.server.fields import HARMLESS_VALUES, IGNORED
from openlora_engine.server.responses import ChoiceTimings

TEXT = (Path(__file__).parents[4] / "docs" / "engine-api.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
NAMES = set(re.findall(r"[\w/.]+", " ".join(re.findall(r"`([^`]+)`", PROSE))))


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_named(route: str) -> None:
    assert route in NAMES


@pytest.mark.parametrize(
    "struct",
    [requests.ChatBody, requests.CompletionBody, requests.LoadAdapterBody, requests.AdapterOptions, ChoiceTimings],
)
def test_every_field_is_named(struct: type) -> None:
    fields = set(struct.__struct_fields__) - {"index"}
    assert {field for field in fields if field not in NAMES and f".{field}" not in " ".join(NAMES)} == set()


def test_every_field_that_is_ignored_or_refused_is_named() -> None:
    assert (IGNORED | set(HARMLESS_VALUES)) - NAMES == set()


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_named_with_its_status(code: Code) -> None:
    assert code.value in NAMES
    for line in TEXT.splitlines():
        if line.startswith("|") and f"`{code.value}`" in line:
            assert str(code.http_status) in line


def test_every_metric_is_named() -> None:
    text = EngineMetrics("m").expose(EngineStats()).decode()
    names = re.findall(r"^# TYPE openlora:(\w+) (\w+)$", text, re.MULTILINE)
    assert len(names) > 25
    missing = {name for name, _ in names if name not in NAMES}
    assert missing == set()
