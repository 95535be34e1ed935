"""How the node is, for those who look after it: alive, ready or not and why, and everything else on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aiohttp import web

from ..protocol.health import Level, ServiceHealth
from .answers import Handler, errors_as_json, json_answer
from .hosts import is_address

Services = Callable[[], Sequence[ServiceHealth]]


def readiness(services: Iterable[ServiceHealth], essential: frozenset[str]) -> int:
    """200 when all is up, 206 when it serves all the same, 503 when something essential is down or not there yet."""
    found = list(services)
    if essential - {service.name for service in found}:
        return 503
    if any(service.name in essential and not service.works for service in found):
        return 503
    return 200 if all(service.level is Level.UP for service in found) else 206


def services_as_json(services: Iterable[ServiceHealth]) -> list[dict[str, object]]:
    """Each service: name, level, since when (unix seconds), and the reason where there is one."""
    return [
        {"name": service.name, "level": service.level.value, "since": service.since, "reason": service.reason}
        for service in services
    ]


def health_app(services: Services, essential: frozenset[str]) -> web.Application:
    """`/healthz`: the process answers. `/readyz`: it serves, with every service. Host is checked against rebinding."""
    app = web.Application(middlewares=[errors_as_json, only_local], client_max_size=1024)

    async def healthz(_: web.Request) -> web.Response:
        return json_answer({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        found = services()
        status = readiness(found, essential)
        return json_answer({"ready": status < 300, "services": services_as_json(found)}, status)

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


@web.middleware
async def only_local(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a Host that is not this machine's: a web page must not reach a loopback door by a name of its own."""
    if not is_address(request.host):
        raise web.HTTPForbidden
    return await handler(request)
