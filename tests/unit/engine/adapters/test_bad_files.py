"""Bad input: everything that a stranger can put where an adapter should be. Each is refused, by code and by name."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from openlora_engine.adapters import folder as folder_module
from openlora_engine.adapters.blob import Storage
from openlora_engine.adapters.folder import AdapterRoot
from openlora_engine.adapters.source import Source, identify, load
from openlora_engine.errors import Code, EngineError
from support.engine_adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    key_of,
    llama_targets,
    plain_adapter,
    plain_config,
    plain_weights,
    write_folder,
)

TARGETS = llama_targets()
STORAGE = Storage(TARGETS, torch.float16, max_lora_rank=16)
Q0 = "model.layers.0.self_attn.q_proj"


def refusal(root: Path, name: str = "bad", storage: Storage = STORAGE) -> EngineError:
    with pytest.raises(EngineError) as refused:
        identify(Source(AdapterRoot(root), (name,)), storage)
    assert str(root) not in refused.value.message, "no path of this machine in a message"
    return refused.value


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def good_file(**changes: Any) -> bytes:
    return save(plain_weights(TARGETS, **changes))


def test_a_good_adapter_is_read(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "good", TARGETS)
    source = Source(AdapterRoot(tmp_path), ("good",))
    blob = load(source, identify(source, STORAGE), STORAGE)
    assert blob.placement.ranks == (4,) * len(TARGETS)


# The file.


@pytest.mark.parametrize("length", [0, 4, 8, 9, 500, -1, -500])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    write_folder(tmp_path / "bad", good_file()[:length], plain_config())
    assert refusal(tmp_path).code is Code.ADAPTER_INVALID


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 4096])
def test_bytes_that_no_tensor_owns_are_refused(tmp_path: Path, extra: bytes) -> None:
    write_folder(tmp_path / "bad", good_file() + extra, plain_config())
    assert refusal(tmp_path).code is Code.ADAPTER_INVALID


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1, 1 << 21, 100])
def test_a_header_longer_than_the_file_or_the_limit_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    write_folder(tmp_path / "bad", struct.pack("<Q", length) + b" " * 64, plain_config())
    assert "header" in refusal(tmp_path).message


def test_a_huge_header_in_a_huge_file_is_refused_by_the_limit(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "bad", struct.pack("<Q", 1 << 28), plain_config()) / WEIGHTS_FILE
    os.truncate(path, 1 << 29)  # sparse: nothing is written
    assert "declares a header of 268,435,456 bytes" in refusal(tmp_path).message


A_ENTRY = {"dtype": "F32", "shape": [4, 48], "data_offsets": [0, 768]}


@pytest.mark.parametrize(
    "entries",
    [
        b"", b"null", b"[1]", b"{", b'{"a": 1}', b"\xff" * 8, b'{"a":' * 2_000, b"[" * 200_000,
        {"a": {"dtype": "F32", "shape": [4, 48]}},
        {"a": {**A_ENTRY, "more": 1}},
        {"a": {**A_ENTRY, "shape": [4, -48]}},
        {"a": {**A_ENTRY, "shape": [4.5]}},
        {"a": {**A_ENTRY, "shape": "4,48"}},
        {"a": {**A_ENTRY, "shape": [1] * 9}},
        {"a": {**A_ENTRY, "shape": [1 << 60, 1 << 60]}},
        {"a": {**A_ENTRY, "shape": [0, 48], "data_offsets": [0, 0]}},
        {"a": {**A_ENTRY, "shape": [4, 47]}},
        {"a": {**A_ENTRY, "data_offsets": [768, 0]}},
        {"a": {**A_ENTRY, "data_offsets": [0, 768, 9]}},
        {"a": {**A_ENTRY, "data_offsets": [-768, 0]}},
        {"a": {**A_ENTRY, "data_offsets": [8, 776]}},
        {"a": A_ENTRY, "b": A_ENTRY},
        {"a": {**A_ENTRY, "dtype": "F64", "shape": [2, 48]}},
        {"a": {**A_ENTRY, "dtype": "I8", "shape": [16, 48]}},
        {"a": {**A_ENTRY, "dtype": None}},
        {"x" * 600: A_ENTRY},
        {"__metadata__": {"format": 1}, "a": A_ENTRY},
        {"__metadata__": {}},
        {},
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, entries: Any) -> None:
    write_folder(tmp_path / "bad", header(entries, b"\0" * 768), plain_config())
    assert refusal(tmp_path).code is Code.ADAPTER_INVALID


@settings(max_examples=100)
@given(data=st.data())
def test_a_file_with_any_byte_of_its_header_changed_is_read_or_refused(tmp_path_factory: Any, data: Any) -> None:
    """Whatever the bytes, the answer is an adapter or an EngineError: nothing else escapes."""
    root = tmp_path_factory.mktemp("fuzz")
    content = bytearray(good_file(r=1, modules=("q_proj",)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 420))] = data.draw(st.integers(0, 255))
    write_folder(root / "bad", bytes(content), plain_config(1, ("q_proj",)))
    try:
        identify(Source(AdapterRoot(root), ("bad",)), STORAGE)
    except EngineError as error:
        assert error.code in (Code.ADAPTER_INVALID, Code.ADAPTER_MISMATCH, Code.RANK_TOO_LARGE)


# The weights.


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    weights = plain_weights(TARGETS, dtype=dtype)
    weights[key_of(Q0, "B")][5, 1] = value
    write_folder(tmp_path / "bad", weights, plain_config())
    error = refusal(tmp_path)
    assert error.code is Code.ADAPTER_INVALID
    assert key_of(Q0, "B") in error.message
    assert "NaN" in error.message


@pytest.mark.parametrize(("value", "fits"), [(65_519.0, True), (65_520.0, False), (-70_000.0, False), (1e30, False)])
def test_a_weight_beyond_the_storage_dtype_is_refused_naming_the_flag(tmp_path: Path, value: float, fits: bool) -> None:
    weights = plain_weights(TARGETS)
    weights[key_of(Q0, "A")][0, 0] = value
    write_folder(tmp_path / "bad", weights, plain_config())
    source = Source(AdapterRoot(tmp_path), ("bad",))
    if fits:
        blob = load(source, identify(source, STORAGE), STORAGE)
        assert bool(blob.a(TARGETS, 0).isfinite().all())
    else:
        error = refusal(tmp_path)
        assert "--lora-dtype float32" in error.message
        assert key_of(Q0, "A") in error.message
    identify(source, Storage(TARGETS, torch.float32, max_lora_rank=16))


# Names and shapes.


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "wide", llama_targets(hidden=64, kv=32))
    plain_adapter(tmp_path / "deep", llama_targets(num_layers=3))
    assert refusal(tmp_path, "wide").code is Code.ADAPTER_MISMATCH
    deep = refusal(tmp_path, "deep")
    assert deep.code is Code.ADAPTER_MISMATCH
    assert "model.layers.2.self_attn.q_proj" in deep.message


@pytest.mark.parametrize("path", ["lm_head", "model.embed_tokens", "model.layers.0.self_attn.qq_proj", "q_proj"])
def test_weights_for_what_takes_no_lora_are_refused(tmp_path: Path, path: str) -> None:
    weights = plain_weights(TARGETS)
    weights[key_of(path, "A")], weights[key_of(path, "B")] = torch.zeros(4, 48), torch.zeros(48, 4)
    write_folder(tmp_path / "bad", weights, plain_config())
    error = refusal(tmp_path)
    assert error.code is Code.ADAPTER_MISMATCH
    assert path in error.message


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q0}.lora_magnitude_vector", f"base_model.model.{Q0}.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.lm_head.weight",
        f"{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_A.default.weight", "../../etc/passwd",
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora_of_a_linear_are_refused_by_name(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "bad", {**plain_weights(TARGETS), name: torch.zeros(4, 4)}, plain_config())
    error = refusal(tmp_path)
    assert error.code is Code.ADAPTER_INVALID
    assert name in error.message


@pytest.mark.parametrize(
    ("letter", "shape", "code"),
    [
        ("A", (4, 47), Code.ADAPTER_MISMATCH),
        ("A", (48, 4), Code.ADAPTER_MISMATCH),
        ("B", (47, 4), Code.ADAPTER_MISMATCH),
        ("B", (4, 48), Code.ADAPTER_MISMATCH),
        ("A", (4, 48, 1), Code.ADAPTER_MISMATCH),
        ("A", (192,), Code.ADAPTER_MISMATCH),
        ("A", (5, 48), Code.ADAPTER_INVALID),
        ("B", (48, 3), Code.ADAPTER_INVALID),
    ],
)
def test_a_wrong_shape_is_refused_by_name(tmp_path: Path, letter: str, shape: tuple[int, ...], code: Code) -> None:
    write_folder(tmp_path / "bad", {**plain_weights(TARGETS), key_of(Q0, letter): torch.zeros(shape)}, plain_config())
    error = refusal(tmp_path)
    assert error.code is code
    assert Q0 in error.message


def test_names_from_strangers_are_made_printable(tmp_path: Path) -> None:
    write_folder(tmp_path / "bad", {**plain_weights(TARGETS), "a\nERROR fake\x1b[2J": torch.zeros(1)}, plain_config())
    assert refusal(tmp_path).message.isprintable()


def test_all_offenders_are_counted_and_ten_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "bad", plain_weights(TARGETS, r=8), plain_config(r=4))
    message = refusal(tmp_path).message
    assert message.count("by the config") == 10
    assert f"and {len(TARGETS) - 10} more" in message


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    weights = plain_weights(TARGETS)
    del weights[key_of(Q0, "B")]
    write_folder(tmp_path / "bad", weights, plain_config())
    assert f"{Q0} has only lora_A" in refusal(tmp_path).message


def test_weights_and_target_modules_must_name_the_same_linears(tmp_path: Path) -> None:
    write_folder(tmp_path / "less", plain_weights(TARGETS, modules=("q_proj",)), plain_config())
    write_folder(tmp_path / "more", plain_weights(TARGETS), plain_config(modules=("q_proj",)))
    assert "no weights for model.layers.0.self_attn.k_proj" in refusal(tmp_path, "less").message
    assert "does not select" in refusal(tmp_path, "more").message


def test_a_rank_above_the_limit_names_the_flag(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "bad", TARGETS, r=17)
    error = refusal(tmp_path)
    assert error.code is Code.RANK_TOO_LARGE
    assert "--max-lora-rank 17" in error.message


# The folder.


def test_pickles_are_refused_by_name_and_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    folder = write_folder(tmp_path / "bad", None, plain_config())
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "adapter_model.bin is a pickle" in refusal(tmp_path).message
    assert not (tmp_path / "boom").exists()


def test_a_pickle_in_safetensors_clothing_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "bad", pickle.dumps({"a": list(range(1000))}), plain_config())
    assert refusal(tmp_path).code is Code.ADAPTER_INVALID


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (plain_adapter(tmp_path / "bad", TARGETS) / missing).unlink()
    error = refusal(tmp_path)
    assert error.code is Code.ADAPTER_NOT_FOUND
    assert missing in error.message


@pytest.mark.parametrize("linked", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_symlinked_file_is_refused(tmp_path: Path, linked: str) -> None:
    real = plain_adapter(tmp_path / "real", TARGETS)
    bad = plain_adapter(tmp_path / "bad", TARGETS)
    (bad / linked).unlink()
    (bad / linked).symlink_to(real / linked)
    assert "symbolic link" in refusal(tmp_path).message


def test_a_symlinked_folder_is_refused_and_not_listed(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "elsewhere" / "real", TARGETS)
    root = tmp_path / "root"
    root.mkdir()
    (root / "bad").symlink_to(tmp_path / "elsewhere" / "real")
    assert "symbolic link" in refusal(root).message
    assert list(AdapterRoot(root).names()) == []


def test_a_root_that_is_a_symlink_is_the_operators_affair(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "real" / "good", TARGETS)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    identify(Source(AdapterRoot(tmp_path / "root"), ("good",)), STORAGE)


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    folder = plain_adapter(tmp_path / "bad", TARGETS)
    (folder / name).unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo(folder / name)
        elif kind == "socket":
            monkeypatch.chdir(folder)  # the path of a socket must be short
            listener.bind(name)
        elif kind == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to("/dev/zero")
        assert refusal(tmp_path).code is Code.ADAPTER_INVALID


@pytest.mark.parametrize(
    "path",
    ["../outside", "a/../../outside", "/etc", "/", "a/./../../x", "good/../../outside", "a\0b", "/proc/self/root"],
)
def test_a_path_that_leaves_the_adapters_folder_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(EngineError) as refused:
        AdapterRoot(root).parts_of(path)
    assert refused.value.code is Code.ADAPTER_INVALID


def test_a_path_inside_may_be_relative_or_absolute(tmp_path: Path) -> None:
    root = AdapterRoot(tmp_path)
    assert root.parts_of("team/good") == ("team", "good")
    assert root.parts_of(f"{tmp_path}/team/./good/") == ("team", "good")


def test_a_file_above_the_size_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    folder = plain_adapter(tmp_path / "bad", TARGETS)
    os.truncate(folder / WEIGHTS_FILE, 1 << 40)
    error = refusal(tmp_path)
    assert error.code is Code.ADAPTER_TOO_LARGE
    assert "--max-adapter-size" in error.message
    os.truncate(folder / CONFIG_FILE, 1 << 30)
    assert refusal(tmp_path).code is Code.ADAPTER_TOO_LARGE


def test_a_file_written_to_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plain_adapter(tmp_path / "bad", TARGETS)
    checked = folder_module.OpenFile.check_unchanged

    def write_first(opened: folder_module.OpenFile) -> None:
        with (folder / WEIGHTS_FILE).open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\0\0\0\0")
        checked(opened)

    monkeypatch.setattr(folder_module.OpenFile, "check_unchanged", write_first)
    assert "changed while they were read" in refusal(tmp_path).message


def test_an_adapter_is_read_the_same_from_many_threads(tmp_path: Path) -> None:
    plain_adapter(tmp_path / "good", TARGETS)
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(identify(Source(AdapterRoot(tmp_path), ("good",)), STORAGE).digest)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
