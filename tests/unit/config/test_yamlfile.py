"""YAML with lines, and without what a configuration never needs."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.config.yamlfile import MAX_FILE_BYTES, YamlError, parse, read_text

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=12,
)


def as_tuples(value: object) -> object:
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(item) for item in inner), default=0)


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@given(plain_values.filter(lambda value: depth(value) <= 8), st.booleans())
def test_what_a_dumper_writes_is_read_back(value: object, flow: bool) -> None:
    text = yaml.dump(value, Dumper=NoAliases, default_flow_style=flow, allow_unicode=True)
    assert parse(text).root == as_tuples(value)


@given(st.text(max_size=200) | st.text("{}[]:-&*!#|>%@`'\"\\ \n\tab01", max_size=80))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse(text)
    except YamlError as error:
        assert 0 <= error.line <= 1 + sum(text.count(end) for end in "\n\r\x85\u2028\u2029")
        assert error.message


def test_lines_are_those_of_the_keys() -> None:
    document = parse("# head\nnode:\n  data_dir:\n    /srv\nnetwork:\n  listen:\n    - a\n\n    - b\n")
    assert document.lines["node",] == 2
    assert document.lines["node", "data_dir"] == 3
    assert document.lines["network", "listen"] == 6
    assert [document.lines["network", "listen", n] for n in (0, 1)] == [7, 9]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("no", "no"), ("on", "on"), ("1:30", "1:30"), ("0x10", "0x10"), ("2026-01-01", "2026-01-01"), ("010", 10)),
        *(("true", True), ("null", None), ("~", None), ("", None), ("1e3", 1000.0), ("'1'", "1"), ('"null"', "null")),
        *(("1" * 64, "1" * 64), ("=", "="), ("<<", "<<"), ("1_000", "1_000"), (".inf", ".inf")),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    result = parse(f"key: {text}").root
    assert result == {"key": value}
    assert type(result["key"]) is type(value)


@pytest.mark.parametrize("text", ["", "\n", "# only a remark\n", "---\n", "---\n...\n", "\ufeff"])
def test_nothing_is_null(text: str) -> None:
    assert parse(text).root is None


def test_a_duplicate_key_names_both_lines_and_the_first_stands() -> None:
    document = parse("node:\n  a: 1\n  b: 2\n  a: 3\n")
    assert document.root == {"node": {"a": 1, "b": 2}}
    assert [(problem.line, problem.message) for problem in document.problems] == [
        (4, "this key stands on line 2 already: keep one of them")
    ]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOMB, 1, "aliases"),
        ("a: 1\nb: *nowhere\n", 2, "aliases"),
        ("base: &b {a: 1}\nnode:\n  <<: *b\n", 1, "aliases"),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", 2, "tags"),
        ("a: !!int 3\n", 1, "tags"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: " + "[" * 9 + "]" * 9, 1, "nested too deeply"),
        ("[" * 100_000, 1, "nested too deeply"),
        ("? [a, b]\n: 1\n", 1, "plain word"),
        ("a:\n\tb: 1\n", 2, "tabs"),
        ("a: 1\nb: c: d\n", 2, "indentation"),
        ("a: 'open\nb: 2\n", 3, "YAML"),
        ("a: 1\nb: \x07\n", 2, "control character"),
    ],
)
def test_what_is_refused_and_where(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        parse(text)
    assert caught.value.line == line


def test_files_that_are_none(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in [
        (tmp_path / "absent", "no such file"),
        (tmp_path, "no regular file"),
        (fifo, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("\0"), "cannot read"),
        (tmp_path / ("x" * 300), "cannot read"),
    ]:
        with pytest.raises(YamlError, match=message) as caught:
            read_text(path)
        assert caught.value.line == 0


def test_a_file_is_small_and_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_bytes(b"#" * MAX_FILE_BYTES)
    assert len(read_text(path)) == MAX_FILE_BYTES
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(YamlError, match="exceeds 1MiB"):
        read_text(path)
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa4\n")
    assert read_text(path) == "a: ä\n"
    for data, line in [(b"a: 1\nb: \xff\n", 2), ("a: 1".encode("utf-16"), 1), (b"a: \xed\xa0\x80", 1)]:
        path.write_bytes(data)
        with pytest.raises(YamlError, match="not UTF-8") as caught:
            read_text(path)
        assert caught.value.line == line
