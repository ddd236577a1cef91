"""The report of a run: loss curves and Dice per click before and after, as one HTML page and one PNG.

The page needs nothing from the network and is rewritten after every epoch, so that a browser shows a run while it goes.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PAGE, PICTURE = "report.html", "report.png"
_WIDTH, _HEIGHT, _MARGIN = 460, 300, 46
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
_STYLE = (
    "body{font:15px sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}"
    "svg{margin:0 1em 1em 0}"
)


@dataclass(frozen=True)
class Chart:
    """A line chart: title, name of the x axis, and name -> points (x, y)."""

    title: str
    x_name: str
    series: Mapping[str, Sequence[tuple[float, float]]]

    def marks(self) -> list[tuple]:
        """The chart as ("line", colour, points) and ("text", colour, x, y, text), in pixels of its own frame."""
        points = [p for line in self.series.values() for p in line]
        marks: list[tuple] = [("text", "#000000", _MARGIN, 12, self.title)]
        if not points:
            return [*marks, ("text", "#777777", _MARGIN, _HEIGHT // 2, "nothing yet")]
        (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))
        across, down = (_WIDTH - 1.6 * _MARGIN) / (x1 - x0), (_HEIGHT - 2.2 * _MARGIN) / (y1 - y0)

        def place(x: float, y: float) -> tuple[float, float]:
            return round(_MARGIN + (x - x0) * across, 1), round(_HEIGHT - _MARGIN - (y - y0) * down, 1)

        for n in range(5):
            x, y = x0 + (x1 - x0) * n / 4, y0 + (y1 - y0) * n / 4
            marks.append(("line", "#dddddd", [place(x0, y), place(x1, y)]))
            marks.append(("text", "#555555", 4, place(x0, y)[1] - 6, f"{y:.3g}"))
            marks.append(("text", "#555555", place(x, y0)[0] - 6, _HEIGHT - _MARGIN + 6, f"{x:.3g}"))
        marks.append(("text", "#555555", _WIDTH // 2, _HEIGHT - _MARGIN + 22, self.x_name))
        for n, (name, line) in enumerate(self.series.items()):
            colour = _COLOURS[n % len(_COLOURS)]
            marks.append(("line", colour, [place(*p) for p in line]))
            marks.append(("text", colour, _WIDTH - 150, 26 + 14 * n, name[:22]))
        return marks


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def svg(chart: Chart) -> str:
    """The chart as an SVG element."""
    parts = []
    for kind, colour, *rest in chart.marks():
        if kind == "line":
            points = " ".join(f"{x},{y}" for x, y in rest[0])
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{points}"/>')
        else:
            x, y, text = rest
            parts.append(f'<text x="{x}" y="{y + 10}" fill="{colour}" font-size="11">{html.escape(text)}</text>')
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">{"".join(parts)}</svg>'


def picture(charts: Sequence[Chart]) -> Image.Image:
    """The charts side by side."""
    image = Image.new("RGB", (_WIDTH * len(charts), _HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for n, chart in enumerate(charts):
        for kind, colour, *rest in chart.marks():
            if kind == "line":
                draw.line([(x + n * _WIDTH, y) for x, y in rest[0]], fill=colour, width=2)
            else:
                draw.text((rest[0] + n * _WIDTH, rest[1]), rest[2], fill=colour, font=font)
    return image


@dataclass(frozen=True)
class Words:
    """What was measured, in words.

    Attributes:
        clicks: after which each figure was taken. axis: what is counted. asked: the same in a sentence.
        held_out, generated: what was asked for in held-out cases, and what is generated.
    """

    clicks: tuple[int, ...]
    axis: str
    asked: str
    held_out: str
    generated: str


VOLUMES = Words((1, 3, 5), "clicks", "after 1, 3, 5 clicks", "held-out structures", "generated anatomy")
SLICES = Words(
    (0, 1), "clicks after the box", "of a box, and with a click after it", "structures in held-out slices",
    "generated slices and pictures",
)  # fmt: skip


def charts(
    rows: Mapping[str, Sequence[Mapping[str, float]]], metrics: Mapping[str, Any] | None, words: Words = VOLUMES
) -> list[Chart]:
    """Loss and validation Dice of each training of the run, and Dice per click before and after where it was measured.

    Args:
        rows: name of the training -> its epochs (tuning.Tuning.rows). metrics: of gate.Verdict. words: what it measured.
    """
    made = [
        Chart("Training loss", "epoch", {k: [(r["epoch"], r["loss"]) for r in v] for k, v in rows.items()}),
        Chart("Validation Dice", "epoch", {k: [(r["epoch"], r["dice"]) for r in v] for k, v in rows.items()}),
    ]
    titles = {"held_out": "Held-out cases", "generated": _headline(words.generated)}
    for name, title in titles.items():
        found = (metrics or {}).get(name) or {}
        lines = {who: list(zip(words.clicks, found.get(key, ()))) for who, key in _MODELS}
        if any(lines.values()):
            made.append(Chart(f"{title}: Dice per click", words.axis, lines))
    return made


def _headline(text: str) -> str:
    return text[0].upper() + text[1:]


_MODELS = (("before", "served"), ("after", "candidate"))


def write_report(
    folder: Path,
    title: str,
    facts: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, float]]],
    verdict: Mapping[str, Any] | None = None,
    live: bool = False,
    words: Words = VOLUMES,
) -> Path:
    """Writes report.html, and report.png when the run is over.

    Args:
        facts: what to list. verdict: of gate.Verdict.as_dict, when there is one. live: the page reloads itself.
        words: what was measured.

    Returns:
        The page.
    """
    drawn = charts(rows, (verdict or {}).get("metrics"), words)
    refresh = '<meta http-equiv="refresh" content="10">' if live else ""
    listed = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    body = f"<h1>{html.escape(title)}</h1><table>{listed}</table><p>{''.join(map(svg, drawn))}</p>"
    for name, heading in (("held_out", _headline(words.held_out)), ("generated", _headline(words.generated))):
        pairs = (verdict or {}).get(name)
        if pairs:
            body += f"<h2>{heading}: Dice {words.asked}</h2>{_table(pairs)}"
    text = f'<!doctype html><meta charset="utf-8">{refresh}<title>{html.escape(title)}</title><style>{_STYLE}</style>'
    path = Path(folder) / PAGE
    part = path.with_name(f".{PAGE}.tmp")
    part.write_text(f"{text}{body}\n", encoding="utf-8")
    os.replace(part, path)
    if not live:
        picture(drawn).save(Path(folder) / PICTURE)
    return path


def _table(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = ["<table><tr><th>case</th><th>structure</th><th>before</th><th>after</th></tr>"]
    for pair in pairs:
        cells = [html.escape(str(pair[k])) for k in ("case", "structure")]
        cells += [" / ".join(f"{v:.2f}" for v in pair[k]) for k in ("served", "candidate")]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join(lines) + "</table>"
