"""The kinds of value a key can hold: how each is written, read, bounded and shown. Knows no key.

A kind stands in a field's annotation, `Annotated[timedelta, Duration("1s", "1h")]`; pydantic calls it to validate.
Errors say what to write and never repeat what was written.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ..protocol.crypto import Address
from ..protocol.errors import ProtocolError
from ..protocol.ids import format_address, parse_address, parse_artifact_id
from . import units

ERROR_TYPE = "openlora"
"""The pydantic error type whose context's `reason` is a message of ours."""


class Kind(ABC):
    """One kind of value. `read` raises ValueError with what to write instead."""

    name: ClassVar[str]

    @abstractmethod
    def read(self, value: object) -> object:
        """A plain value, as YAML gives it → the typed value, within bounds."""

    def write(self, value: Any) -> str:
        """The typed value → the text that `read` accepts."""
        return str(value)

    @property
    def limits(self) -> str:
        """The bounds in words, or nothing."""
        return ""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `read` alone: the same text means the same in a file, a variable and a flag."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: object) -> object:
        try:
            return self.read(value)
        except ValueError as error:
            raise PydanticCustomError(ERROR_TYPE, "{reason}", {"reason": str(error)}) from None


class Measure(Kind):
    """A bounded number with a unit: a subclass names the parser and the formatter of `units`."""

    minimum: str
    maximum: str

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Text with its unit → the exact value. Raises ValueError."""

    def order(self, value: Any) -> Any:
        """What bounds compare."""
        return value

    def read(self, value: object) -> object:
        """Text with its unit; a bare number is refused, since no reader can tell what it counts."""
        text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        try:
            result = self.parse(text)
        except ValueError as error:
            reason = "a bare number has no unit: " if re.fullmatch(r"[-+.0-9eE]*[0-9]", text) else ""
            raise ValueError(f"{reason}{error}") from None
        if not self.order(self.parse(self.minimum)) <= self.order(result) <= self.order(self.parse(self.maximum)):
            raise ValueError(f"write a {self.name} {self.limits}")
        return result

    @property
    def limits(self) -> str:
        """Both bounds, in their units."""
        return f"from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Duration(Measure):
    """`250ms`, `30s`, `7d` → timedelta."""

    minimum: str
    maximum: str
    name = "duration"

    def parse(self, text: str) -> timedelta:
        """See `units.parse_duration`."""
        return units.parse_duration(text)

    def write(self, value: Any) -> str:
        """See `units.format_duration`."""
        return units.format_duration(value)


@dataclass(frozen=True)
class Size(Measure):
    """`64KiB`, `16GiB` → bytes."""

    minimum: str
    maximum: str
    name = "size"

    def parse(self, text: str) -> int:
        """See `units.parse_size`."""
        return units.parse_size(text)

    def write(self, value: Any) -> str:
        """See `units.format_size`."""
        return units.format_size(value)


@dataclass(frozen=True)
class Amount(Measure):
    """`0.25 OPEN`, `2 gwei` → wei."""

    minimum: str
    maximum: str
    name = "amount"

    def parse(self, text: str) -> int:
        """See `units.parse_amount`."""
        return units.parse_amount(text)

    def write(self, value: Any) -> str:
        """See `units.format_amount`."""
        return units.format_amount(value)


@dataclass(frozen=True)
class RateLimit(Measure):
    """`60/min` → units.Rate."""

    minimum: str
    maximum: str
    name = "rate"

    def parse(self, text: str) -> units.Rate:
        """See `units.parse_rate`."""
        return units.parse_rate(text)

    def order(self, value: Any) -> Any:
        """Rates compare per second."""
        return value.per_second

    def write(self, value: Any) -> str:
        """See `units.format_rate`."""
        return units.format_rate(value)


@dataclass(frozen=True)
class Count(Kind):
    """A whole number of things that need no unit."""

    minimum: int
    maximum: int
    name = "whole number"

    def read(self, value: object) -> int:
        """An integer within bounds; 3.0 and true are none."""
        if not isinstance(value, int) or isinstance(value, bool) or not self.minimum <= value <= self.maximum:
            raise ValueError(f"write a whole number {self.limits}")
        return value

    @property
    def limits(self) -> str:
        """Both bounds."""
        return f"from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    name = "true or false"

    def read(self, value: object) -> bool:
        """YAML 1.2's booleans alone: `yes` and 1 are none."""
        if value is not True and value is not False:
            raise ValueError("write true or false")
        return value

    def write(self, value: Any) -> str:
        """As YAML writes it."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    options: tuple[str, ...]
    name = "one of"

    def read(self, value: object) -> str:
        """One of the options, exactly."""
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"write {self.limits}")
        return value

    @property
    def limits(self) -> str:
        """The options."""
        return " or ".join(self.options)


@dataclass(frozen=True)
class FilePath(Kind):
    """A place in the file system; it need not exist yet."""

    name = "path"

    def read(self, value: object) -> Path:
        """An absolute path, or one below `~/`: a service has no useful working directory."""
        if not isinstance(value, str) or not value.startswith(("/", "~/")) or not value.isprintable():
            raise ValueError("write an absolute path, or one that starts with ~/")
        if value.startswith("/"):
            return Path(value)
        home = os.environ.get("HOME", "")
        if not home.startswith("/"):
            raise ValueError("write an absolute path: HOME is not set, so ~/ means nothing")
        return Path(home, value[2:])


@dataclass(frozen=True)
class WalletAddress(Kind):
    """`0x<40 hex>` → 20 bytes; mixed case carries its EIP-55 checksum."""

    name = "wallet address"

    def read(self, value: object) -> Address:
        """See `protocol.ids.parse_address`."""
        try:
            return parse_address(value if isinstance(value, str) else "")
        except ProtocolError as error:
            raise ValueError(error.message) from None

    def write(self, value: Any) -> str:
        """EIP-55 text."""
        return format_address(value)


@dataclass(frozen=True)
class ModelRef(Kind):
    """A base model: the artifact id of the store, or a directory."""

    name = "artifact id or path"

    def read(self, value: object) -> str:
        """`sha256:<64 lower-case hex>`, or a path as `FilePath` reads it."""
        if isinstance(value, str) and value.startswith("sha256:"):
            try:
                parse_artifact_id(value)
            except ProtocolError as error:
                raise ValueError(error.message) from None
            return value
        try:
            return str(FilePath().read(value))
        except ValueError:
            raise ValueError("write sha256:<64 lower-case hex>, or the absolute path of a model directory") from None
