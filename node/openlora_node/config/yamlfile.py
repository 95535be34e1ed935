"""YAML text → plain values and the line of each. Knows YAML, no key of ours; refuses what a configuration never needs.

Refused: duplicate keys, anchors and aliases (so that no small file becomes a large one), tags, more than one document,
deep nesting, text outside UTF-8. Scalars follow YAML 1.2's core: `no`, `1:30` and `0x10` are text.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 8

_INT = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}

KeyPath = tuple[str | int, ...]
Scalar = str | int | float | bool | None
Value = Scalar | dict[str, "Value"] | tuple["Value", ...]


class YamlError(Exception):
    """Text that is no acceptable YAML: `line` (from 1, 0 for the whole file) and what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass
class Document:
    """A parsed document: its root, the line of every value, and the raw text of every scalar."""

    root: Value = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    texts: list[tuple[KeyPath, int, str]] = field(default_factory=list)
    """Path, line and text of each scalar as written, before any reading as a number, and of doubled keys' as well."""
    problems: list[YamlError] = field(default_factory=list)
    """What can be reported beside other problems: duplicate keys."""


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises YamlError for what is no regular, readable, small UTF-8 file."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise YamlError(0, "there is no such file: name an existing one") from None
    except (OSError, ValueError):
        raise YamlError(0, "this user cannot read the file: check its name, owner and mode") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise YamlError(0, "this is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise YamlError(0, "the file exceeds 1MiB; a configuration is a few KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(
            data.count(b"\n", 0, error.start) + 1, "this line is not UTF-8: save the file as UTF-8"
        ) from None


def parse(text: str) -> Document:
    """Parse one document. Raises YamlError at the first thing that leaves the rest unreadable."""
    document = Document()
    try:
        events = _checked(yaml.parse(text, Loader=yaml.SafeLoader))
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                document.root = _value(next(events), events, (), document)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, "remove the control character on this line") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 0, _hint(error.problem or "")) from None
    return document


def _checked(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    documents = depth = 0
    for event in events:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise YamlError(line, "anchors and aliases are not accepted: write the value out")
        if getattr(event, "tag", None) is not None:
            raise YamlError(line, "tags (!...) are not accepted: write the plain value")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            raise YamlError(line, "nested too deeply: a configuration has sections and keys")
        if documents > 1:
            raise YamlError(line, "a second document starts here: keep one")
        yield event


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _value(event: yaml.Event, events: Iterator[yaml.Event], path: KeyPath, document: Document) -> Value:
    document.lines.setdefault(path, _line(event))
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, path, document)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Value] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_value(item, events, (*path, len(items)), document))
        return tuple(items)
    assert isinstance(event, yaml.ScalarEvent)
    document.texts.append((path, _line(event), event.value))
    return plain(event.value) if event.implicit[0] else event.value


def _mapping(events: Iterator[yaml.Event], path: KeyPath, document: Document) -> dict[str, Value]:
    items: dict[str, Value] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        line = _line(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise YamlError(line, "a key is a plain word")
        name, place = event.value, (*path, event.value)
        if name in items:
            first = document.lines[place]
            document.problems.append(YamlError(line, f"this key stands on line {first} already: keep one of them"))
            # Its content is still looked through for secrets, but the first value stands.
            _value(next(events), events, place, document)
            continue
        # The key's line, not the value's: that is where a reader looks for it.
        document.lines[place] = line
        items[name] = _value(next(events), events, place, document)
    return items


def plain(text: str) -> Scalar:
    """What an unquoted scalar means: null, true, false, a number, else text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if len(text) <= 40 and _FLOAT.fullmatch(text) else text


def _hint(problem: str) -> str:
    """Our words for PyYAML's: its own may quote the text, which may be a secret."""
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and quote a value that contains ': '"
    if "alias" in problem or "anchor" in problem:
        return "quote a value that starts with & or *"
    if "expected" in problem and "but found" in problem:
        return "check the indentation, and that quotes and brackets close"
    return "this is not YAML: check indentation, quotes and brackets here"
