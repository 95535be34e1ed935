"""Prometheus metrics: what was counted on the way, and what rooms say of themselves when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .answers import errors_as_json
from .health import only_local
from .meters import PREFIX

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `name` is without prefix, in base units; one that only grows is `counts`."""

    name: str
    meaning: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    counts: bool = False


Figures = Callable[[], Iterable[Figure]]


class _Collector(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for figure in self._figures():
            name = f"{PREFIX}_{figure.name}"
            if name not in families:
                kind = CounterMetricFamily if figure.counts else GaugeMetricFamily
                families[name] = kind(name, figure.meaning, labels=list(figure.labels))
            families[name].add_metric(list(figure.labels.values()), figure.value)  # type: ignore[attr-defined]
        yield from families.values()


def metrics_app(registry: CollectorRegistry, figures: Figures, *, public: bool = False) -> web.Application:
    """`/metrics`. Unless `public`, it answers to this machine's names only."""
    registry.register(_Collector(figures))
    app = web.Application(
        middlewares=[errors_as_json] if public else [errors_as_json, only_local], client_max_size=1024
    )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", metrics)
    return app
