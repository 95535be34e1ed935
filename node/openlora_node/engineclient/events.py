"""A stream of server-sent events, read from bytes as they come: bounded, and told from one that was cut. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from .failures import broken

MAX_EVENT_BYTES = 4 << 20
"""Of one event; a whole lagging choice with log-probabilities fits."""


class EventReader:
    """Bytes in, the data of whole events out. Knows `data:` lines alone: engines send nothing else."""

    def __init__(self, max_event: int = MAX_EVENT_BYTES) -> None:
        self._max_event = max_event
        self._rest = bytearray()
        self.done = False
        """Whether `[DONE]` came: what ends without it was cut."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that these bytes complete. Raises OpenLoraError ENGINE_FAILED beyond the largest event."""
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", start)) >= 0:
            line = bytes(self._rest[start:end]).rstrip(b"\r")
            start = end + 1
            if not line.startswith(b"data:"):
                continue
            text = line[5:].strip()
            if text == b"[DONE]":
                self.done = True
            elif text:
                yield text
        del self._rest[:start]
        if len(self._rest) > self._max_event:
            raise broken("the engine sent an event that is too large")
