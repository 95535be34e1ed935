"""Solidity's types as the fields of signed structs: how each is checked, hashed, packed and written as JSON.

Each refuses what Solidity's ABI decoder would refuse. Knows no struct; see `eip712`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from .crypto import keccak256
from .errors import ErrorCode, ProtocolError
from .ids import format_address, format_bytes, parse_address, parse_bytes32

MAX_COUNT = 0xFFFF
"""Largest number of bytes in a string and of items in an array of a signed struct."""


@dataclass(frozen=True)
class Solidity:
    """The Solidity type of an annotated field: a name such as `uint128`, `bytes32`, `address`, `string`."""

    name: str


Uint8 = Annotated[int, Solidity("uint8")]
Uint32 = Annotated[int, Solidity("uint32")]
Uint64 = Annotated[int, Solidity("uint64")]
Uint128 = Annotated[int, Solidity("uint128")]
Int32 = Annotated[int, Solidity("int32")]
Bytes32 = Annotated[bytes, Solidity("bytes32")]
AddressField = Annotated[bytes, Solidity("address")]
String = Annotated[str, Solidity("string")]


def malformed(message: str) -> ProtocolError:
    """A value or bytes that are none of their type."""
    return ProtocolError(ErrorCode.MALFORMED, message)


class Reader:
    """A cursor over packed bytes. Every read is bounds-checked; `finish` refuses trailing bytes."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes. Raises ProtocolError MALFORMED at the end."""
        end = self._offset + count
        if end > len(self._data):
            raise malformed("the packed struct is cut short")
        chunk = self._data[self._offset : end]
        self._offset = end
        return chunk

    def finish(self) -> None:
        """Refuse bytes after the end."""
        if self._offset != len(self._data):
            raise malformed("the packed struct has bytes after its end")


class Codec:
    """How one field type is checked, hashed, packed and written as JSON."""

    name: str
    """The type as it stands in the struct's own member list."""

    def check(self, value: Any) -> None:
        """Raise ProtocolError MALFORMED unless the value is one of this type."""
        raise NotImplementedError

    def word(self, value: Any) -> bytes:
        """The 32 bytes that stand for the value in `encodeData`."""
        raise NotImplementedError

    def pack(self, value: Any) -> bytes:
        """The packed form."""
        raise NotImplementedError

    def unpack(self, reader: Reader) -> Any:
        """Read one packed value."""
        raise NotImplementedError

    def to_json(self, value: Any) -> Any:
        """The JSON form."""
        raise NotImplementedError

    def from_json(self, value: Any) -> Any:
        """Parse the JSON form. Raises ProtocolError MALFORMED or BAD_ID."""
        raise NotImplementedError

    def struct_types(self) -> set[type[Any]]:
        """Struct types that this field refers to, itself included."""
        return set()


class IntegerCodec(Codec):
    """`uintN` and `intN`: range-checked, never a bool, a float or a numeric string."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._signed = name.startswith("int")
        bits = int(name.removeprefix("u").removeprefix("int"))
        self._width = bits // 8
        self._low = -(1 << bits - 1) if self._signed else 0
        self._high = (1 << (bits - 1 if self._signed else bits)) - 1

    def check(self, value: Any) -> None:
        """Refuse all but an int in range."""
        if not isinstance(value, int) or isinstance(value, bool) or not self._low <= value <= self._high:
            raise malformed(f"a {self.name} is an integer from {self._low} to {self._high}")

    def word(self, value: int) -> bytes:
        """Sign-extended to 32 bytes."""
        return value.to_bytes(32, "big", signed=self._signed)

    def pack(self, value: int) -> bytes:
        """N/8 bytes, big-endian, two's complement."""
        return value.to_bytes(self._width, "big", signed=self._signed)

    def unpack(self, reader: Reader) -> int:
        """Read N/8 bytes."""
        return int.from_bytes(reader.take(self._width), "big", signed=self._signed)

    def to_json(self, value: int) -> str:
        """A decimal string: JSON numbers lose precision beyond 2^53."""
        return str(value)

    def from_json(self, value: Any) -> int:
        """A decimal string in its shortest form, or a JSON integer."""
        if type(value) is int:
            number = value
        elif isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 80:
            number = int(value)
            if str(number) != value:
                raise malformed(f"write the {self.name} without leading zeros")
        else:
            raise malformed(f"a {self.name} is a decimal string")
        self.check(number)
        return number


class FixedBytesCodec(Codec):
    """`bytes32` and `address`: exact width, left-aligned and right-aligned in their word."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._width = 20 if name == "address" else 32

    def check(self, value: Any) -> None:
        """Refuse all but bytes of the right width."""
        if type(value) is not bytes or len(value) != self._width:
            raise malformed(f"a {self.name} is exactly {self._width} bytes")

    def word(self, value: bytes) -> bytes:
        """The value, an address zero-extended on the left."""
        return value if self._width == 32 else bytes(12) + value

    def pack(self, value: bytes) -> bytes:
        """The bytes."""
        return value

    def unpack(self, reader: Reader) -> bytes:
        """Read 20 or 32 bytes."""
        return reader.take(self._width)

    def to_json(self, value: bytes) -> str:
        """0x-hex; an address with its EIP-55 checksum."""
        return format_address(value) if self._width == 20 else format_bytes(value)

    def from_json(self, value: Any) -> bytes:
        """Parse 0x-hex."""
        if not isinstance(value, str):
            raise malformed(f"a {self.name} is a 0x-hex string")
        return parse_address(value) if self._width == 20 else parse_bytes32(value)


class StringCodec(Codec):
    """`string`: UTF-8, at most 65,535 bytes."""

    name = "string"

    def check(self, value: Any) -> None:
        """Refuse all but text that has a UTF-8 form within bounds."""
        if type(value) is not str:
            raise malformed("a string is text")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise malformed("a string has no lone surrogates") from None
        if size > MAX_COUNT:
            raise malformed(f"a string is at most {MAX_COUNT} bytes")

    def word(self, value: str) -> bytes:
        """Keccak-256 of the UTF-8 bytes."""
        return keccak256(value.encode())

    def pack(self, value: str) -> bytes:
        """A 2-byte count, then UTF-8."""
        data = value.encode()
        return len(data).to_bytes(2, "big") + data

    def unpack(self, reader: Reader) -> str:
        """Read a counted string."""
        data = reader.take(int.from_bytes(reader.take(2), "big"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise malformed("a string is UTF-8") from None

    def to_json(self, value: str) -> str:
        """The text."""
        return value

    def from_json(self, value: Any) -> str:
        """The text."""
        self.check(value)
        return str(value)


class ArrayCodec(Codec):
    """`T[]`, held as a tuple: keccak-256 of the items' words."""

    def __init__(self, item: Codec) -> None:
        self._item = item
        self.name = f"{item.name}[]"

    def check(self, value: Any) -> None:
        """Refuse all but a bounded tuple of valid items."""
        if type(value) is not tuple or len(value) > MAX_COUNT:
            raise malformed(f"a {self.name} is a tuple of at most {MAX_COUNT} items")
        for item in value:
            self._item.check(item)

    def word(self, value: tuple[Any, ...]) -> bytes:
        """Keccak-256 of the items' words, concatenated."""
        return keccak256(b"".join([self._item.word(item) for item in value]))

    def pack(self, value: tuple[Any, ...]) -> bytes:
        """A 2-byte count, then the items."""
        return len(value).to_bytes(2, "big") + b"".join([self._item.pack(item) for item in value])

    def unpack(self, reader: Reader) -> tuple[Any, ...]:
        """Read counted items."""
        return tuple([self._item.unpack(reader) for _ in range(int.from_bytes(reader.take(2), "big"))])

    def to_json(self, value: tuple[Any, ...]) -> list[Any]:
        """A JSON array."""
        return [self._item.to_json(item) for item in value]

    def from_json(self, value: Any) -> tuple[Any, ...]:
        """Parse a JSON array."""
        if not isinstance(value, list) or len(value) > MAX_COUNT:
            raise malformed(f"a {self.name} is an array of at most {MAX_COUNT} items")
        return tuple([self._item.from_json(item) for item in value])

    def struct_types(self) -> set[type[Any]]:
        """Those of the items."""
        return self._item.struct_types()
