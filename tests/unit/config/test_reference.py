"""The page and the example file follow the schema, in both directions."""

import re
from pathlib import Path

import pytest

from openlora_node.config import load
from openlora_node.config.catalog import KEYS, SECTIONS
from openlora_node.config.reference import reference

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "configs" / "operator.yaml"
SET_BY_OPERATOR = {"node.data_dir": "/var/lib/openlora"}
"""What operator.yaml must say itself: every other key stands there commented out, at its default."""


def uncommented() -> str:
    return re.sub(r"^  #(?=[a-z_]+:)", "  ", OPERATOR.read_text(), flags=re.MULTILINE)


def test_the_page_is_the_schemas() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), (
        "run `openlora config reference > docs/configuration.md`"
    )


def test_every_key_has_a_whole_row() -> None:
    rows = [line for line in reference().splitlines() if "`OPENLORA_" in line and line.startswith("|")]
    assert len(rows) == len(KEYS)
    for key, row in zip(KEYS, rows, strict=True):
        cells = row.split(" | ")
        assert len(cells) == 5, row
        assert all(cell.strip("|` ") for cell in cells), row
        assert f"`{key.env}`" in row
        assert key.meaning.endswith("."), key.dotted
    assert all(model.__doc__ for model in SECTIONS.values())


def test_defaults_are_written_as_they_are_shown() -> None:
    for setting in load(environ={}).settings:
        assert setting.source == "default"
        if setting.key.dotted != "node.data_dir":
            assert setting.text == setting.key.default_text, setting.key.dotted


def test_the_operators_file_loads_as_it_stands() -> None:
    settings = load(OPERATOR, environ={}).settings
    assert {item.key.dotted: item.text for item in settings if item.source != "default"} == SET_BY_OPERATOR


def test_the_operators_file_has_every_key_once_at_its_default(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(uncommented())
    # Unknown and doubled keys are errors, so loading proves one direction; sources prove the other.
    settings = load(file, environ={}).settings
    for setting in settings:
        assert setting.source.startswith(str(file)), f"operator.yaml lacks {setting.key.dotted}"
        expected = SET_BY_OPERATOR.get(setting.key.dotted, setting.key.default_text)
        assert setting.text == expected, setting.key.dotted
    lines = [int(setting.source.rpartition(":")[2]) for setting in settings]
    assert lines == sorted(lines), "operator.yaml has the schema's order"


def test_every_key_of_the_operators_file_is_explained() -> None:
    lines = OPERATOR.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"  #?[a-z_]+:", line)]
    assert len(keys) == len(KEYS)
    for number in keys:
        assert lines[number - 1].startswith("  # "), lines[number]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.dotted)
def test_a_default_survives_each_way_of_writing_it(key, tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(f"{key.section}:\n  {key.name}: {key.default_text}\n")
    expected = key.of(load(environ={}).config)
    assert key.of(load(file, environ={}).config) == expected
    assert key.of(load(environ={key.env: key.default_text}).config) == expected
    assert key.of(load(environ={}, flags=[f"{key.dotted}={key.default_text}"]).config) == expected
