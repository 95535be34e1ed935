"""The alert rules, the dashboard and the operator's page name metrics that exist; the page names all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from openlora_node.api.meters import PREFIX, Meters
from openlora_node.daemon import figures

ROOT = Path(__file__).parents[3]


def names() -> set[str]:
    """Every metric of a node, without prefix; counters with `_total`."""
    read = set(re.findall(r'Figure\(\s*"(\w+)"', Path(figures.__file__).read_text()))
    counted = {family.name + ("_total" if family.type == "counter" else "") for family in Meters().registry.collect()}
    return read | {name.removeprefix(f"{PREFIX}_") for name in counted}


def test_alerts_watch_metrics_that_exist_and_say_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "configs/alerts.yaml").read_text())["groups"][0]["rules"]
    assert len(rules) >= 10
    for rule in rules:
        used = {name.removeprefix(f"{PREFIX}_") for name in re.findall(rf"{PREFIX}_\w+", rule["expr"])}
        assert used, rule["alert"]
        assert used <= names(), rule["alert"]
        assert rule["annotations"]["fix"]
        assert rule["annotations"]["summary"]


def test_the_dashboard_shows_metrics_that_exist_with_the_labels_that_they_have() -> None:
    board = json.loads((ROOT / "configs/grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 15
    for panel in panels:
        x, width = panel["gridPos"]["x"], panel["gridPos"]["w"]
        assert x + width <= 24, panel["title"]
        for target in panel["targets"]:
            used = {name.removeprefix(f"{PREFIX}_") for name in re.findall(rf"{PREFIX}_\w+", target["expr"])}
            assert used, panel["title"]
            assert {name.removesuffix("_bucket") for name in used} <= names(), panel["title"]
            assert 'instance=~"$node"' in target["expr"], "each panel follows the choice of the node"
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert all(label in labels_of(name.removesuffix("_bucket")) for name in used), panel["title"]
    (chosen,) = [each for each in board["templating"]["list"] if each["name"] == "node"]
    assert f"{PREFIX}_start_time_seconds" in chosen["query"]["query"]


def labels_of(name: str) -> set[str]:
    """The labels of a metric, as the page tells them."""
    (labels,) = re.findall(rf"`{name}(?:\{{([\w,]+)\}})?`", (ROOT / "docs/operator.md").read_text())
    return set(labels.split(","))


def test_the_operators_page_lists_them() -> None:
    page = (ROOT / "docs/operator.md").read_text()
    listed = {re.sub(r"\{.*\}", "", name) for name in re.findall(r"`([a-z_]+(?:\{\w+\})?)`", page)}
    assert names() - listed == set()
