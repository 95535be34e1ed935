"""What `openlora doctor` looks at on this machine: each check with what was found, and what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..config.engines import ONLY, NamedEngine
from ..config.schema import Config
from ..datadir import LOCK_NAME
from ..network.hardware import probe
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level
from ..protocol.ids import format_address
from .board import LOW_DISK_BYTES, disk_health
from .engine import api_key
from .keys import node_address, open_node_key
from .setup import free_space

PROBE_TIMEOUT_S = 5.0
MIN_FREE_VRAM_MIB = 2048


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's: what was found, and unless all is well, the fix. `code` decides the exit code."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""
    code: ErrorCode = ErrorCode.CONFIG_INVALID


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name, Verdict.OK, found)


def warn(name: str, found: str, fix: str) -> Check:
    """It works, not as well as it could."""
    return Check(name, Verdict.WARN, found, fix)


def fail(name: str, found: str, fix: str, code: ErrorCode = ErrorCode.CONFIG_INVALID) -> Check:
    """The node would not serve."""
    return Check(name, Verdict.FAIL, found, fix, code)


def local_checks(config: Config, *, running: bool, environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Everything that needs no chain, in reading order. `running`: a node holds this state now. May take seconds."""
    yield check_state(config)
    yield check_disk(config)
    yield from check_device()
    yield from check_engines(config)
    yield check_ports(config, running=running)
    yield check_address(config, environment)


async def check_key(config: Config, environment: Mapping[str, str], *, can_ask: bool) -> Check:
    """Whether the node key opens. A password is not asked for unless `can_ask`."""
    address = node_address(config, environment)
    if address is None:
        return fail("key", f"no key in {config.node_keystore}", "openlora init, or name keys.keystore_file",
                    ErrorCode.KEY_FAILED)  # fmt: skip
    has_file = config.keys.password_file is not None or "CREDENTIALS_DIRECTORY" in environment
    if not has_file and not can_ask:
        return warn("key", f"{format_address(address)}, not opened: its password would be asked for",
                    "name keys.password_file, for a service a credential")  # fmt: skip
    try:
        wallet = await open_node_key(config, environment)
    except OpenLoraError as error:
        return fail("key", error.message, error.code.remedy, error.code)
    return ok("key", f"{format_address(wallet.address)} opens")


def check_state(config: Config) -> Check:
    """The state's directory: ours, private."""
    path = config.state_dir
    try:
        found = path.stat()
    except FileNotFoundError:
        return warn("state", f"{path} is not there yet", "openlora init, or openlora run makes it")
    except OSError:
        return fail("state", f"{path} cannot be looked at", "run this as the user that the node runs as",
                    ErrorCode.DATADIR_UNSAFE)  # fmt: skip
    if found.st_uid != os.geteuid():
        return fail(
            "state", f"{path} belongs to user {found.st_uid}", "run this as that user", ErrorCode.DATADIR_UNSAFE
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        return fail("state", f"{path} can be read by others", f"chmod 700 {path}", ErrorCode.DATADIR_UNSAFE)
    return ok("state", str(path))


def check_disk(config: Config) -> Check:
    """Free space for artifacts and the journal."""
    free = free_space(config)
    found = f"{free / (1 << 30):.1f} GiB free, artifacts may take {config.artifacts.cache_size / (1 << 30):.0f} GiB"
    place = config.state_dir if config.state_dir.exists() else Path("/")
    if disk_health(place).level is Level.DOWN:
        return fail("disk", found, "free disk space, or move node.data_dir", ErrorCode.STORAGE_FULL)
    if free < LOW_DISK_BYTES:
        return warn("disk", found, "free disk space, or lower artifacts.cache_size")
    return ok("disk", found)


def check_device(driver_of: Callable[[], str] | None = None) -> Iterator[Check]:
    """The graphics card, its driver and memory; or that there is none."""
    hardware = probe()
    driver = (driver_of or _driver)()
    if not driver:
        yield warn("device", f"no NVIDIA card: {hardware.device}, {hardware.memory_total} MiB of memory",
                   "nothing, if the engine is to run on the processor; else install the NVIDIA driver")  # fmt: skip
        return
    yield ok("device", f"{hardware.device}, driver {driver}")
    found = f"{hardware.memory_free} of {hardware.memory_total} MiB free"
    if hardware.memory_free < MIN_FREE_VRAM_MIB:
        yield warn("vram", found, "stop what else uses the card: nvidia-smi lists it")
    else:
        yield ok("vram", found)


def check_engines(config: Config) -> Iterator[Check]:
    """Of each engine a model to serve, and who runs it."""
    for engine in config.all_engines:
        yield check_engine(engine, "engine" if engine.name == ONLY else f"engine {engine.name}")


def check_engine(engine: NamedEngine, name: str) -> Check:
    """One of them."""
    keys, at = engine.keys, engine.where
    if keys.model is None and (keys.spawn or keys.backend == "vllm"):
        return fail(name, f"{at}.model names no base model", f"set {at}.model to a folder or an artifact id")
    if keys.model is not None and keys.model.startswith("/") and not Path(keys.model).is_dir():
        return fail(name, f"there is no folder {keys.model}", f"correct {at}.model")
    if keys.spawn:
        return ok(name, f"started by the node for {keys.model}, device {keys.device}")
    if keys.url:
        try:
            api_key(engine)
        except OpenLoraError as error:
            return fail(name, error.message, f"correct {at}.api_key_file", error.code)
        return ok(name, f"by itself at {keys.url}")
    return _socket(engine, name)


def _socket(engine: NamedEngine, name: str) -> Check:
    if not engine.socket.is_socket():
        unit = "openlora-engine" if engine.name == ONLY else f"openlora-engine@{engine.name}"
        return warn(name, f"nothing listens on {engine.socket}", f"systemctl start {unit}")
    return ok(name, f"by itself on {engine.socket}")


def check_ports(config: Config, *, running: bool) -> Check:
    """Whether the ports are free for the node. While it runs they are its own."""
    wanted = [
        (host, port) for address in config.network.listen if (place := _tcp_place(address)) for host, port in [place]
    ]
    api = (config.api.health_listen, config.api.metrics_listen, config.api.signed_listen)
    wanted += [(place.host, place.port) for place in api if place is not None and place.port]
    names = ", ".join(f"{host}:{port}" for host, port in wanted)
    if running:
        return ok("ports", f"{names}: held by the running node, as far as it started")
    taken = [f"{host}:{port}" for host, port in wanted if port and not _can_bind(host, port)]
    if taken:
        return fail("ports", f"{', '.join(taken)} cannot be listened on",
                    "stop what listens there (ss -ltnp), or set other ports", ErrorCode.CONFIG_INVALID)  # fmt: skip
    return ok("ports", f"{names}: free")


def check_address(config: Config, environment: Mapping[str, str]) -> Check:
    """Who may say that this node is theirs."""
    if config.node.owner is None:
        return warn("owner", "node.owner is not set", "set it to the wallet that registers the node")
    if config.node.owner == node_address(config, environment):
        return warn("owner", "the owner is the node key itself", "register with a wallet that is not on this machine")
    return ok("owner", format_address(config.node.owner))


def lock_holder(config: Config) -> str:
    """Who runs on this state, as LOCK tells: the first line is a pid while a node runs, else empty."""
    try:
        return (config.state_dir / LOCK_NAME).read_text("ascii", "replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _tcp_place(address: str) -> tuple[str, int] | None:
    """`/ip4/0.0.0.0/tcp/4001` → its host and port."""
    parts = address.split("/")
    return (parts[2], int(parts[4])) if len(parts) >= 5 and parts[1] in {"ip4", "ip6"} and parts[3] == "tcp" else None


def _can_bind(host: str, port: int) -> bool:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
    except OSError:
        return False
    return True
