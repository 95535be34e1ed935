"""Rewrites the generated parts of docs/: the file tables of architecture.md, the error table of protocol.md.

`python scripts/docs.py`. Each file's line is its own first sentence, so the map cannot drift from the tree; tests fail
while a committed document differs.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from openlora_node.protocol.errors import error_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

ROOMS = {
    "node/openlora_node": "The daemon and the gateway. No torch.",
    "node/openlora_node/protocol": "What two machines must agree on to the byte. Pure.",
    "node/openlora_node/config": "The configuration.",
    "node/openlora_node/journal": "What must survive a crash.",
    "node/openlora_node/chainview": "What the doors need to know of the chain.",
    "node/openlora_node/serving": "One paid request on the node.",
    "node/openlora_node/admission": "The door's checks, policy only.",
    "node/openlora_node/attribution": "Receipts, what is behind them, and their proofs.",
    "node/openlora_node/artifacts": "The content-addressed store of adapters, bases and datasets.",
    "node/openlora_node/network": "The peer-to-peer network: host, adverts, directory, routing.",
    "node/openlora_node/api": "The node's HTTP doors.",
    "node/openlora_node/daemon": "The node's composition root.",
    "node/openlora_node/openai": "OpenAI's dialect: bodies in, responses out. Pure.",
    "node/openlora_node/engineclient": "The way to the engine, and the engine's process.",
    "node/openlora_node/settlement": "Vouchers become money, receipts become anchors.",
    "node/openlora_node/gateway": "The payer's side: its own composition root.",
    "node/openlora_node/cli": "The `openlora` command: parse, call, print.",
    "node/openlora_engine": "The inference engine: its own process.",
    "node/openlora_engine/scheduling": "What runs in the next step. No torch.",
    "node/openlora_engine/adapters": "LoRA adapters from disk to device.",
    "node/openlora_engine/models": "Base models, and where paged attention and LoRA enter them.",
    "node/openlora_engine/sampling": "From logits to tokens and text.",
    "node/openlora_engine/server": "The OpenAI dialect over one socket.",
    "kernels/openlora_kernels": "The engine's kernels, one op a file.",
    "kernels/openlora_kernels/csrc": "The CPU kernels in C++.",
    "chain/openlora_chain": "Everything that talks to the EVM chain.",
    "chain/openlora_chain/contracts": "One typed class a contract.",
    "chain/openlora_chain/devnet": "The embedded chain.",
    "contracts/src": "The contracts.",
    "contracts/scripts": "What builds, checks and attacks the contracts.",
    "configs": "Configuration to start from, and the demo.",
    "systemd": "The node and its engine as services.",
    "scripts": "What `make` calls.",
    "benchmarks": "What `make bench` runs.",
    "benchmarks/engine": "The engine beside its rivals, on the same requests.",
}
ENDINGS = {".py", ".sol", ".cpp", ".h", ".yaml", ".sh", ".service", ".sql", ".mjs", ".cjs"}


def source_files(room: str, rooms: list[str]) -> list[Path]:
    """The files of a room that have a line of their own: those below it and in no other room."""
    others = [ROOT / other for other in rooms if other != room and other.startswith(room)]
    return sorted(
        path
        for path in (ROOT / room).rglob("*")
        if path.suffix in ENDINGS
        and not any(path.is_relative_to(other) for other in others)
        and not {"__pycache__", "node_modules", "out", "cache"} & set(path.parts)
    )


def first_sentence(path: Path) -> str:
    """What a file says of itself: the first sentence of its docstring, title or leading comment; or nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        start = max(text.find("@title"), 0) if path.suffix == ".sol" else 0
        said = leading_comment(text[start:].removeprefix("@title").splitlines())
    paragraph = " ".join(said.split("\n\n")[0].split())
    sentence = re.match(r".*?\.(?=\s|$)", paragraph)
    return (sentence[0] if sentence else paragraph).replace("|", "\\|")


def leading_comment(lines: list[str]) -> str:
    """The text of the first comment, or of the NatSpec tag that the lines start inside."""
    said: list[str] = []
    for number, line in enumerate(lines):
        comment = re.match(r"\s*(?:#|--|//+|/?\*+)(?!!)\s?(.*)", line)
        text = comment[1] if comment else line if number == 0 and not line.startswith(("#!", "//")) else None
        if text is None or (said and text.lstrip().startswith(("@", "/"))) or (said and not text.strip()):
            if said:
                break
        elif text.strip() and "SPDX" not in text:
            said.append(text)
    return "\n".join(said)


def file_tables() -> str:
    """One heading a room, one line a file."""
    rooms = [room for room in ROOMS if (ROOT / room).is_dir()]
    parts = []
    for room in rooms:
        files = source_files(room, rooms)
        rows = [f"| `{path.relative_to(ROOT).as_posix()}` | {first_sentence(path)} |" for path in files]
        if rows:
            heading = [f"### {room}\n", f"{ROOMS[room]}\n", "| file | what it is for |", "| --- | --- |"]
            parts.append("\n".join([*heading, *rows]))
    return "\n\n".join(parts)


GENERATED = {("protocol.md", "errors"): error_table, ("architecture.md", "files"): file_tables}


def render(document: str, part: str) -> str:
    """The document's text with its generated part fresh."""
    begin, end = f"<!-- {part}:begin -->\n", f"\n<!-- {part}:end -->"
    text = (DOCS / document).read_text(encoding="utf-8")
    before, rest = text.split(begin)
    return before + begin + GENERATED[document, part]() + end + rest.split(end.strip())[1]


def main() -> None:
    """Write every document."""
    for document, part in GENERATED:
        (DOCS / document).write_text(render(document, part), encoding="utf-8")


if __name__ == "__main__":
    main()
