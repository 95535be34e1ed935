"""Rules between keys: combinations that are each valid and together wrong. Values in, complaints out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .engine_rules import ENGINE_RULES

if TYPE_CHECKING:
    from .endpoints import HostPort
    from .schema import Config

RULE_ERROR = "openlora_rule"
"""The pydantic error type whose context's `broken` holds pairs of key and message."""

CHAIN_IDS = {"openledger": 1612, "openledger-testnet": 161201}
MAX_SOCKET_PATH = 107
"""Linux: sun_path holds 108 bytes with its final zero."""

Broken = tuple[str, str]


def broken_rules(config: Config) -> Iterator[Broken]:
    """Every rule that `config` breaks: the key to change, and how."""
    for rule in RULES:
        yield from rule(config)


def chain_is_the_networks(config: Config) -> Iterator[Broken]:
    """A known network has one chain id."""
    expected = CHAIN_IDS.get(config.node.network)
    if expected and config.chain.chain_id not in (None, expected):
        yield "chain.chain_id", f"the network {config.node.network} has chain id {expected}: write that, or null"


def api_stays_local(config: Config) -> Iterator[Broken]:
    """Nothing unsigned is served off loopback without consent, and no prompt crosses a network in the clear."""
    api = config.api
    if api.health_listen and not api.health_listen.is_loopback:
        yield "api.health_listen", "listen on loopback, such as 127.0.0.1:9470: health answers without a signature"
    if api.metrics_listen and not api.metrics_listen.is_loopback and not api.metrics_public:
        yield "api.metrics_listen", "listen on loopback, or set api.metrics_public: true to let others read metrics"
    if (api.tls_certificate_file is None) != (api.tls_key_file is None):
        missing = "tls_key_file" if api.tls_key_file is None else "tls_certificate_file"
        yield f"api.{missing}", "name both TLS files or neither"
    if api.signed_listen and not api.signed_listen.is_loopback and api.tls_certificate_file is None:
        yield "api.signed_listen", "set both api.tls files, or listen on loopback behind a TLS proxy"


def gateway_stays_local(config: Config) -> Iterator[Broken]:
    """An endpoint that spends leaves loopback only by consent."""
    if not config.gateway.listen.is_loopback and not config.gateway.public:
        yield "gateway.listen", "listen on loopback, or set gateway.public: true: this endpoint can spend"


def spending_adds_up(config: Config) -> Iterator[Broken]:
    """A request within its cap must fit the day and the escrow that is to pay it."""
    gateway = config.gateway
    if gateway.spend_per_request > gateway.spend_per_day:
        yield "gateway.spend_per_request", "lower it to gateway.spend_per_day or less"
    if gateway.escrow_per_node < gateway.spend_per_request:
        yield "gateway.escrow_per_node", "raise it to gateway.spend_per_request or more: escrow pays each request"


def queue_holds_a_payer(config: Config) -> Iterator[Broken]:
    """What one payer may have waiting fits the queue."""
    if config.limits.in_flight_per_payer > config.limits.queue:
        yield "limits.in_flight_per_payer", "lower it to limits.queue or less"


def listeners_differ(config: Config) -> Iterator[Broken]:
    """No two of this node's HTTP servers share a port of one interface."""
    taken: list[tuple[str, HostPort]] = []
    for key in ("health_listen", "metrics_listen", "signed_listen"):
        here: HostPort | None = getattr(config.api, key)
        if here is None or here.port == 0:
            continue
        for other, there in taken:
            same_host = here.host == there.host or here.is_unspecified or there.is_unspecified
            if here.port == there.port and same_host:
                yield f"api.{key}", f"choose another port: api.{other} has this one"
        taken.append((key, here))


def socket_paths_fit(config: Config) -> Iterator[Broken]:
    """The kernel takes no longer path for a Unix socket."""
    sockets = [("api.control_socket", config.api.control_socket, config.control_socket)]
    sockets += [
        (f"{engine.where}.socket", engine.keys.socket, engine.socket)
        for engine in config.all_engines
        if engine.keys.url is None
    ]
    for key, chosen, path in sockets:
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            key_to_change = key if chosen else "node.data_dir"
            yield key_to_change, f"choose a shorter path: a Unix socket's has at most {MAX_SOCKET_PATH} bytes"
            if not chosen:
                return


RULES: tuple[Callable[[Config], Iterator[Broken]], ...] = (
    chain_is_the_networks,
    *ENGINE_RULES,
    api_stays_local,
    gateway_stays_local,
    spending_adds_up,
    queue_holds_a_payer,
    listeners_differ,
    socket_paths_fit,
)
