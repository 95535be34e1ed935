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
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from .crypto import SIGNATURE_LENGTH, Address, Signer, check_signature, keccak256, parse_signature, recover
from .ids import format_bytes
from .solidity import ArrayCodec, Codec, FixedBytesCodec, IntegerCodec, Reader, Solidity, StringCodec, malformed


class StructCodec(Codec):
    """A nested struct: its struct hash stands for it."""

    def __init__(self, struct: type[TypedStruct]) -> None:
        self.struct = struct
        self.name = struct.__name__

    def check(self, value: Any) -> None:
        """Refuse all but an instance (which checked itself when it was made)."""
        if type(value) is not self.struct:
            raise malformed(f"expected a {self.name}")

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
            raise malformed("a chain id is a positive uint256")
        if type(self.verifying_contract) is not bytes or len(self.verifying_contract) != 20:
            raise malformed("the verifying contract is an address of exactly 20 bytes")

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
            raise malformed(f"a {cls.__name__} has exactly these keys: {', '.join(layout.json_names)}")
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
            raise malformed("the packed struct is cut short")
        return cls(struct.unpack(data[:-SIGNATURE_LENGTH]), data[-SIGNATURE_LENGTH:])

    def to_json(self) -> dict[str, Any]:
        """`{"value": {…}, "signature": "0x…"}`."""
        return {"value": self.value.to_json(), "signature": format_bytes(self.signature)}

    @classmethod
    def from_json(cls, struct: type[T], data: Any) -> Signed[T]:
        """Parse the JSON form. Raises ProtocolError."""
        if not isinstance(data, Mapping) or set(data) != {"value", "signature"}:
            raise malformed("a signed struct has exactly the keys value and signature")
        return cls(struct.from_json(data["value"]), parse_signature(data["signature"]))
