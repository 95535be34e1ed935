"""Who may speak to the server: API key, and against DNS rebinding the Host and Origin headers. Pure but for a clock."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping

from ..errors import Code, EngineError

OPEN_ROUTES = frozenset({"/health"})
"""Answered without a key: load balancers ask them."""


class Guard:
    """The checks before a request's body is looked at.

    A web page that points its own name at 127.0.0.1 can make a browser call a server here; the browser then sends that
    name as Host and, for whatever changes state, the page as Origin. Addresses and localhost cannot be rebound.
    """

    def __init__(self, api_key: str, allowed_hosts: Iterable[str], *, local: bool) -> None:
        self._api_key = _raw(api_key)
        self._allowed_hosts = frozenset({"localhost", *(name.lower() for name in allowed_hosts)})
        self._local = local
        """On a Unix socket: no browser reaches it, whatever Host says."""

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises FORBIDDEN for a foreign Host or Origin, UNAUTHORIZED without the key."""
        if not self._local:
            self._check_host(headers.get("Host"))
            self._check_origin(headers.get("Origin"), headers.get("Host"))
        if self._api_key and path not in OPEN_ROUTES:
            self._check_key(headers.get("Authorization", ""))

    def _check_host(self, host: str | None) -> None:
        # A browser always sends it; what sends none is no browser.
        if host is None or _is_address(name := _name(host)) or name in self._allowed_hosts:
            return
        raise EngineError(
            Code.FORBIDDEN, "the Host header names another server: have the name added with --allowed-hosts"
        )

    def _check_origin(self, origin: str | None, host: str | None) -> None:
        if origin is None or origin.lower().partition("://")[2] == (host or "").lower():
            return
        raise EngineError(Code.FORBIDDEN, "web pages may not call this server: call it from your own server")

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_raw(key.strip()), self._api_key):
            return
        raise EngineError(Code.UNAUTHORIZED, "send the API key as `Authorization: Bearer KEY`")


def _raw(text: str) -> bytes:
    """A header's bytes as they came: aiohttp decodes what is no UTF-8 to lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _name(host: str) -> str:
    """A Host header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
