"""The server's own configuration: where it listens, who may call, and how much it holds at once."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from ..config import FlagParser, add_flags, invalid, option, size

API_KEY_VARIABLE = "OPENLORA_ENGINE_API_KEY"
_API_KEY = f"Key that every route but /health asks for. `ps` shows it: prefer --api-key-file or ${API_KEY_VARIABLE}."
MAX_KEY_FILE_BYTES = 4_096
MAX_UDS_BYTES = 90
"""Of a Unix socket's absolute path: Linux takes 107, and the name it is bound under first may be longer."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One listener and its bounds. Raises EngineError CONFIG_INVALID naming the flag."""

    host: str = option("127.0.0.1", "Address to listen on; off loopback it needs an API key.", metavar="HOST")
    port: int = option(8000, "Port to listen on; 0 picks one.", low=0, metavar="PORT")
    uds: Path | None = option(None, "Listen on this Unix socket (mode 0600) instead of host and port.", metavar="PATH")
    api_key: str = field(default="", repr=False, metadata={"meaning": _API_KEY, "low": None, "metavar": "KEY"})
    api_key_file: Path | None = option(None, "File that holds the key, mode 0600.", metavar="FILE")
    allowed_hosts: tuple[str, ...] = option(
        (), "Name that a Host header may hold beside localhost and addresses; repeatable.", metavar="NAME"
    )
    max_connections: int = option(1000, "Connections, and so requests, at once.", low=1)
    max_body_size: int = size(16 << 20, "Largest request body.", low=1 << 10)
    max_body_memory: int = size(256 << 20, "Request bodies held at once, all together.", low=1 << 10)
    body_timeout_s: float = option(30.0, "Time a client has to send its request.")
    stall_timeout_s: float = option(300.0, "A client that reads nothing for so long is cut off.")
    drain_timeout_s: float = option(30.0, "Grace of running requests after SIGTERM.")
    metrics_prefix: str = option("openlora", "Prefix of metric names; `vllm` for dashboards made for vLLM.")

    def __post_init__(self) -> None:
        """Check bounds and contradictions."""
        for item in dataclasses.fields(self):
            low, value = item.metadata["low"], getattr(self, item.name)
            if low is not None and value < low:
                raise invalid(item.name, f"must be at least {low}")
        for name in ("body_timeout_s", "stall_timeout_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise invalid(name, "must be above 0 and at most a day")
        if not 0 <= self.drain_timeout_s <= 86_400:
            raise invalid("drain_timeout_s", "must be from 0 to a day")
        if self.port > 65_535:
            raise invalid("port", "must be at most 65535")
        if not self.metrics_prefix.isidentifier():
            raise invalid("metrics_prefix", "must be a word of letters, digits and _")
        if self.max_body_memory < self.max_body_size:
            raise invalid("max_body_memory", "must not be below --max-body-size")
        if self.uds is not None and len(os.fsencode(self.uds.absolute())) > MAX_UDS_BYTES:
            raise invalid("uds", f"must be at most {MAX_UDS_BYTES} bytes long: choose a shorter path")
        if self.uds is None and not self.api_key and not is_loopback(self.host):
            raise invalid(
                "host", f"{self.host!r} is reachable from other machines: set --api-key, or listen on 127.0.0.1"
            )
        if self.api_key and (not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key):
            raise invalid("api_key", "must be printable ASCII without spaces")

    @classmethod
    def from_arguments(cls, namespace: argparse.Namespace, environment: Mapping[str, str]) -> Self:
        """From parsed flags; the API key also from its file, else from the environment."""
        given: dict[str, Any] = {item.name: getattr(namespace, item.name, None) for item in dataclasses.fields(cls)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        chosen = {name: value for name, value in given.items() if value is not None}
        if "api_key" not in chosen:
            file = chosen.get("api_key_file")
            chosen["api_key"] = environment.get(API_KEY_VARIABLE, "") if file is None else _key_in(file)
        return cls(**chosen)


def _key_in(path: Path) -> str:
    """The key in a private file. Raises CONFIG_INVALID."""
    try:
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError:
        raise invalid("api_key_file", "cannot be read: name a file of this user") from None
    if mode & 0o077:
        raise invalid("api_key_file", "can be read by other users: chmod 600 it")
    key = content.decode("utf-8", "replace").strip()
    if not key or len(content) > MAX_KEY_FILE_BYTES:
        raise invalid("api_key_file", f"must hold the key alone, 1 to {MAX_KEY_FILE_BYTES} bytes")
    return key


def add_server_flags(parser: FlagParser) -> None:
    """Give the parser one flag a key."""
    add_flags(parser, cast("Any", ServerConfig))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
