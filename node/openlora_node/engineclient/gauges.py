"""The few numbers that are read from an engine's Prometheus text. Pure."""

from __future__ import annotations

import re

_SAMPLE = re.compile(r"^[A-Za-z_]+:(?P<name>[a-z_]+)(?:\{[^}]*\})? (?P<value>[0-9.eE+-]+)$", re.MULTILINE)


def gauge(text: str, name: str) -> int:
    """The sum of a gauge over its labels, whatever the metrics' prefix; 0 where it is missing."""
    return int(sum(float(found["value"]) for found in _SAMPLE.finditer(text) if found["name"] == name))
