"""`openlora attribution`: an index built twice, a receipt replayed honestly and not, an epoch added up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from openlora_node.attribution import Output, Part, export
from openlora_node.attribution import surprisal as surprisal_module
from openlora_node.attribution.epochs import Epochs
from openlora_node.attribution.tracer import Tracer
from openlora_node.cli.app import app
from openlora_node.engineclient.values import Chunk
from openlora_node.journal import Reader
from openlora_node.protocol.ids import format_address, format_artifact_id
from openlora_node.settlement.credits import CreditTable
from support.attribution_corpus import owner
from support.engine_tokenizer import tiny_tokenizer
from support.serving_world import BASE, DATASET, NODE, NOW, World

SAID = "Avast, the kraken drinks rum from a copper kettle by moonlight, and nobody dares to laugh"
PROMPT = {"messages": [{"role": "user", "content": "Say something"}]}


def run(*arguments: object) -> Result:
    return CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, ["attribution", *map(str, arguments)])


def line(text: str, contributor: int) -> str:
    sample = {"contributor": format_address(owner(contributor)), "licence": "CC0-1.0", "sample": {"text": text}}
    return json.dumps(sample, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A tokenizer's folder, a dataset's file, and where things are to be written."""
    (tmp_path / "base").mkdir()
    data = tiny_tokenizer().backend_tokenizer.to_str().encode()
    (tmp_path / "base" / "tokenizer.json").write_bytes(data)
    size = tiny_tokenizer().backend_tokenizer.get_vocab_size()
    monkeypatch.setattr(surprisal_module, "surprisal_table", lambda _: np.full(size, 8_000, np.int32))
    (tmp_path / "data.jsonl").write_text(line(SAID, 1) + line(SAID, 2) + line("Something else altogether", 2))
    return {"base": tmp_path / "base", "data": tmp_path / "data.jsonl", "folder": tmp_path}


def index(world: dict[str, Path], name: str, *more: object, dataset: bytes = DATASET) -> Result:
    where = world["folder"] / "indexes" / name
    return run(
        "index", world["data"], "--dataset", format_artifact_id(dataset), "--tokenizer", world["base"],
        "--out", where, "--json", *more,
    )  # fmt: skip


def test_an_index_is_the_same_twice_and_says_whose_copies_are(world: dict[str, Path]) -> None:
    first, second = (json.loads(index(world, name).stdout) for name in ("one", "two"))
    assert first["index"] == second["index"]
    assert first["documents"] == 2, "a copy is counted once"
    (copied,) = first["othersFirst"]
    assert (copied["line"], copied["owners"]) == (2, [format_address(owner(1))])
    for file in Path(first["folder"]).iterdir():
        assert file.read_bytes() == (Path(second["folder"]) / file.name).read_bytes()
    assert index(world, "one").exit_code == 8
    assert sorted(path.name for path in (world["folder"] / "indexes").iterdir()) == ["one", "two"]


def test_what_an_earlier_dataset_holds_stays_its_contributors(world: dict[str, Path]) -> None:
    (world["folder"] / "first.jsonl").write_text(line(SAID, 7))
    found = json.loads(index(world, "later", "--earlier", world["folder"] / "first.jsonl").stdout)
    assert [row["line"] for row in found["othersFirst"]] == [1, 2]
    assert format_address(owner(7)) in found["contributors"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\n", b"{}\n", b'{"contributor":"0x","licence":"x","sample":{"text":"x"}}\n']
)
def test_a_bad_dataset_leaves_nothing_behind(world: dict[str, Path], content: bytes) -> None:
    world["data"].write_bytes(content)
    assert index(world, "bad").exit_code == 8
    assert not (world["folder"] / "indexes" / "bad").exists()


def served(world: dict[str, Path], said: str = SAID, tokens: tuple[int, ...] | None = None) -> tuple[Path, Path, Path]:
    """A journal with one traced response that says this; its bundle and its text."""
    folder = world["folder"]
    tokens = tokens or tuple(tiny_tokenizer().backend_tokenizer.encode(said).ids)
    tracer = Tracer(folder / "indexes", world["base"], patience_s=60.0)

    async def trace(parts: tuple[Part, ...], _: Mapping[str, Any], output: Output) -> tuple[Part, ...]:
        parts = tuple(
            replace(part, behind=tuple(replace(one, credits_bps=5_000) for one in part.behind)) for part in parts
        )
        return await tracer(parts, PROMPT, output)

    async def serve() -> None:
        async with World(folder / "node.sqlite") as world_:
            world_.serving._desk.trace = trace
            world_.engine.script = [Chunk(0, tokens, said, finish_reason="stop")]
            await world_.paid(max_tokens=len(tokens))

    asyncio.run(serve())
    tracer.close()
    with Reader(folder / "node.sqlite") as reader:
        (stored,) = reader.receipts(NODE, 0, 10)
        bundle = export(reader, stored, Epochs(reader, NODE, 3600), NOW + 2 * 3600)
    (folder / "receipt.json").write_bytes(bundle.encode())
    (folder / "text.json").write_text(json.dumps({"prompt": PROMPT, "outputs": [said], "tokenIds": [tokens]}))
    return folder / "node.sqlite", folder / "receipt.json", folder / "text.json"


def replay(world: dict[str, Path], receipt: Path, text: Path, *indexes: str) -> Result:
    chosen = [part for name in indexes for part in ("--index", world["folder"] / "indexes" / name)]
    return run("replay", "--receipt", receipt, "--text", text, "--tokenizer", world["base"], "--json", *chosen)


def test_a_receipt_is_replayed_from_its_text_alone(world: dict[str, Path]) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    same = replay(world, receipt, text, "one")
    assert same.exit_code == 0, same.output
    ((found,), ok) = (json.loads(same.stdout)["datasets"], json.loads(same.stdout)["ok"])
    assert ok
    assert found["coverage"] > 500_000
    assert found["credits"] == {format_address(owner(1)): 1_000_000}


def test_a_receipt_that_says_otherwise_ends_with_a_refusal(world: dict[str, Path]) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    kept = json.loads(text.read_text())
    text.write_text(json.dumps(kept | {"prompt": {"messages": [{"role": "user", "content": SAID}]}}))
    echo = replay(world, receipt, text, "one")
    assert echo.exit_code == 8
    ((found,), ok) = (json.loads(echo.stdout)["datasets"], json.loads(echo.stdout)["ok"])
    assert (ok, found["coverage"], [row["what"] for row in found["differences"]]) == (False, 0, ["coverage", "credits"])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenIds": [[1, 2, 3]]}, "RECEIPT_INVALID"),
        ({"tokenIds": [[-1]]}, "MALFORMED"),
        ({"outputs": 7}, "MALFORMED"),
        ({"prompt": []}, "MALFORMED"),
    ],
)
def test_another_text_is_no_replay(world: dict[str, Path], change: dict[str, Any], code: str) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    text.write_text(json.dumps(json.loads(text.read_text()) | change))
    result = replay(world, receipt, text, "one")
    assert result.exit_code == 8
    assert json.loads(result.stdout)["error"]["code"] == code


def test_another_index_is_no_replay(world: dict[str, Path]) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    index(world, "other", dataset=b"\xee" * 32)
    missing = replay(world, receipt, text, "other")
    assert json.loads(missing.stdout)["error"]["code"] == "NOT_FOUND"
    with (world["folder"] / "indexes" / "one" / "order").open("r+b") as file:
        file.write(b"\x01\x01")
    damaged = replay(world, receipt, text, "one")
    assert (damaged.exit_code, json.loads(damaged.stdout)["error"]["code"]) == (8, "MALFORMED")


def test_an_epoch_is_added_up_and_held_against_a_posted_root(world: dict[str, Path]) -> None:
    index(world, "one")
    journal, _, _ = served(world)
    epoch = NOW // 3600
    settings = ("--journal", journal, "--set", "settlement.epoch=1h", "--json")
    found = json.loads(run("audit", "--epoch", epoch, "--out", world["folder"] / "tables", *settings).stdout)
    ((row,),) = (found["datasets"],)
    assert row["dataset"] == format_artifact_id(DATASET)
    assert [credit["account"] for credit in row["credits"]] == [format_address(owner(1))]
    (file,) = (world["folder"] / "tables").iterdir()
    assert "0x" + CreditTable.decode(file.read_bytes()).root.hex() == row["root"]
    assert json.loads(run("audit", "--epoch", epoch - 1, *settings).stdout)["datasets"] == []
    good = run("audit", "--epoch", epoch, "--expect", f"{row['dataset']}={row['root']}", *settings)
    bad = run("audit", "--epoch", epoch, "--expect", f"{row['dataset']}=0x{'11' * 32}", *settings)
    assert (good.exit_code, bad.exit_code) == (0, 8)
    assert json.loads(bad.stdout)["wrong"] == [row["dataset"]]


def explain(world: dict[str, Path], identity: object, text: Path, *more: object) -> Result:
    where = world["folder"] / "indexes" / "one"
    arguments = ["explain", identity, "--text", text, "--index", where, "--tokenizer", world["base"], *more]
    return CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, ["receipts", *map(str, arguments)])


def test_a_response_is_explained_from_a_file_and_from_the_journal(world: dict[str, Path]) -> None:
    index(world, "one")
    journal, receipt, text = served(world)
    told = json.loads(explain(world, receipt, text, "--json").stdout)["datasets"][0]
    assert "".join(piece["text"] for piece in told["choices"][0]) == SAID
    assert told["asTheReceiptSays"]
    assert {source["sample"] for source in told["sources"]} == {SAID}
    assert [row["contributor"] for row in told["earned"]] == [format_address(owner(1))]
    assert float(told["earned"][0]["wei"]) > 0
    with Reader(journal) as reader:
        digest = reader.receipts(NODE, 0, 10)[0].digest.hex()
    shown = explain(world, digest[:12], text, "--journal", journal).output
    assert format_address(owner(1)) in shown
    assert "[1]" in shown


def test_what_is_not_named_is_found_where_this_machine_keeps_it(world: dict[str, Path]) -> None:
    """Index by its digest among others and half-made ones, text by the receipt's digest, the fetched tokenizer."""
    index(world, "one")
    journal, _, text = served(world)
    with Reader(journal) as reader:
        (stored,) = reader.receipts(NODE, 0, 10)
    data = world["folder"] / "data"
    made, kept, tokenizer = data / "devnet/indexes", data / "devnet/gateway/texts", data / "devnet/gateway/tokenizers"
    settings = ("--journal", journal, "--set", f"node.data_dir={data}", "--json")
    name = stored.digest.hex()

    def both() -> list[Any]:
        commands = (["attribution", "replay", "--receipt", name], ["receipts", "explain", name])
        results = [CliRunner(env={"OPENLORA_CONFIG": ""}).invoke(app, [*map(str, (*c, *settings))]) for c in commands]
        assert len({result.exit_code for result in results}) == 1
        return [json.loads(result.stdout) for result in results]

    for folder, option in ((kept, "--text"), (made, "--index"), (tokenizer, "--tokenizer")):
        for told in both():
            assert told["error"]["code"] == "NOT_FOUND"
            assert option in told["error"]["message"]
        folder.mkdir(parents=True)
        if folder is kept:
            (kept / f"{name}.json").write_bytes(text.read_bytes())
        elif folder is made:
            index(world, "other", dataset=b"\xee" * 32)
            shutil.copytree(world["folder"] / "indexes/other", made / "other")
            shutil.copytree(world["folder"] / "indexes/one", made / ".half")
            assert "--index" in both()[0]["error"]["message"]
            (made / ".half").rename(made / "one")
        else:
            shutil.copytree(world["base"], tokenizer / BASE.hex())
    replayed, explained = both()
    assert replayed["ok"]
    assert [dataset["asTheReceiptSays"] for dataset in explained["datasets"]] == [True]


def test_the_page_is_whole_and_escapes_what_people_wrote(world: dict[str, Path]) -> None:
    evil = f"<script>alert(1)</script> & <b>{SAID}</b>\x1b[31m"
    world["data"].write_text(line(evil, 1))
    index(world, "one")
    tokens = tuple(tiny_tokenizer().backend_tokenizer.encode(evil).ids)
    _, receipt, text = served(world, evil, tokens)
    page = world["folder"] / "page.html"
    result = explain(world, receipt, text, "--html", page)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    content = page.read_text()
    assert "<script" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content.replace("</mark>", "")
    assert "http" not in content.replace("http-equiv", "")
    assert explain(world, receipt, text, "--html", page).exit_code == 8


def test_an_index_of_another_tokenizer_is_no_replay(world: dict[str, Path]) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    other = tiny_tokenizer().backend_tokenizer.to_str().replace("<|begin|>", "<|other|>")
    (world["base"] / "tokenizer.json").write_text(other)
    result = replay(world, receipt, text, "one")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (8, "MALFORMED")


def test_replays_agree_between_processes_threads_and_hash_seeds(world: dict[str, Path]) -> None:
    index(world, "one")
    _, receipt, text = served(world)
    found = []
    for seed, threads in (("1", "1"), ("2", "2")):
        command = [
            sys.executable, "-c", "from openlora_node.cli.app import app; app()", "attribution", "replay",
            "--receipt", str(receipt), "--text", str(text), "--tokenizer", str(world["base"]), "--json",
            "--index", str(world["folder"] / "indexes" / "one"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]
    assert json.loads(found[0])["ok"]
