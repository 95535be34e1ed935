"""The documents stay true: every file has its line, every code its row, every named input its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from openlora_node.protocol.errors import ErrorCode, error_table
from openlora_node.protocol.messages import PROTOCOLS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = ("node", "kernels", "chain", "contracts/src", "configs", "systemd", "scripts", "benchmarks")
NOT_ONE_LINE_EACH = ("chain/openlora_chain/artifacts/", "/migrations/", "py.typed", "__pycache__")


def source_files() -> set[str]:
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in {".py", ".sol", ".cpp", ".yaml", ".sh", ".service", ".sql"}
    }
    return {file for file in files if not any(part in file for part in NOT_ONE_LINE_EACH)}


def test_architecture_names_every_file_and_no_other() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    files = source_files()
    assert named >= files, f"docs/architecture.md lacks: {sorted(files - named)}"
    assert files >= named, f"docs/architecture.md names what is gone: {sorted(named - files)}"


def test_every_module_says_what_it_is_for() -> None:
    for file in source_files():
        if file.endswith(".py"):
            docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            assert docstring, f"{file} has no docstring"
            assert docstring.splitlines()[0].rstrip().endswith((".", "`.", ":")), f"{file}: one sentence first"


def test_error_table_is_generated_from_the_code() -> None:
    text = (DOCS / "protocol.md").read_text(encoding="utf-8")
    start, end = "<!-- errors:begin -->\n", "\n<!-- errors:end -->"
    assert text.split(start)[1].split(end)[0] == error_table()


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
