"""The alert rules and the operator's page name metrics that exist, and all of them."""

from __future__ import annotations

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


def test_the_operators_page_lists_them() -> None:
    page = (ROOT / "docs/operator.md").read_text()
    listed = {re.sub(r"\{.*\}", "", name) for name in re.findall(r"`([a-z_]+(?:\{\w+\})?)`", page)}
    assert names() - listed == set()
