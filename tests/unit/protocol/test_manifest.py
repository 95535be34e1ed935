"""Manifests: canonical or refused; file names that could leave their directory never parse."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.protocol.errors import ErrorCode, ProtocolError
from openlora_node.protocol.ids import ArtifactId
from openlora_node.protocol.manifest import (
    MAX_MANIFEST_BYTES,
    AdapterManifest,
    BaseManifest,
    DatasetManifest,
    FileEntry,
    artifact_id,
    canonical_json,
    check_path,
    decode_manifest,
)

ROOT = "ab" * 32
BASE_ID = "sha256:" + "cd" * 32


def entry(path: str, size: int = 3) -> FileEntry:
    return FileEntry(path=path, root=ROOT, size=size)


def adapter(*paths: str, **fields: Any) -> AdapterManifest:
    return AdapterManifest(config={}, files=tuple(entry(path) for path in paths or ("a",)), base=BASE_ID, **fields)


def refused(data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_manifest(data)
    assert caught.value.code in (ErrorCode.BAD_MANIFEST, ErrorCode.BAD_ID)
    return caught.value


values = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text(st.characters(exclude_categories=["Cs"]))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(value=values)
def test_canonical_json_is_json_and_ignores_key_order(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


def test_keys_sort_by_utf_16() -> None:
    assert canonical_json({"\ufb33": 1, "\U0001f600": 2, "€": 3, "\r": 4, "1": 5}) == (
        '{"\\r":4,"1":5,"€":3,"\U0001f600":2,"\ufb33":1}'.encode()
    )


@pytest.mark.parametrize("value", [1.5, None, float("nan"), 2**53, -(2**53), {1: 2}, {"a": [None]}, "\ud800", b"x"])
def test_what_languages_write_differently_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        canonical_json(value)
    assert caught.value.code == ErrorCode.BAD_MANIFEST


def test_kinds_round_trip() -> None:
    manifests = [
        adapter("adapter_config.json", "adapter_model.safetensors", datasets=(BASE_ID,), recipe={"epochs": 3}),
        BaseManifest(config={"dtype": "float32"}, files=(entry("m"),), tokenizer=ROOT, chat_template=ROOT),
        DatasetManifest(config={}, files=(entry("data/train.jsonl"),), shares_root=ROOT, previous=BASE_ID),
    ]
    for manifest in manifests:
        data = manifest.encode()
        assert decode_manifest(data, manifest.id) == manifest
        assert manifest.id == artifact_id(data) == sha256(data).digest()


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "/a",
        "//a",
        "a//b",
        "a/",
        "./a",
        "a/.",
        ".hidden",
        "a/.git/config",
        "-rf",
        "a\\b",
        "C:\\x",
        "C:",
        "a\x00b",
        "a\nb",
        "a b",
        "a:b",
        "~/a",
        "é",
        "\u202e",
        "a" * 256,
        "%2e%2e",
        "a.",
        "a./b",
        "/".join("a" * 17),
    ],
)
def test_unsafe_file_names_are_refused(path: str) -> None:
    with pytest.raises(ProtocolError):
        check_path(path)
    good = adapter("a").encode()
    refused(good.replace(b'"path":"a"', b'"path":' + json.dumps(path, ensure_ascii=False).encode()))


@pytest.mark.parametrize("paths", [("a", "a"), ("A", "a"), ("a", "a/b"), ("A", "a/b"), ("b", "a"), ("a/B", "a/b")])
def test_two_files_of_one_name_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError):
        adapter(*paths)


def test_files_beside_their_directory_prefix_are_fine() -> None:
    assert len(adapter("a.b", "a/b", "a_b").files) == 3


def mutate(**change: Any) -> bytes:
    return canonical_json(json.loads(adapter("a").encode()) | change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"kind":"adapter"}',
        b'{"a":' * 5000,
        b"[" * 200_000,
        adapter("a").encode() + b" ",
        adapter("a").encode().replace(b",", b", "),
        adapter("a").encode().replace(b'"size":3', b'"size":3.0'),
        adapter("a").encode().replace(b'"size":3', b'"size":03'),
        adapter("a").encode().replace(b'"recipe":{},', b""),
        adapter("a").encode().replace(b'"recipe":{}', b'"recipe":{"b":1,"a":2}'),
        adapter("a").encode().replace(b'"recipe":{}', b'"recipe":{"a":1,"a":2}'),
        adapter("a").encode().replace(b'"recipe":{}', b'"recipe":{"a":1.5}'),
        adapter("a").encode().replace(b'"recipe":{}', b'"recipe":{"a":null}'),
        adapter("a").encode().replace(b'"recipe":{}', b'"recipe":{"a":"\\u0041"}'),
        mutate(extra=1),
        mutate(version=2),
        mutate(chunk_size=1),
        mutate(kind="model"),
        mutate(files=[]),
        mutate(base="sha256:../x"),
        mutate(base=""),
        mutate(datasets=["sha256:" + "b" * 64, "sha256:" + "a" * 64]),
        mutate(datasets=["sha256:" + "a" * 64] * 2),
        mutate(files=[{"path": "a", "root": "AB" * 32, "size": 1}]),
        mutate(files=[{"path": "a", "root": ROOT, "size": -1}]),
        mutate(files=[{"path": "a", "root": ROOT, "size": 2**43}]),
        mutate(files=[{"path": "a", "root": ROOT, "size": 1, "mode": 511}]),
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    refused(data)


def test_wrong_digest_is_refused_before_parsing() -> None:
    data = adapter("a").encode()
    with pytest.raises(ProtocolError):
        decode_manifest(data, ArtifactId(bytes(32)))


def test_manifests_are_bounded() -> None:
    refused(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ProtocolError):
        adapter("a", recipe={"note": "x" * MAX_MANIFEST_BYTES}).encode()
    with pytest.raises(ProtocolError):
        adapter(*(f"f{n:05}" for n in range(4097)))
    nested: Any = 1
    for _ in range(10):
        nested = [nested]
    with pytest.raises(ProtocolError):
        adapter("a", recipe={"deep": nested})


@given(data=st.data())
def test_flipped_bits_are_refused_or_another_artifact(data: st.DataObject) -> None:
    good = adapter("adapter_model.safetensors", recipe={"epochs": 3})
    packed = bytearray(good.encode())
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        other = decode_manifest(bytes(packed))
    except ProtocolError:
        return
    assert other.id != good.id
    assert other.encode() == bytes(packed)
