"""Indexes on disk: the same bytes wherever they are built, and no byte of another index is taken for one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openlora_node.attribution.corpusindex import DESCRIPTION, open_index, save
from openlora_node.attribution.tracing import trace
from openlora_node.protocol.errors import OpenLoraError
from support.attribution_corpus import ids, indexed

TEXTS = ("the grey heron stands on one leg", "whisk three eggs with sugar until it is pale")
FILES = ("documents", "order", "owners", "surprisal", "tokens", "words", DESCRIPTION)

ELSEWHERE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from openlora_node.attribution.corpusindex import save
from support.attribution_corpus import indexed
print(save(indexed(*{texts!r}), Path(sys.argv[1])).hex())
"""


def test_an_index_opens_as_it_was_saved(tmp_path: Path) -> None:
    built = indexed(*TEXTS)
    digest = save(built, tmp_path / "index")
    opened = open_index(tmp_path / "index", digest)
    assert opened.digest == digest
    assert opened.owners == built.owners
    assert opened.dataset == built.dataset
    output = ids(" ".join(TEXTS))
    assert trace(opened, output, ()) == trace(built, output, ())
    assert trace(opened, output, ()).parts


@pytest.mark.parametrize(("seed", "threads"), [("1", "1"), ("2", "2")])
def test_every_machine_builds_the_same_bytes(tmp_path: Path, seed: str, threads: str) -> None:
    digest = save(indexed(*TEXTS), tmp_path / "here")
    code = ELSEWHERE.format(tests=str(Path(__file__).parents[2]), texts=TEXTS)
    environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "PATH": "/usr/bin"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        capture_output=True, text=True, timeout=60, check=True, env=environment,
    )  # fmt: skip
    assert ended.stdout.strip() == digest.hex()
    for name in FILES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "lengthen", "remove"])
def test_damage_is_refused(tmp_path: Path, name: str, harm: str) -> None:
    folder = tmp_path / "index"
    digest = save(indexed(*TEXTS), folder)
    data = bytearray((folder / name).read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 4
    elif harm == "cut":
        data = data[:-1]
    elif harm == "lengthen":
        data += b"\0"
    (folder / name).write_bytes(data)
    if harm == "remove":
        (folder / name).unlink()
    with pytest.raises(OpenLoraError):
        open_index(folder, digest)


def test_another_index_is_refused(tmp_path: Path) -> None:
    save(indexed(*TEXTS), tmp_path / "one")
    other = save(indexed(*reversed(TEXTS)), tmp_path / "other")
    with pytest.raises(OpenLoraError, match="another digest"):
        open_index(tmp_path / "one", other)


def test_of_equal_texts_the_first_owns_both() -> None:
    index = indexed("The grey heron  stands", "the grey heron stands", "something else")
    assert index.document_owners.tolist() == [0, 0, 2]
    assert index.documents.tolist() == [0, 23, 45]


def test_it_takes_six_bytes_a_token(tmp_path: Path) -> None:
    index = indexed(*[f"line {number} of a longer text about herons and eggs" for number in range(2000)])
    save(index, tmp_path / "index")
    size = sum((tmp_path / "index" / name).stat().st_size for name in ("tokens", "order", "documents", "owners"))
    assert size <= 8 * len(index.suffixes)
    assert index.suffixes.tokens.dtype == np.uint16
