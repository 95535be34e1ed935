"""Typed structured data (EIP-712): one declaration gives a struct its digest, its packed wire form and its JSON form.

Generic encoders walk a type description for every message, which costs more than recovering the signature. Here each
class compiles its field encoders once and caches its type hash; a domain caches its separator. A value has three forms:

* `struct_hash` / `digest(domain)`: what is signed and what contracts recompute.
* `pack` / `unpack`: the bytes on the wire and in the journal. Fixed-width fields back to back, big-endian, in the
  order of the type; `string` and arrays carry a 2-byte count. One value has exactly one packed form.
* `to_json` / `from_json`: camelCase names, integers as decimal strings, bytes as 0x-hex; for HTTP and test vectors.

All three refuse values that Solidity's ABI decoder would refuse. Source: EIP-712, ERC-5267.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .crypto import SIGNATURE_LENGTH, Address, Signer, check_signature, keccak256, parse_signature, recover
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


def _malformed(message: str) -> ProtocolError:
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
            raise _malformed("the packed struct is cut short")
        chunk = self._data[self._offset : end]
        self._offset = end
        return chunk

    def finish(self) -> None:
        """Refuse bytes after the end."""
        if self._offset != len(self._data):
            raise _malformed("the packed struct has bytes after its end")


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

    def struct_types(self) -> set[type[TypedStruct]]:
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
            raise _malformed(f"a {self.name} is an integer from {self._low} to {self._high}")

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
                raise _malformed(f"write the {self.name} without leading zeros")
        else:
            raise _malformed(f"a {self.name} is a decimal string")
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
            raise _malformed(f"a {self.name} is exactly {self._width} bytes")

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
            raise _malformed(f"a {self.name} is a 0x-hex string")
        return parse_address(value) if self._width == 20 else parse_bytes32(value)


class StringCodec(Codec):
    """`string`: UTF-8, at most 65,535 bytes."""

    name = "string"

    def check(self, value: Any) -> None:
        """Refuse all but text that has a UTF-8 form within bounds."""
        if type(value) is not str:
            raise _malformed("a string is text")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise _malformed("a string has no lone surrogates") from None
        if size > MAX_COUNT:
            raise _malformed(f"a string is at most {MAX_COUNT} bytes")

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
            raise _malformed("a string is UTF-8") from None

    def to_json(self, value: str) -> str:
        """The text."""
        return value

    def from_json(self, value: Any) -> str:
        """The text."""
        self.check(value)
        return str(value)


class StructCodec(Codec):
    """A nested struct: its struct hash stands for it."""

    def __init__(self, struct: type[TypedStruct]) -> None:
        self.struct = struct
        self.name = struct.__name__

    def check(self, value: Any) -> None:
        """Refuse all but an instance (which checked itself when it was made)."""
        if type(value) is not self.struct:
            raise _malformed(f"expected a {self.name}")

    def word(self, value: TypedStruct) -> bytes:
        """hashStruct of the nested value."""
        return value.struct_hash()

    def pack(self, value: TypedStruct) -> bytes:
        """Inline."""
        return value.pack()

    def unpack(self, reader: Reader) -> TypedStruct:
        """Read inline."""
        return self.struct.read(reader)

    def to_json(self, value: TypedStruct) -> Any:
        """A JSON object."""
        return value.to_json()

    def from_json(self, value: Any) -> TypedStruct:
        """Parse a JSON object."""
        return self.struct.from_json(value)

    def struct_types(self) -> set[type[TypedStruct]]:
        """The nested struct and all that it refers to."""
        return {self.struct, *self.struct.referenced()}


class ArrayCodec(Codec):
    """`T[]`, held as a tuple: keccak-256 of the items' words."""

    def __init__(self, item: Codec) -> None:
        self._item = item
        self.name = f"{item.name}[]"

    def check(self, value: Any) -> None:
        """Refuse all but a bounded tuple of valid items."""
        if type(value) is not tuple or len(value) > MAX_COUNT:
            raise _malformed(f"a {self.name} is a tuple of at most {MAX_COUNT} items")
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
            raise _malformed(f"a {self.name} is an array of at most {MAX_COUNT} items")
        return tuple([self._item.from_json(item) for item in value])

    def struct_types(self) -> set[type[TypedStruct]]:
        """Those of the items."""
        return self._item.struct_types()


def _codec(annotation: Any) -> Codec:
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, Solidity):
            if extra.name == "string":
                return StringCodec()
            return FixedBytesCodec(extra.name) if extra.name in ("address", "bytes32") else IntegerCodec(extra.name)
    if get_origin(annotation) is tuple:
        return ArrayCodec(_codec(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, TypedStruct):
        return StructCodec(annotation)
    raise TypeError(f"no Solidity type for {annotation!r}")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class Layout:
    """What a struct class compiles to on first use: names, codecs, type string, type hash."""

    def __init__(self, struct: type[TypedStruct]) -> None:
        hints = get_type_hints(struct, include_extras=True)
        self.names = struct.__struct_fields__
        self.codecs = tuple(_codec(hints[name]) for name in self.names)
        self.json_names = tuple(_camel(name) for name in self.names)
        getter = attrgetter(*self.names)
        self.values: Callable[[TypedStruct], tuple[Any, ...]] = (
            getter if len(self.names) > 1 else lambda value: (getter(value),)
        )
        self.words = tuple(codec.word for codec in self.codecs)
        self.packers = tuple(codec.pack for codec in self.codecs)
        self.checks = tuple(codec.check for codec in self.codecs)
        members = ",".join(f"{codec.name} {name}" for codec, name in zip(self.codecs, self.json_names, strict=True))
        self.member_string = f"{struct.__name__}({members})"

    def referenced(self) -> set[type[TypedStruct]]:
        """Struct types that the fields refer to, at any depth."""
        return {found for codec in self.codecs for found in codec.struct_types()}


@cache
def layout_of(struct: type[TypedStruct]) -> Layout:
    """The compiled layout of a struct class."""
    return Layout(struct)


@cache
def type_string(struct: type[TypedStruct]) -> str:
    """EIP-712 `encodeType`: the struct's own members, then referenced structs in alphabetical order."""
    layout = layout_of(struct)
    others = sorted(layout.referenced() - {struct}, key=lambda other: other.__name__)
    return layout.member_string + "".join(layout_of(other).member_string for other in others)


@cache
def type_hash(struct: type[TypedStruct]) -> bytes:
    """Keccak-256 of `type_string`."""
    return keccak256(type_string(struct).encode())


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """The EIP-712 domain. One for the whole system: the Settlement contract's, on one chain."""

    chain_id: int
    verifying_contract: Address

    name: ClassVar[str] = "OpenLoRA"
    version: ClassVar[str] = "1"
    TYPE: ClassVar[str] = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"

    def __post_init__(self) -> None:
        if type(self.chain_id) is not int or not 0 < self.chain_id < 1 << 256:
            raise _malformed("a chain id is a positive uint256")
        if type(self.verifying_contract) is not bytes or len(self.verifying_contract) != 20:
            raise _malformed("the verifying contract is an address of exactly 20 bytes")

    def separator(self) -> bytes:
        """hashStruct of the domain, 32 bytes."""
        return _separator(self)

    def digest(self, struct_hash: bytes) -> bytes:
        """Keccak-256 of 0x1901 ‖ separator ‖ struct hash: the 32 bytes that are signed."""
        return keccak256(b"\x19\x01" + _separator(self) + struct_hash)


@lru_cache(maxsize=16)
def _separator(domain: Domain) -> bytes:
    return keccak256(
        keccak256(Domain.TYPE.encode())
        + keccak256(domain.name.encode())
        + keccak256(domain.version.encode())
        + domain.chain_id.to_bytes(32, "big")
        + bytes(12)
        + domain.verifying_contract
    )


class TypedStruct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every EIP-712 struct. Subclasses declare fields with the aliases above; order is the type's order.

    A value checks itself when it is made, so an instance with a 31-byte bytes32 or a negative amount cannot exist.
    """

    def __post_init__(self) -> None:
        layout = layout_of(type(self))
        for check, value in zip(layout.checks, layout.values(self), strict=True):
            check(value)
        self.validate()

    def validate(self) -> None:
        """Rules beyond the field types. Raises ProtocolError."""

    @classmethod
    def referenced(cls) -> set[type[TypedStruct]]:
        """Struct types that the fields refer to."""
        return layout_of(cls).referenced()

    def struct_hash(self) -> bytes:
        """EIP-712 `hashStruct`, 32 bytes, the same under every domain."""
        cls = type(self)
        layout = layout_of(cls)
        words = [word(value) for word, value in zip(layout.words, layout.values(self), strict=True)]
        return keccak256(type_hash(cls) + b"".join(words))

    def digest(self, domain: Domain) -> bytes:
        """The 32 bytes to sign under `domain`."""
        return domain.digest(self.struct_hash())

    def sign(self, domain: Domain, signer: Signer) -> Signed[Self]:
        """The value with `signer`'s signature over its digest."""
        return Signed(self, signer.sign_digest(self.digest(domain)))

    def recover(self, domain: Domain, signature: bytes) -> Address:
        """Who signed this value under `domain`. Raises ProtocolError BAD_SIGNATURE."""
        return recover(self.digest(domain), signature)

    def pack(self) -> bytes:
        """The packed form (see the module's docstring)."""
        layout = layout_of(type(self))
        return b"".join([pack(value) for pack, value in zip(layout.packers, layout.values(self), strict=True)])

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read one packed struct from a cursor. Raises ProtocolError."""
        layout = layout_of(cls)
        return cls(**{name: codec.unpack(reader) for name, codec in zip(layout.names, layout.codecs, strict=True)})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Parse a packed struct, all of it. Raises ProtocolError."""
        reader = Reader(data)
        value = cls.read(reader)
        reader.finish()
        return value

    def to_json(self) -> dict[str, Any]:
        """The JSON form: camelCase names, decimal strings, 0x-hex."""
        layout = layout_of(type(self))
        return {
            name: codec.to_json(value)
            for name, codec, value in zip(layout.json_names, layout.codecs, layout.values(self), strict=True)
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Parse the JSON form. Missing and extra keys are refused: an unsigned field must not look signed."""
        layout = layout_of(cls)
        if not isinstance(data, Mapping) or set(data) != set(layout.json_names):
            raise _malformed(f"a {cls.__name__} has exactly these keys: {', '.join(layout.json_names)}")
        return cls(
            **{
                name: codec.from_json(data[json_name])
                for name, json_name, codec in zip(layout.names, layout.json_names, layout.codecs, strict=True)
            }
        )


T = TypeVar("T", bound=TypedStruct)


@dataclass(frozen=True)
class Signed(Generic[T]):
    """A struct and the 65-byte signature over its digest. Cannot exist unsigned or with a refusable signature."""

    value: T
    signature: bytes

    def __post_init__(self) -> None:
        check_signature(self.signature)

    def signer(self, domain: Domain) -> Address:
        """Who signed. Raises ProtocolError BAD_SIGNATURE."""
        return self.value.recover(domain, self.signature)

    def pack(self) -> bytes:
        """The packed struct, then r ‖ s ‖ v."""
        return self.value.pack() + self.signature

    @classmethod
    def unpack(cls, struct: type[T], data: bytes) -> Signed[T]:
        """Parse a packed struct and its signature. Raises ProtocolError."""
        if len(data) < SIGNATURE_LENGTH:
            raise _malformed("the packed struct is cut short")
        return cls(struct.unpack(data[:-SIGNATURE_LENGTH]), data[-SIGNATURE_LENGTH:])

    def to_json(self) -> dict[str, Any]:
        """`{"value": {…}, "signature": "0x…"}`."""
        return {"value": self.value.to_json(), "signature": format_bytes(self.signature)}

    @classmethod
    def from_json(cls, struct: type[T], data: Any) -> Signed[T]:
        """Parse the JSON form. Raises ProtocolError."""
        if not isinstance(data, Mapping) or set(data) != {"value", "signature"}:
            raise _malformed("a signed struct has exactly the keys value and signature")
        return cls(struct.from_json(data["value"]), parse_signature(data["signature"]))
