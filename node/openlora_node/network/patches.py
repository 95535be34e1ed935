"""Guards on libp2p 0.8.1 itself, where no wrapper around its public names reaches, and the test that they still fit.

Each patch names what goes wrong without it. They touch private names: `self_test` runs at start-up and refuses a
libp2p whose names differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import libp2p.network.swarm as swarm_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p.abc import INetConn
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError
from .guests import Guests
from .halfopen import HalfOpen

PINNED = "0.8.1"
GUESTS = "openlora_guests"
"""Where a swarm keeps which strangers came in."""
IS_NODE = "openlora_is_node"
"""Where a swarm keeps the question whether a peer is a registered node."""
WRITE_STALL_S = 15.0
"""A frame that the socket has not taken by then: the peer is frozen or hostile, the connection goes."""
DIAL_HEAD_START_S = 0.02
MAX_BUFFERED = 2 * yamux_module.MAX_WINDOW_SIZE
"""Unread bytes of one stream. Honest peers stay within the window, half of this."""

logger = logging.getLogger(__name__)

EXPECTED: dict[str, tuple[type, str]] = {
    "Yamux._write_frame": (Yamux, "self,data"),
    "Yamux.start": (Yamux, "self"),
    "Yamux.close": (Yamux, "self,error_code"),
    "YamuxStream._auto_tune_and_send_window_update": (YamuxStream, "self,bytes_read"),
    "YamuxStream._apply_autotune_epoch": (YamuxStream, "self,buffered"),
    "YamuxStream.send_window_update": (YamuxStream, "self,increment,skip_lock"),
    "SwarmConn.start": (SwarmConn, "self"),
    "SwarmConn._handle_muxed_stream": (SwarmConn, "self,muxed_stream"),
    "Swarm._handle_inbound_connection": (Swarm, "self,read_write_closer,maddr"),
    "Swarm.upgrade_inbound_raw_conn": (Swarm, "self,raw_conn,maddr"),
    "Swarm.get_connections": (Swarm, "self,peer_id"),
    "Swarm.dial_addr": (Swarm, "self,addr,peer_id,source"),
    "Swarm.dial_addr_as_responder": (Swarm, "self,addr,peer_id,source"),
    "TransportUpgrader.upgrade_security": (TransportUpgrader, "self,raw_conn,is_initiator,peer_id"),
}
CONSTANTS = (
    (swarm_module, "_HAPPY_EYEBALLS_DELAY"),
    (yamux_module, "RTT_MEASURE_INTERVAL"),
    (yamux_module, "MAX_WINDOW_SIZE"),
)
SOURCES: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (Yamux.__init__, ("_ping_event", "_ping_sent_time", "event_closed", "event_shutting_down", "stream_buffers")),
    (YamuxStream.__init__, ("self.recv_window =", "self.conn =", "self.target_recv_window =")),
    (BasicHost.__init__, ("self._observed_addr_manager",)),
    (Swarm.__init__, ("_negative_peer_cache", "retry_config")),
    (Yamux._measure_rtt_loop, ("RTT_MEASURE_INTERVAL", "_ping_event.wait")),
)


def self_test(version: str | None = None) -> None:
    """Refuse a libp2p whose private names are not those patched here. Raises OpenLoraError INTERNAL."""
    found = version or metadata.version("libp2p")
    problems = [] if found == PINNED else [f"version {found}"]
    for name, (owner, parameters) in EXPECTED.items():
        function = vars(owner).get(name.partition(".")[2])
        original = getattr(function, "__wrapped__", function)
        if original is None or ",".join(inspect.signature(original).parameters) != parameters:
            problems.append(name)
    problems += [name for module, name in CONSTANTS if not hasattr(module, name)]
    for function, names in SOURCES:
        source = inspect.getsource(function)
        problems += [name for name in names if name not in source]
    if problems:
        raise OpenLoraError(
            ErrorCode.INTERNAL,
            f"this libp2p does not fit ({', '.join(problems)[:200]}): pip install libp2p=={PINNED}",
        )


def apply() -> None:
    """Install every patch, once a process. Runs the self-test first."""
    self_test()
    if hasattr(Yamux._write_frame, "__wrapped__"):
        return
    # Dialling waits this long for each address even when it succeeded: 250 ms by default.
    swarm_module._HAPPY_EYEBALLS_DELAY = DIAL_HEAD_START_S
    _replace(Yamux, "_write_frame", _shielded_write_frame)
    _replace(Yamux, "start", _contained)
    _replace(SwarmConn, "start", _contained)
    _replace(SwarmConn, "_handle_muxed_stream", _contained)
    _replace(Swarm, "_handle_inbound_connection", _accept)
    _replace(Swarm, "get_connections", _open_ones)
    _replace(YamuxStream, "_auto_tune_and_send_window_update", _rare_window_updates)
    YamuxStream.recv_window = property(_get_window, _set_window)  # type: ignore[assignment]


def _replace(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    replacement = make(original)
    replacement.__wrapped__ = original  # type: ignore[attr-defined]
    setattr(owner, name, replacement)


def _shielded_write_frame(original: Callable[..., Any]) -> Callable[..., Any]:
    """A write cancelled half-way leaves half a frame and a skipped Noise nonce: its connection fails from then on."""

    async def _write_frame(self: Yamux, data: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_STALL_S) as scope:
            await original(self, data)
        if scope.cancelled_caught:
            abort(self)
            raise ConnectionError("the peer takes no data; its connection was closed")

    return _write_frame


def _contained(original: Callable[..., Any]) -> Callable[..., Any]:
    """An exception that leaves a stream handler or a muxer ends the whole swarm; here it ends its connection."""

    async def run(self: Yamux | SwarmConn, *args: Any) -> None:
        try:
            await original(self, *args)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes may raise
            muxer = self if isinstance(self, Yamux) else self.muxed_conn
            logger.warning("connection to %s closed after %s", muxer.peer_id, _leaf(error))
            abort(muxer)

    return run


def _rare_window_updates(_original: Callable[..., Any]) -> Callable[..., Any]:
    """libp2p answers each read with a window update, a frame of its own for every message; half a window will do."""

    async def _auto_tune_and_send_window_update(self: YamuxStream, *, bytes_read: int = 0) -> None:
        buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
        used = self.target_recv_window - self.recv_window - buffered
        if used >= self.target_recv_window // 2:
            self.recv_window += used
            await self.send_window_update(used + self._apply_autotune_epoch(buffered))

    return _auto_tune_and_send_window_update


def _accept(_original: Callable[..., Any]) -> Callable[..., Any]:
    """libp2p keeps a slot and a task for each inbound connection until the host stops, which so goes deaf.

    Also bounds connections in handshake, which would take all slots for ten seconds, and those from one place.
    """

    async def _handle_inbound_connection(self: Swarm, socket: ReadWriteCloser, address: Multiaddr) -> None:
        host = _remote_host(socket)
        remote = Multiaddr(f"/ip{6 if ':' in host else 4}/{host}") if host else None
        if remote is None or not await self.connection_gate.is_allowed(remote):
            await socket.close()
            return
        guests: Guests = self.__dict__.setdefault(GUESTS, Guests(self.connection_config.max_connections))
        is_node: Callable[[ID], bool] = self.__dict__.get(IS_NODE, lambda _: False)
        half_open = _half_open(self)
        scope = trio.CancelScope()
        evicted = half_open.enter(scope, host)
        if evicted is not None:
            evicted.cancel()
        raw = RawConnection(socket, False)
        muxer: Any = None
        try:
            with scope:
                muxer = await self.upgrade_inbound_raw_conn(raw, address)
            half_open.leave(scope)
            if muxer is None:
                return
            stranger = not is_node(muxer.peer_id)
            if stranger and not guests.enter(host):
                logger.debug("inbound connection refused: enough from there, or in all")
                abort(muxer)
                return
            try:
                await muxer.event_closed.wait()
            finally:
                if stranger:
                    guests.leave(host)
        except Exception as error:  # noqa: BLE001 - a handshake with a stranger
            logger.debug("inbound connection refused: %s", type(error).__name__)
        finally:
            half_open.leave(scope)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await raw.close()

    return _handle_inbound_connection


def _open_ones(original: Callable[..., Any]) -> Callable[..., Any]:
    """A closed connection stays on libp2p's list for a tenth of a second, where it counts against the limit."""

    def get_connections(self: Swarm, peer_id: ID | None = None) -> list[INetConn]:
        return [connection for connection in original(self, peer_id) if not connection.is_closed]

    return get_connections


def _half_open(swarm: Swarm) -> HalfOpen[trio.CancelScope]:
    table: HalfOpen[trio.CancelScope] = swarm.__dict__.setdefault("openlora_half_open", HalfOpen())
    return table


def _remote_host(socket: Any) -> str:
    """The peer's IP address; libp2p's own look-up knows none for IPv6."""
    try:
        return str(socket.stream.socket.getpeername()[0]).partition("%")[0]
    except OSError:
        return ""


def _get_window(stream: YamuxStream) -> int:
    window: int = stream.__dict__["recv_window"]
    return window


def _set_window(stream: YamuxStream, window: int) -> None:
    """A peer that ignores the receive window would fill this machine's memory: libp2p only logs it."""
    stream.__dict__["recv_window"] = window
    if window < 0 and len(stream.conn.stream_buffers.get(stream.stream_id, b"")) > MAX_BUFFERED:
        abort(stream.conn)


def abort(muxer: Any) -> None:
    """Close a connection from wherever its trouble was seen, without waiting for it."""

    async def close() -> None:
        with trio.move_on_after(1):
            try:
                muxer.event_shutting_down.set()  # no farewell: the peer may not be reading
                await muxer._cleanup_on_error()
            except Exception as error:  # noqa: BLE001 - it is being thrown away
                logger.debug("closing a broken connection: %s", type(error).__name__)

    trio.lowlevel.spawn_system_task(close)


def _leaf(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
