"""`openlora receipts explain`: a response with its credited words in colour, their samples, and what each earned."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..protocol.ids import format_address, format_artifact_id, format_bytes

if TYPE_CHECKING:
    from ..attribution.explaining import Explained
    from ..attribution.replay import Replayed
    from . import books
    from .sources import Sources

COLOURS = ("#0b6e4f", "#9a3412", "#1d4ed8", "#7e22ce", "#a16207", "#be123c", "#0e7490", "#4d7c0f")
"""Dark enough for white text."""


@dataclass(frozen=True)
class Told:
    """One dataset of a receipt, replayed and explained."""

    replayed: Replayed
    explained: Explained

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        facts = self.replayed.facts
        return {
            "dataset": format_artifact_id(facts.dataset),
            "index": format_bytes(facts.indexed.index),
            "coverage": self.replayed.found.coverage,
            "asTheReceiptSays": not self.replayed.differences,
            "earned": [
                {"contributor": format_address(owner), "part": part, "wei": wei} for owner, part, wei in self.earned()
            ],
            "sources": [
                {
                    "choice": source.choice,
                    "tokens": [source.start, source.end],
                    "text": source.text,
                    "sample": source.sample,
                    "contributor": format_address(source.contributor),
                    "millibits": source.millibits,
                    "occurrences": source.occurrences,
                }
                for source in self.explained.sources
            ],
            "choices": [
                [{"text": piece.text, "source": piece.source} for piece in choice] for choice in self.explained.choices
            ],
        }

    def earned(self) -> list[tuple[bytes, int, str]]:
        """(contributor, part of 1,000,000, wei as text): what the receipt credits, with six decimals of a wei."""
        from ..attribution.indexed import UNIT

        amounts = dict(self.replayed.facts.credited())
        return [
            (owner, part, f"{amounts[owner] // UNIT}.{amounts[owner] % UNIT * 10**6 // UNIT:06}")
            for owner, part in self.replayed.facts.indexed.credits
        ]


def tell(about: books.Told, sources: Sources) -> list[Told]:
    """Every dataset of a receipt. Raises as `attribution.replay.replay`."""
    from ..attribution.encoder import TokenizerEncoder
    from ..attribution.explaining import explain
    from ..attribution.replay import MAX_TEXT_BYTES, Kept, replay
    from ..attribution.tracer import Reading
    from .attribution import open_indexes, read_limited

    encoder = TokenizerEncoder.open(sources.tokenizer)
    reading = Reading.of(encoder)
    kept = Kept.decode(read_limited(sources.text, MAX_TEXT_BYTES), encoder)
    indexes = open_indexes(sources.indexes)
    return [
        Told(one, explain(indexes[one.found.index], encoder, reading, kept))
        for one in replay(about.receipt, about.evidence, kept, indexes, reading)
    ]


def print_told(told: list[Told]) -> None:
    """For people: coloured where the terminal has colours, marked with numbers everywhere."""
    import io
    import sys

    from rich.console import Console
    from rich.text import Text

    from .output import PIPE_WIDTH, print_table, print_text

    for one in told:
        data = one.to_json()
        print_text(f"{data['dataset']}: coverage {data['coverage']} of 1,000,000")
        if not data["asTheReceiptSays"]:
            print_text("  NOT what the receipt says: see `openlora attribution replay`")
        for number, choice in enumerate(one.explained.choices):
            line = Text()
            for piece in choice:
                if piece.source is None:
                    line.append(_visible(piece.text))
                else:
                    line.append(_visible(piece.text), style=f"bold white on {COLOURS[piece.source % len(COLOURS)]}")
                    line.append(f"[{piece.source + 1}]")
            drawn, terminal = io.StringIO(), sys.stdout.isatty()
            console = Console(file=drawn, force_terminal=terminal, width=None if terminal else PIPE_WIDTH)
            console.print(line)
            print_text(f"choice {number}:\n{drawn.getvalue().rstrip()}")
        rows = [
            (str(number), format_address(source.contributor), str(source.end - source.start), _visible(source.sample))
            for number, source in enumerate(one.explained.sources, start=1)
        ]
        print_table(("", "contributor", "tokens", "sample"), rows)
        earned = [(format_address(owner), str(part), wei) for owner, part, wei in one.earned()]
        print_table(("contributor", "part of 1,000,000", "wei"), earned)


def _visible(text: str) -> str:
    """Without what steers a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def to_html(digest: str, told: list[Told]) -> str:
    """One page without scripts, links or anything fetched; all text escaped."""
    sections = "".join(_section(one) for one in told)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Receipt {html.escape(digest)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; background: #fff }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f5; padding: 1rem; border-radius: .5rem; font: inherit }}
mark {{ color: #fff; border-radius: .2rem; padding: 0 .15rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }}
code {{ overflow-wrap: anywhere }}
</style></head><body>
<h1>Where this response came from</h1>
<p>Receipt <code>{html.escape(digest)}</code></p>
{sections}</body></html>
"""  # noqa: E501


def _section(one: Told) -> str:
    data = one.to_json()
    choices = "".join(
        f"<h3>Choice {number}</h3><pre>{''.join(map(_marked, choice))}</pre>"
        for number, choice in enumerate(one.explained.choices)
    )
    sources = "".join(
        f'<tr><td><mark style="background:{COLOURS[number % len(COLOURS)]}">{number + 1}</mark></td>'
        f"<td><code>{format_address(source.contributor)}</code></td><td>{html.escape(source.sample)}</td></tr>"
        for number, source in enumerate(one.explained.sources)
    )
    earned = "".join(
        f"<tr><td><code>{format_address(owner)}</code></td><td>{part / 10_000:.2f} %</td><td>{wei}</td></tr>"
        for owner, part, wei in one.earned()
    )
    doubt = "" if data["asTheReceiptSays"] else "<p><strong>This is not what the receipt says.</strong></p>"
    return (
        f"<h2>Dataset <code>{data['dataset']}</code></h2>{doubt}"
        f"<p>It covers {data['coverage'] / 10_000:.2f} % of the response.</p>{choices}"
        f"<h3>Samples</h3><table><tr><th></th><th>Contributor</th><th>Sample</th></tr>{sources}</table>"
        f"<h3>Earned</h3><table><tr><th>Contributor</th><th>Part</th><th>wei</th></tr>{earned}</table>"
    )


def _marked(piece: Any) -> str:
    text = html.escape(piece.text)
    if piece.source is None:
        return text
    colour = COLOURS[piece.source % len(COLOURS)]
    return f'<mark style="background:{colour}" title="sample {piece.source + 1}">{text}</mark>'
