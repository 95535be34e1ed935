"""`openlora ask`, `quote` and `spend`: what is sent, what is printed, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openlora_node.cli.app import app
from openlora_node.cli.ask import _adapter, coins
from openlora_node.gateway import client
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.gateway_world import Script, world

RUN = CliRunner()
ID = "sha256:" + "ab" * 32
FACTS = {
    "receipt": "0x" + "11" * 32, "request": "0x" + "22" * 32, "node": "0x" + "33" * 32, "pipeline": "0x" + "44" * 32,
    "fee": "1500000000000000", "compute": "1000000000000000", "royalties": "500000000000000",
    "earns": [{"artifact": ID, "owner": "0x" + "00" * 20, "wei": "500000000000000"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poet", {"id": "poet", "weight": 1.0}),
        ("poet:0.7", {"id": "poet", "weight": 0.7}),
        ("poet:-0.5", {"id": "poet", "weight": -0.5}),
        (ID, {"id": ID, "weight": 1.0}),
        (f"{ID}:0.3", {"id": ID, "weight": 0.3}),
        (f"poet@{ID}", {"id": f"poet@{ID}", "weight": 1.0}),
        (f"poet@{ID}:0.3", {"id": f"poet@{ID}", "weight": 0.3}),
    ],
)
def test_adapters_with_weights(text: str, expected: dict[str, Any]) -> None:
    assert _adapter(text) == expected


@pytest.mark.parametrize(
    ("wei", "text"), [("0", "0 OPEN"), ("1", "0.000000000000000001 OPEN"), (str(25 * 10**17), "2.5 OPEN")]
)
def test_amounts_are_exact(wei: str, text: str) -> None:
    assert coins(wei) == text


class Link:
    """A gateway that answers what it was told to."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.error: OpenLoraError | None = None

    async def ask(self, body: bytes) -> AsyncIterator[str | dict[str, Any]]:
        self.bodies.append(json.loads(body))
        yield "Hello "
        if self.error is not None:
            raise self.error
        yield "\x1b[31mworld"
        yield FACTS

    async def quote(self, body: bytes) -> dict[str, Any]:
        self.bodies.append(json.loads(body))
        return {
            "model": "tiny", "promptTokens": 9,
            "quotes": [{
                "node": FACTS["node"], "inputRate": "1", "outputRate": "2", "settlementCharge": "3", "maxTokens": 7,
                "royalties": [{"rate": "4"}, {"rate": "5"}], "maxFee": "11", "expiresAt": 1,
            }],
        }  # fmt: skip


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    made = Link()

    @asynccontextmanager
    async def reach(_config: object) -> AsyncIterator[Link]:
        yield made

    monkeypatch.setattr(client, "reach_gateway", reach)
    return made


def home(tmp_path: Path) -> list[str]:
    return ["--set", f"node.data_dir={tmp_path}"]


def test_ask_streams_and_then_says_who_earns_what(link: Link, tmp_path: Path) -> None:
    arguments = ["ask", "Why?", "--model", "tiny", "--adapter", "poet:0.7", "--adapter", "brevity:0.3"]
    result = RUN.invoke(app, [*arguments, "--max-tokens", "5", "--system", "be kind", *home(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Hello �[31mworld\n\n")
    assert "fee 0.0015 OPEN, receipt 0x1111" in result.stdout
    assert "0.0005 OPEN" in result.stdout
    (body,) = link.bodies
    assert body["adapters"] == [{"id": "poet", "weight": 0.7}, {"id": "brevity", "weight": 0.3}]
    assert body["max_tokens"] == 5
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_ask_as_json_and_its_errors(link: Link, tmp_path: Path) -> None:
    result = RUN.invoke(app, ["ask", "Why?", "--model", "tiny", "--json", *home(tmp_path)])
    assert json.loads(result.stdout) == {"text": "Hello \x1b[31mworld", "openlora": FACTS}
    link.error = OpenLoraError(ErrorCode.NODE_LOST)
    result = RUN.invoke(app, ["ask", "Why?", "--model", "tiny", "--json", *home(tmp_path)])
    assert result.exit_code == 6
    assert json.loads(result.stdout)["error"]["code"] == "NODE_LOST"


def test_without_a_model_the_only_base_is_meant(link: Link, tmp_path: Path) -> None:
    folder = tmp_path / "devnet" / "gateway"
    folder.mkdir(parents=True)
    result = RUN.invoke(app, ["ask", "Why?", *home(tmp_path)])
    assert result.exit_code == 8
    assert "--model" in result.stderr
    names = f"bases:\n  tiny: {{id: '{ID}'}}\nadapters:\n  poet: {{id: 'sha256:{'cd' * 32}', base: tiny}}\n"
    (folder / "names.yaml").write_text(names)
    assert RUN.invoke(app, ["ask", "Why?", *home(tmp_path)]).exit_code == 0
    (folder / "names.yaml").write_text(names.replace("bases:\n", f"bases:\n  big: {{id: 'sha256:{'ef' * 32}'}}\n"))
    assert RUN.invoke(app, ["ask", "Why?", *home(tmp_path)]).exit_code == 8
    assert RUN.invoke(app, ["ask", "Why?", "--adapter", "poet", *home(tmp_path)]).exit_code == 0
    assert [body["model"] for body in link.bodies] == ["tiny", "tiny"]


def test_a_question_from_standard_input(link: Link, tmp_path: Path) -> None:
    RUN.invoke(app, ["ask", "-", "--model", "tiny", *home(tmp_path)], input="a long question")
    assert link.bodies[0]["messages"][0]["content"] == "a long question"


def test_quote_prints_what_it_would_cost(link: Link, tmp_path: Path) -> None:
    result = RUN.invoke(app, ["quote", "--prompt", "Why?", "--model", "tiny", *home(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "tiny: 9 prompt tokens" in result.stdout
    assert "0.000000000000000011 OPEN" in result.stdout
    told = json.loads(RUN.invoke(app, ["quote", "--prompt", "x", "--model", "tiny", "--json", *home(tmp_path)]).stdout)
    assert told["quotes"][0]["maxFee"] == "11"


async def test_spend_shows_the_journal_in_three_forms(tmp_path: Path) -> None:
    import asyncio
    import time

    from support.gateway_world import Clock

    folder = tmp_path / "devnet" / "gateway"
    folder.mkdir(parents=True)
    async with world(folder, Script(), clock=Clock(int(time.time()))) as w:
        await w.ask()
        await w.settle_down()
        for arguments in ([], ["--json"], ["--csv"]):
            result = await asyncio.to_thread(RUN.invoke, app, ["spend", "show", *arguments, *home(tmp_path)])
            assert result.exit_code == 0, result.output
            if arguments == ["--json"]:
                told = json.loads(result.stdout)
                assert told["requests"][0]["state"] == "paid"
                assert told["requests"][0]["wei"] == told["spentLast24h"]
            elif arguments == ["--csv"]:
                head, row = result.stdout.splitlines()
                assert head.startswith("at,state,model,node,wei,")
                assert ",paid,tiny," in row
            else:
                assert "left of the day" in result.stdout
                assert "tiny" in result.stdout


def test_spend_without_a_journal_says_so(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["spend", "show", *home(tmp_path)])
    assert result.exit_code == 8
    assert "no journal" in result.stderr
