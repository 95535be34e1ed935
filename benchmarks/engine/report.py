"""What was measured, for readers: lines on the terminal, docs/benchmarks/engine.json, Markdown and plots."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figure import Outcome, Result
from .machine import NOISY, describe
from .trace import median

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
JSON_FILE = FOLDER / "engine.json"
MARKDOWN_FILE = FOLDER / "engine.md"
BATCH_PLOT = FOLDER / "engine-closed-batch.svg"
GRID_PLOT = FOLDER / "engine-adapters.svg"


def save(name: str, about: str, outcome: Outcome, path: Path = JSON_FILE) -> None:
    """Put one figure into the file, beside those measured before; each says when and where it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"figures": {}}
    record["figures"][name] = {
        "about": about,
        "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe(),
        "results": [
            {
                "label": result.label,
                "value": round(result.value, 4),
                "unit": result.unit,
                "target": str(result.target),
                "met": result.target.met_by(result.value),
            }
            for result in outcome.results
        ],
        **{part: _rounded(getattr(outcome, part)) for part in ("samples", "others")},
        "settings": outcome.settings,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _rounded(samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [float(f"{value:.4g}") for value in values] for name, values in samples.items()}


def line_of(result: Result) -> str:
    """A line of the terminal's table."""
    verdict = {True: "reached", False: "MISSED", None: ""}[result.target.met_by(result.value)]
    return f"  {result.label:<66} {result.value:9.3g} {result.unit:<3} {result.target!s:>7}  {verdict}"


def write_pages(path: Path = JSON_FILE) -> None:
    """Markdown and plots of everything in the file."""
    figures: dict[str, Any] = json.loads(path.read_text())["figures"]
    MARKDOWN_FILE.write_text("\n".join(_markdown(figures)) + "\n")
    _plot_batch(figures)
    _plot_grid(figures)


def _markdown(figures: Mapping[str, Any]) -> list[str]:
    rows = ["| figure | value | target | |", "|---|--:|--:|---|"]
    for name, figure in figures.items():
        for result in figure["results"]:
            verdict = {True: "reached", False: "**missed**", None: ""}[result["met"]]
            value = f"{result['value']:.3g} {result['unit']}".strip()
            rows.append(f"| {result['label']} (`{name}`) | {value} | {result['target']} | {verdict} |")
    for name, figure in figures.items():
        rows += ["", f"## {name}", "", figure["about"], "", "| | samples | others took |", "|---|---|--:|"]
        for label, samples in figure["samples"].items():
            shares = figure["others"].get(label, [])
            noise = f"{max(shares):.0%}" if shares and max(shares) > NOISY else ""
            rows.append(f"| {label} | {', '.join(f'{sample:.4g}' for sample in samples)} | {noise} |")
        rows += ["", *(f"- {label}: {text}" for label, text in figure["settings"].items())]
        machine = figure["machine"]
        rows += ["", f"{figure['measured']}; {machine['processor']}, {machine['memory']}; {machine['packages']}."]
    return rows


def _plot_batch(figures: Mapping[str, Any]) -> None:
    """Bars of the closed batch: every engine's median output tokens a second."""
    bars: dict[str, float] = {}
    for name in ("closed", "peers"):
        for label, samples in figures.get(name, {}).get("samples", {}).items():
            bars.setdefault(label.replace("OpenLoRA, float32", "OpenLoRA, 16 adapters"), median(samples))
    if not bars:
        return
    from matplotlib.figure import Figure

    ordered = sorted(bars.items(), key=lambda bar: bar[1])
    picture = Figure(figsize=(8, 0.45 * len(ordered) + 1), layout="constrained")
    axes = picture.subplots()
    colours = ["#2a6f97" if label.startswith("OpenLoRA") else "#a9b4c2" for label, _ in ordered]
    drawn = axes.barh([label for label, _ in ordered], [value for _, value in ordered], color=colours)
    axes.bar_label(drawn, fmt="%.0f", padding=3)
    axes.set_xlabel("output tokens/s, 32 requests of 64 + 64 tokens, SmolLM2-135M, 2 cores")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(BATCH_PLOT)


def _plot_grid(figures: Mapping[str, Any]) -> None:
    """Lines of the grid: throughput by number of adapters, one a popularity."""
    samples: dict[str, list[float]] = figures.get("grid", {}).get("samples", {})
    lines: dict[str, dict[int, float]] = {}
    for label, values in samples.items():
        parts = label.split(", ")
        if len(parts) == 4 and parts[0] == "qv-r8" and parts[3] == "32 slots":
            count = int(parts[1].split()[0])
            for popularity in ("distinct", "uniform", "zipf") if count == 1 else (parts[2],):
                lines.setdefault(popularity, {})[count] = values[0]
    if not lines:
        return
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 3.6), layout="constrained")
    axes = picture.subplots()
    for popularity, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=popularity)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("adapters (q, v, rank 8; 32 slots)")
    axes.set_ylabel("output tokens/s")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(GRID_PLOT)


def as_json(outcomes: Mapping[str, Outcome]) -> str:
    """Everything just measured, for a program."""
    return json.dumps({name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()})
