"""One HTML file with everything in it: no script, nothing fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .cases import Problem
from .summary import averages, by_modality, challenge_metrics, grouped, shown_clicks

WORST = 12
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#b5732a", "#6c4ab6", "#2a9d8f", "#8d6e63", "#555")
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child,td.t,th.t{text-align:left}figure{display:inline-block;margin:.5em;vertical-align:top}
figcaption{font-size:12px;max-width:780px}img{display:block;max-width:100%}.n{color:#777}.w{overflow-x:auto}svg{margin-right:1em;max-width:100%}"""


def html_report(
    rows: Sequence[Mapping[str, Any]],
    extras: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    facts: Mapping[str, str],
    goal: float,
    pictures: Path | None = None,
) -> str:
    """The report.

    Args:
        rows, extras: in one order.
        problems: what was not scored, and notes.
        facts: what was run, shown as it is.
        goal: the Dice whose clicks are counted.
        pictures: folder of the pictures that `extras` name.
    """
    rows = list(rows)
    parts = [_facts(facts)]
    if rows:
        parts += [_models(rows, goal), _curves(rows), _challenge(rows), _modalities(rows, goal)]
        parts += [_structures(rows, extras, goal), _large(rows, extras), _worst(rows, extras, pictures)]
    parts.append(_problems(problems))
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
        f"</head><body><h1>Evaluation</h1>\n{body}\n</body></html>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return _table(["what was run", ""], [[name, value] for name, value in facts.items()], text=2)


def _models(rows, goal: float) -> str:
    shown = shown_clicks(rows)
    head = ["model", "structures", *(f"Dice {n}" for n in shown), *(f"NSD {n}" for n in shown)]
    head += [
        "Dice area",
        "NSD area",
        f"clicks to Dice {goal:g}",
        "reach it",
        "first click s",
        "later s",
        "box Dice",
        "box NSD",
    ]
    lines = []
    for model, chosen in grouped(rows, lambda row: row["model"]).items():
        a = averages(chosen, goal)
        lines.append(
            [model, a["structures"], *(_two(a["dice"].get(n)) for n in shown), *(_two(a["nsd"].get(n)) for n in shown)]
            + [_two(a["dice_area"]), _two(a["nsd_area"]), a["clicks_to_goal"], _percent(a["reached"])]
            + [_two(a["first_seconds"]), _two(a["seconds"]), _two(a["box_dice"]), _two(a["box_nsd"])]
        )
    note = (
        "<p class=n>Means over structures; medians for clicks and seconds. A dash: there is nothing of that kind.</p>"
    )
    return "<h2>Models side by side</h2>" + _table(*_asked(head, lines)) + note


def _curves(rows) -> str:
    drawn = [_curve(rows, "dice", "mean Dice"), _curve(rows, "nsd", "mean NSD")]
    return "<h2>Over clicks</h2>" + "".join(d for d in drawn if d) if any(drawn) else ""


def _curve(rows, kind: str, title: str) -> str:
    width, height, left, bottom, top = 500, 300, 40, 30, 20
    most = max(len(row["clicks"]) for row in rows)
    if not most:
        return ""

    def x(n: int) -> float:
        return left + (width - left - 130) * ((n - 1) / max(1, most - 1))

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * value

    out = [f'<svg width="{width}" height="{height}" role="img" aria-label="{title} over clicks">']
    out.append(f'<text x="{left}" y="12" font-size="12">{title} after n clicks</text>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(f'<line x1="{left}" x2="{x(most):.0f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" font-size="11" text-anchor="end">{tick:g}</text>')
    out += [
        f'<text x="{x(n):.1f}" y="{height - 10}" font-size="11" text-anchor="middle">{n}</text>'
        for n in range(1, most + 1)
    ]
    for index, (model, chosen) in enumerate(grouped(rows, lambda row: row["model"]).items()):
        colour = _COLOURS[index % len(_COLOURS)]
        curve = [fmean(v) for n in range(most) if (v := [row[kind][n] for row in chosen if len(row[kind]) > n])]
        points = " ".join(f"{x(n + 1):.1f},{y(value):.1f}" for n, value in enumerate(curve))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(n + 1):.1f}" cy="{y(v):.1f}" r="3" fill="{colour}"/>' for n, v in enumerate(curve)]
        out.append(
            f'<text x="{x(most) + 10:.0f}" y="{top + 14 * (index + 1)}" font-size="11" fill="{colour}">'
            f"{html.escape(_short(model))}</text>"
        )
    return "".join([*out, "</svg>"])


def _challenge(rows) -> str:
    found = {m: challenge_metrics(list(r)) for m, r in grouped(rows, lambda row: row["model"]).items()}
    lines = [[model, *(f"{value:.4f}" for value in metrics.values())] for model, metrics in found.items() if metrics]
    if not lines:
        return ""
    head = ["model", "DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final"]
    return "<h2>As the CVPR 2025 challenge counts</h2>" + _table(head, lines)


def _modalities(rows, goal: float) -> str:
    last = max(len(row["clicks"]) for row in rows)
    clicks = sorted({1, last}) if last else []
    head = ["modality", "model", "structures", *(f"Dice {n}" for n in clicks), f"NSD {last}", "box Dice", "box NSD"]
    lines = []
    for modality, chosen in by_modality(rows).items():
        if not chosen:
            lines.append([modality, "no data", *[""] * (len(head) - 2)])
        for model, of_model in grouped(chosen, lambda row: row["model"]).items():
            a = averages(of_model, goal)
            scores = [*(a["dice"].get(n) for n in clicks), a["nsd"].get(last), a["box_dice"], a["box_nsd"]]
            lines.append([modality, model, a["structures"], *map(_two, scores)])
    return "<h2>By modality</h2>" + _table(*_asked(head, lines), text=2)


def _structures(rows, extras, goal: float) -> str:
    shown, lines = shown_clicks(rows), []
    pairs = list(zip(rows, extras))
    for (name, model), chosen in grouped(pairs, lambda pair: (pair[0]["name"], pair[0]["model"])).items():
        a = averages([row for row, _ in chosen], goal)
        waited = [extra["box_seconds"] for _, extra in chosen if extra.get("box_seconds") is not None]
        scores = [*(a["dice"].get(n) for n in shown), *(a["nsd"].get(n) for n in shown), a["dice_area"], a["nsd_area"]]
        reached = [a["clicks_to_goal"], _percent(a["reached"])]
        rest = [a["first_seconds"], a["seconds"], a["box_dice"], a["box_nsd"], median(waited) if waited else None]
        size = f"{fmean(row['volume_ml'] for row, _ in chosen):.1f}"
        lines.append([name, model, len(chosen), size, *map(_two, scores), *reached, *map(_two, rest)])
    head = ["structure", "model", "n", "ml", *(f"Dice {n}" for n in shown), *(f"NSD {n}" for n in shown)]
    head += ["Dice area", "NSD area", f"clicks to Dice {goal:g}", "reach it", "first click s", "later s"]
    head += ["box Dice", "box NSD", "box s"]
    return "<h2>By structure</h2>" + _table(*_asked(head, sorted(lines, key=lambda line: line[:2])), text=2)


def _asked(head: list[Any], lines: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """A table without the columns that hold nothing in any line, such as clicks where only boxes were asked."""
    kept = [n for n in range(len(head)) if any(line[n] not in (None, "") for line in lines)]
    return [head[n] for n in kept], [[line[n] for n in kept] for line in lines]


def _large(rows, extras) -> str:
    """Structures that the published patch would cut, with the best Dice that it would leave."""
    lines = [
        [row["case"], row["name"], row["model"], f"{max(extra['extent_mm']) / 10:.1f}", _two(extra["ceiling"])]
        + [_two(row["dice"][-1] if row["dice"] else None), _two(row["box"] and row["box"]["dice"])]
        for row, extra in zip(rows, extras)
        if extra.get("ceiling", 1.0) < 0.995
    ]
    if not lines:
        return ""
    head = ["case", "structure", "model", "longest side cm", "ceiling", "last Dice", "box Dice"]
    note = (
        "<p class=n>The published models see 128 voxels of 1.5 mm (19.2 cm). The ceiling is the Dice of the truth itself, "
        "cut to such a patch around the middle of its box.</p>"
    )
    return "<h2>Larger than the published patch</h2>" + note + _table(head, lines, text=3)


def _worst(rows, extras, pictures: Path | None) -> str:
    def last(pair) -> float:
        row = pair[0]
        return row["dice"][-1] if row["dice"] else row["box"]["dice"]

    figures = []
    for row, extra in sorted(zip(rows, extras), key=last)[:WORST]:
        path = pictures / extra["picture"] if pictures and extra.get("picture") else None
        if path is None or not path.is_file():
            continue
        coded = base64.b64encode(path.read_bytes()).decode("ascii")
        text = f"{row['case']}, {row['name']}, {row['model']}: Dice {last((row, extra)):.3f}"
        figures.append(
            f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{coded}">'
            f"<figcaption>{html.escape(text)}</figcaption></figure>"
        )
    if not figures:
        return ""
    note = (
        "<p class=n>The slice with most errors: the image; the truth (green), the mask (red), clicks of this slice on the "
        "object (yellow) and off it (blue); and where the model has one, its uncertainty (orange).</p>"
    )
    return "<h2>The worst</h2>" + note + "".join(figures)


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return "<h2>Not scored</h2><p>Everything was scored.</p>"
    lines = [
        [p.case, "" if p.label is None else p.label, p.model, "scored" if p.scored else "not scored", p.reason]
        for p in problems
    ]
    return "<h2>Not scored, and notes</h2>" + _table(["case", "label", "model", "", "why"], lines, text=5)


def _table(head: list[Any], lines: list[list[Any]], text: int = 1) -> str:
    def cells(tag: str, values: list[Any]) -> str:
        kinds = [' class="t"' if n < text else "" for n in range(len(values))]
        shown = ["-" if value is None else html.escape(str(value)) for value in values]
        return "".join(f"<{tag}{kind}>{value}</{tag}>" for kind, value in zip(kinds, shown))

    body = "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    return f"<div class=w><table><tr>{cells('th', head)}</tr>{body}</table></div>"


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f} %"


def _short(name: str) -> str:
    """A name for the margin of a curve; of a server's address the end, which tells models apart."""
    return name if len(name) <= 18 else "..." + name[-15:]
