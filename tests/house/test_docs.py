"""The documents stay true: every file has its line, every code its row, every named input its test."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.messages import PROTOCOLS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated_docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("document", "part"), [("protocol.md", "errors"), ("architecture.md", "files")])
def test_generated_parts_are_fresh(docs: ModuleType, document: str, part: str) -> None:
    assert (DOCS / document).read_text(encoding="utf-8") == docs.render(document, part), "run python scripts/docs.py"


def test_architecture_names_every_file(docs: ModuleType) -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sources = {
        file
        for file in tracked
        if Path(file).suffix in docs.ENDINGS and not file.startswith(("tests/", "contracts/test/", "."))
    }
    assert sources - named == set(), "docs/architecture.md does not name these"
    assert {file for file in named if not (ROOT / file).exists()} == set()


def test_every_file_says_what_it_is_for(docs: ModuleType) -> None:
    rooms = [room for room in docs.ROOMS if (ROOT / room).is_dir()]
    for room in rooms:
        for path in docs.source_files(room, rooms):
            assert len(docs.first_sentence(path)) > 15, f"{path.relative_to(ROOT)} does not say what it is for"


def test_protocol_document_names_every_protocol_message_and_field() -> None:
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    for protocol in PROTOCOLS:
        assert f"`{protocol.id}`" in text
        section = text.split(f"`{protocol.id}`", 1)[1]
        for message in protocol.messages:
            assert f"`{message.__struct_config__.tag}`" in text, f"{message.__name__} is not in docs/protocol.md"
            for field in message.__struct_fields__:
                assert f"`{field}`" in section or f"`{field}`" in text, f"{message.__name__}.{field}"


def test_error_codes_are_well_formed() -> None:
    for code in ErrorCode:
        assert code.name == code.value
        assert 400 <= code.http_status < 600
        assert code.remedy
        assert not code.remedy.endswith(".")


def referenced_tests() -> list[str]:
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", text)


def test_testing_map_has_entries() -> None:
    assert len(referenced_tests()) > 40


@pytest.mark.parametrize("reference", sorted(set(referenced_tests())))
def test_testing_map_points_at_tests_that_exist(reference: str) -> None:
    file, name = reference.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assign = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert name in functions | classes | assign
