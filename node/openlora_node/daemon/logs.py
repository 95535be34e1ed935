"""Logs to standard output: one JSON object a line, or text. Of exceptions only class and places: their texts may quote.

No room logs prompts, outputs or keys; this file sees to it that a library's exception does not either.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import IO, Literal

LEVELS = ("debug", "info", "warning", "error")
CHATTY = ("libp2p", "multiaddr", "aiohttp.access", "asyncio", "web3", "urllib3")
"""Libraries whose lower levels tell of every packet, in texts that we do not answer for."""
MAX_MESSAGE = 2_000


class JsonFormatter(logging.Formatter):
    """One object a record: time (RFC 3339, UTC), level, logger, message, and of an exception its class and frames."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, object] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE],
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = record.exc_info[0].__name__
            entry["at"] = _frames(record)
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """The same for eyes."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one for each frame of an exception."""
        message = record.getMessage()[:MAX_MESSAGE]
        lines = [f"{_rfc3339(record.created)} {record.levelname.lower():<7} {record.name}: {message}"]
        if record.exc_info and record.exc_info[0] is not None:
            lines += [f"  {record.exc_info[0].__name__}", *(f"    {frame}" for frame in _frames(record))]
        return "\n".join(lines)


def set_up_logs(level: str, form: Literal["json", "text"], stream: IO[str] | None = None) -> None:
    """Replace whatever handles the root logger."""
    handler = logging.StreamHandler(sys.stdout if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """The least severity that is logged from now on; libraries stay at warning. Raises ValueError for another word."""
    if level not in LEVELS:
        raise ValueError(level)
    logging.getLogger().setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, getattr(logging, level.upper())))


def level() -> str:
    """The level in force."""
    return logging.getLevelName(logging.getLogger().level).lower()


def _frames(record: logging.LogRecord) -> list[str]:
    """Where it happened, innermost last: file, line and function, no source and no values."""
    assert record.exc_info is not None
    stack = traceback.extract_tb(record.exc_info[2])[-12:]
    return [f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}" for frame in stack]


def _rfc3339(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
