"""Opens a host: its transports, limits and listeners, made sure of before anything is served."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import libp2p.stream_muxer.yamux.yamux as yamux_module
import trio
from libp2p import new_host
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ..protocol.errors import ErrorCode, OpenLoraError
from . import patches
from .guests import Guests
from .host import Host, HostOptions
from .identity import RegistryView, key_pair
from .relay_transport import CircuitTransport, DirectTCP
from .services import running


@asynccontextmanager
async def open_host(secret: bytes, options: HostOptions, registry: RegistryView) -> AsyncIterator[Host]:
    """Start a host with the node key `secret` (32 bytes). Raises CONFIG_INVALID for an address it cannot listen on."""
    patches.apply()
    yamux_module.RTT_MEASURE_INTERVAL = options.ping_interval  # type: ignore[assignment]
    for address in options.listen:
        _check_port(address)
    listen = [Multiaddr(address) for address in options.listen]
    keys = key_pair(secret)
    most = options.max_connections
    circuits = CircuitTransport()
    patience = math.ceil(options.stream_timeout) + 1  # libp2p cuts it to whole seconds: the host's own comes first
    inner = new_host(
        key_pair=keys,
        listen_addrs=listen,
        transports=[circuits, DirectTCP()],
        sec_opt={NOISE_ID: Noise(keys, noise_privkey=new_noise_key().private_key)},
        muxer_opt={TProtocol(YAMUX_ID): Yamux},
        negotiate_timeout=patience,
        announce_addrs=[Multiaddr(address) for address in options.announce] or None,
        connection_config=ConnectionConfig(
            max_connections=most,
            high_watermark=most,
            min_connections=0,
            low_watermark=0,
            max_connections_per_peer=2,
            dial_timeout=options.dial_timeout,
            inbound_upgrade_timeout=options.handshake_timeout,
            outbound_upgrade_timeout=options.handshake_timeout,
            inbound_stream_protocol_negotiation_timeout=patience,
            outbound_stream_protocol_negotiation_timeout=patience,
            deny_list=list(options.deny),
        ),
    )
    assert isinstance(inner, BasicHost)
    swarm = cast(Swarm, inner.get_network())
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.set_resource_manager(None)  # it loses count of cancelled handshakes; the bounds here are the host's own
    swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint  # type: ignore[method-assign]  # it dials on its own
    host = Host(inner, options, registry, circuits)
    swarm.__dict__[patches.GUESTS] = Guests(most, options.max_per_place)
    swarm.__dict__[patches.IS_NODE] = lambda peer: host.peer(peer).node is not None
    inner.get_addrs = host.told  # type: ignore[method-assign]  # libp2p's own would cut circuit addresses short
    async with running(swarm):
        await swarm.listen(*listen)
        if len(host.addresses()) < len(listen):
            raise OpenLoraError(ErrorCode.CONFIG_INVALID, "a network.listen address cannot be listened on")
        async with host.alive():
            yield host


def _check_port(address: str) -> None:
    """libp2p listens with SO_REUSEPORT: a second process on the port would silently take half of the connections."""
    multiaddr = Multiaddr(address)
    version = "ip6" if "ip6" in {protocol.name for protocol in multiaddr.protocols()} else "ip4"
    port = int(multiaddr.value_for_protocol("tcp") or 0)
    if port == 0:
        return
    with socket.socket(socket.AF_INET6 if version == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((multiaddr.value_for_protocol(version), port))
        except OSError:
            raise OpenLoraError(
                ErrorCode.CONFIG_INVALID, f"port {port} is taken or not this machine's: change network.listen"
            ) from None
