"""Opens the node's HTTP doors: control always, health, metrics and signed requests where they are configured."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ..api.control import control_app
from ..api.health import health_app
from ..api.listeners import listen_tcp, listen_unix, tls_context
from ..api.metrics import metrics_app
from ..api.signed import SignedDoor
from .board import ESSENTIAL
from .commands import commands
from .figures import figures

if TYPE_CHECKING:
    from .node import Node


async def listen(node: Node, stack: AsyncExitStack) -> None:
    """Listen until the stack closes. Raises CONFIG_INVALID for a place that cannot be listened on, KEY_FAILED."""
    api, listeners = node.config.api, node.listeners
    listeners["control"] = await listen_unix(control_app(commands(node)), node.config.control_socket)
    stack.push_async_callback(listeners["control"].close)
    if api.health_listen is not None:
        listeners["health"] = await listen_tcp(health_app(node.board.services, ESSENTIAL), api.health_listen)
        stack.push_async_callback(listeners["health"].close)
    if api.metrics_listen is not None:
        app = metrics_app(node.meters.registry, lambda: figures(node), public=api.metrics_public)
        listeners["metrics"] = await listen_tcp(app, api.metrics_listen)
        stack.push_async_callback(listeners["metrics"].close)
    if api.signed_listen is not None:
        limits = node.config.limits
        door = SignedDoor(
            min(limits.max_body, MAX_SIGNED_BODY),
            limits.body_timeout.total_seconds(),
            behind_proxy=api.signed_listen.is_loopback,
        )
        tls = None
        if api.tls_certificate_file is not None and api.tls_key_file is not None:
            tls = tls_context(api.tls_certificate_file, api.tls_key_file)
        listeners["signed"] = await listen_tcp(door.app(), api.signed_listen, tls, cancels=True)
        stack.push_async_callback(listeners["signed"].close)
        node.rooms.signed = door


MAX_SIGNED_BODY = 1 << 20
"""As on streams."""
