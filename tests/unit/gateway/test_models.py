"""What a `model` field and an `adapters` list mean, and what is told where they mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.gateway.models import Part, Wanted, wanted
from openlora_node.gateway.names import AdapterName, BaseName, Names, load_names, parse_names
from openlora_node.openai import BodyError
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pipeline import MixMethod

BASE, OTHER, POET, COOK, UNKNOWN = (bytes([value]) * 32 for value in (0xBA, 0xBB, 0xA1, 0xA2, 0x77))
NAMES = Names(
    {"tiny": BaseName("tiny", BASE), "large": BaseName("large", OTHER)},
    {"poet": AdapterName("poet", POET, BASE), "cook": AdapterName("cook", COOK, OTHER)},
)


def text(artifact: bytes) -> str:
    return f"sha256:{artifact.hex()}"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny", Wanted(BASE)),
        (text(BASE), Wanted(BASE)),
        ("poet", Wanted(BASE, (Part(POET),))),
        (text(POET), Wanted(BASE, (Part(POET),))),
        ("tiny+poet", Wanted(BASE, (Part(POET),))),
        (f"tiny+{text(POET)}", Wanted(BASE, (Part(POET),))),
        (f"{text(BASE)}+poet", Wanted(BASE, (Part(POET),))),
        (f"{text(BASE)}+{text(UNKNOWN)}", Wanted(BASE, (Part(UNKNOWN),))),
        (f"tiny+poet@{text(UNKNOWN)}", Wanted(BASE, (Part(UNKNOWN),))),
        (f"tiny+anything@{text(POET)}", Wanted(BASE, (Part(POET),))),
        (f"poet@{text(UNKNOWN)}", Wanted(BASE, (Part(UNKNOWN),))),
        (text(UNKNOWN), Wanted(None, (Part(UNKNOWN),))),
    ],
)
def test_what_a_model_means(model: str, expected: Wanted) -> None:
    assert wanted(model, (), None, NAMES) == expected


def test_weights_are_exact_and_mixes_keep_their_method() -> None:
    found = wanted("tiny", [("poet", 0.7), (text(UNKNOWN), -0.05)], "ties", NAMES)
    assert found == Wanted(BASE, (Part(POET, 7_000), Part(UNKNOWN, -500)), MixMethod.TIES)
    assert wanted("tiny", [("poet", 0.3)], "ties", NAMES).method is MixMethod.CAT


@pytest.mark.parametrize(
    ("model", "adapters", "code", "told"),
    [
        (None, [], ErrorCode.MODEL_NOT_FOUND, "name a model: there are tiny, large, tiny\\+poet, large\\+cook"),
        ("tinny", [], ErrorCode.MODEL_NOT_FOUND, "did you mean tiny"),
        ("nobody+poet", [], ErrorCode.MODEL_NOT_FOUND, "there are tiny"),
        ("tiny+poem", [], ErrorCode.ADAPTER_NOT_FOUND, "did you mean poet"),
        ("tiny+poet@sha256:12", [], ErrorCode.BAD_ID, "behind @"),
        ("tiny+cook", [], ErrorCode.BAD_PIPELINE, "another base"),
        ("tiny+poet", [("poet", 1.0)], ErrorCode.MALFORMED, "in one place"),
        ("tiny", [("poet", 0.5), (text(POET), 0.5)], ErrorCode.BAD_PIPELINE, "twice"),
        ("tiny", [("poet", 0.33)], ErrorCode.BAD_PIPELINE, "multiple of 0.05"),
        ("tiny", [("poet", float("inf"))], ErrorCode.BAD_PIPELINE, "multiple of 0.05"),
        ("tiny", [(text(bytes([n]) * 32), 1.0) for n in range(5)], ErrorCode.BAD_PIPELINE, "at most 4"),
    ],
)
def test_what_means_nothing_is_told(
    model: str | None, adapters: list[tuple[str, float]], code: ErrorCode, told: str
) -> None:
    with pytest.raises(BodyError, match=told) as caught:
        wanted(model, adapters, None, NAMES)
    assert caught.value.code is code


def test_a_names_file(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text(
        f"bases:\n  tiny:\n    id: {text(BASE)}\n    folder: /models/tiny\n"
        f"adapters:\n  poet: {{id: '{text(POET)}', base: tiny}}\n"
        f"  cook: {{id: '{text(COOK)}', base: '{text(OTHER)}'}}\n"
    )
    names = load_names(file, must_exist=True)
    assert names.bases["tiny"] == BaseName("tiny", BASE, Path("/models/tiny"))
    assert names.adapters["poet"] == AdapterName("poet", POET, BASE)
    assert names.adapters["cook"].base == OTHER
    assert names.name_of(POET) == "poet"
    assert names.name_of(UNKNOWN) == text(UNKNOWN)
    assert load_names(tmp_path / "none.yaml", must_exist=False) == Names()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "the names file"),
        ({"base": {}}, "there are adapters, bases"),
        ({"bases": {"a+b": {"id": text(BASE)}}}, "a name is printable"),
        ({"bases": {"a": {"id": "sha256:12"}}}, "bases.a.id"),
        ({"bases": {"a": {"id": text(BASE), "folder": "models"}}}, "absolute path"),
        ({"adapters": {"a": {"id": text(POET)}}}, "adapters.a.base"),
        ({"adapters": {"a": {"id": text(POET), "base": "nobody"}}}, "adapters.a.base"),
        (
            {"bases": {"a": {"id": text(BASE)}}, "adapters": {"a": {"id": text(POET), "base": "a"}}},
            "a base has this name",
        ),
    ],
)
def test_a_names_file_that_is_wrong_says_where(document: object, told: str) -> None:
    with pytest.raises(OpenLoraError, match=told) as caught:
        parse_names(document)
    assert caught.value.code is ErrorCode.CONFIG_INVALID


def test_files_that_are_no_names_files(tmp_path: Path) -> None:
    with pytest.raises(OpenLoraError, match="does not exist"):
        load_names(tmp_path / "none.yaml", must_exist=True)
    for content in (b"bases: [", b"\xff\xff", b"#" * ((1 << 20) + 1)):
        (tmp_path / "names.yaml").write_bytes(content)
        with pytest.raises(OpenLoraError):
            load_names(tmp_path / "names.yaml", must_exist=True)
