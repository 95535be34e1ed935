"""Logs: one JSON object a line, and of exceptions nothing that they quote."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from openlora_node.daemon import logs


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leave the root logger as it was."""
    logger = logging.getLogger()
    handlers, before = logger.handlers[:], logger.level
    chatty = {name: logging.getLogger(name).level for name in logs.CHATTY}
    yield
    logger.handlers[:] = handlers
    logger.setLevel(before)
    for name, held in chatty.items():
        logging.getLogger(name).setLevel(held)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_json_object() -> None:
    stream = io.StringIO()
    logs.set_up_logs("info", "json", stream)
    logging.getLogger("openlora.test").info("served %d\nin two lines", 3)
    (entry,) = lines(stream)
    assert entry["level"] == "info"
    assert entry["logger"] == "openlora.test"
    assert entry["message"] == "served 3\nin two lines"
    assert str(entry["time"]).endswith("Z")


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_shows_class_and_places_but_not_what_it_quotes(form: str) -> None:
    stream = io.StringIO()
    logs.set_up_logs("info", form, stream)  # type: ignore[arg-type]
    try:
        int("the prompt was hunter22")
    except ValueError:
        logging.getLogger("openlora.test").exception("a handler failed")
    text = stream.getvalue()
    assert "ValueError" in text
    assert "test_logs.py" in text
    assert "hunter22" not in text


def test_libraries_speak_only_of_trouble_and_the_level_can_change() -> None:
    stream = io.StringIO()
    logs.set_up_logs("debug", "json", stream)
    logging.getLogger("libp2p.host").info("a packet")
    logging.getLogger("openlora.test").debug("a detail")
    assert [entry["message"] for entry in lines(stream)] == ["a detail"]
    logs.set_level("warning")
    assert logs.level() == "warning"
    logging.getLogger("openlora.test").info("no more")
    assert len(lines(stream)) == 1
    with pytest.raises(ValueError, match="loud"):
        logs.set_level("loud")


def test_a_message_is_bounded() -> None:
    stream = io.StringIO()
    logs.set_up_logs("info", "json", stream)
    logging.getLogger("openlora.test").info("x" * 100_000)
    (entry,) = lines(stream)
    assert len(str(entry["message"])) == logs.MAX_MESSAGE
