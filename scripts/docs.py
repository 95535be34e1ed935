"""Rewrites the generated parts of docs/: the error table of protocol.md. Tests fail while they are out of date."""

from __future__ import annotations

from pathlib import Path

from openlora_node.protocol.errors import error_table

PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN, END = "<!-- errors:begin -->\n", "<!-- errors:end -->"


def main() -> None:
    """Put the table between its marks."""
    text = PROTOCOL.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PROTOCOL.write_text(f"{before}{BEGIN}{error_table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
