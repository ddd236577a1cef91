"""Two evaluations of the same structures: paired differences, with how certain they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import click_area
from .rows import row_fault
from .summary import shown_clicks

RESAMPLES = 2000
CONFIDENCE = 0.95
REGRESSION = 0.02
"""A structure whose Dice or NSD falls by more than this is listed."""


@dataclass(frozen=True)
class Difference:
    """B minus A for one metric.

    Attributes:
        metric: such as "Dice after 5 clicks".
        count: pairs. first, second: means of A and B. mean: of the differences. low, high: its confidence interval.
    """

    metric: str
    count: int
    first: float
    second: float
    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Regression:
    """A structure that B does worse than A.

    Attributes:
        case, label, name: which one. model: of B. metric: such as "NSD of a box". first, second: of A and B.
    """

    case: str
    label: int
    name: str
    model: str
    metric: str
    first: float
    second: float


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.json.

    Raises:
        ValueError: it is no such file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a metrics.json of this command: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        fault = row_fault(row)
        if fault:
            raise ValueError(f"{path} is no metrics.json of this command: in row {number} {fault}")
    return rows


def pairs(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> tuple[list[tuple[dict, dict]], list[str]]:
    """Rows of the same case, label and protocol: of the same model where both files hold it, else of the only one in each.

    Returns:
        The pairs, and a note about every row without a partner.

    Raises:
        ValueError: nothing to pair, or several models that do not correspond.
    """
    models = [sorted({row["model"] for row in rows}) for rows in (first, second)]
    common = set(models[0]) & set(models[1])
    if not common and (len(models[0]) != 1 or len(models[1]) != 1):
        raise ValueError(f"the two files must share a model, or hold one each; got {models[0]} and {models[1]}")

    def keyed(rows):
        chosen = [row for row in rows if not common or row["model"] in common]
        return {(row["case"], row["label"], row["protocol"], row["model"] if common else ""): row for row in chosen}

    a, b = keyed(first), keyed(second)
    found = [(a[key], b[key]) for key in a if key in b]
    if not found:
        raise ValueError("the two files have no structure (case, label, protocol) in common")
    sides = (("A", first, a, b), ("B", second, b, a))
    notes = [
        f"only in {side}: {row['case']}, {row['name']} ({row['label']}), {row['model']}, {row['protocol']}"
        for side, _, x, y in sides
        for key, row in x.items()
        if key not in y
    ]
    for side, rows, _, _ in sides if common else ():
        notes += [f"only in {side}: the model {model}" for model in sorted({r["model"] for r in rows} - common)]
    return found, notes


def by_model(found: list[tuple[Mapping, Mapping]]) -> dict[str, list[tuple[Mapping, Mapping]]]:
    """Pairs by the model that they are of, "x, then y" where A and B hold another one each."""
    groups: dict[str, list[tuple[Mapping, Mapping]]] = {}
    for a, b in found:
        name = a["model"] if a["model"] == b["model"] else f"{a['model']}, then {b['model']}"
        groups.setdefault(name, []).append((a, b))
    return groups


def differences(found: list[tuple[Mapping, Mapping]], seed: int = 0) -> list[Difference]:
    """Means of B - A with bootstrap intervals (percentiles over resampled cases: structures of a case are not independent).

    Areas are those under the clicks that both rows of a pair have.
    """
    found = [_cut(a, b) for a, b in found]
    shown = shown_clicks([a for a, _ in found])
    measures = [(_after("Dice", n), lambda r, n=n: _at(r["dice"], n)) for n in shown]
    measures += [(_after("NSD", n), lambda r, n=n: _at(r["nsd"], n)) for n in shown]
    measures += [
        ("Dice, area over clicks", lambda r: click_area(r["dice"]) if r["dice"] else None),
        ("NSD, area over clicks", lambda r: click_area(r["nsd"]) if r["nsd"] else None),
        ("Dice of a box", lambda r: r["box"]["dice"] if r["box"] else None),
        ("NSD of a box", lambda r: r["box"]["nsd"] if r["box"] else None),
    ]
    result = []
    for name, value in measures:
        both = [(a["case"], value(a), value(b)) for a, b in found]
        both = [(case, x, y) for case, x, y in both if x is not None and y is not None]
        if both:
            result.append(_difference(name, both, np.random.default_rng(seed)))
    return result


def regressions(found: list[tuple[Mapping, Mapping]], limit: float = REGRESSION) -> list[Regression]:
    """Structures whose Dice or NSD, after the last click of both or of a box, fell by more than `limit`; worst first."""
    listed = []
    for a, b in found:
        steps = min(len(a["dice"]), len(b["dice"]))
        for kind, name in (("dice", "Dice"), ("nsd", "NSD")):
            values = [(_after(name, steps), a[kind][steps - 1], b[kind][steps - 1])] if steps else []
            if a["box"] and b["box"]:
                values.append((f"{name} of a box", a["box"][kind], b["box"][kind]))
            listed += [
                Regression(a["case"], a["label"], a["name"], b["model"], metric, x, y)
                for metric, x, y in values
                if y < x - limit
            ]
    return sorted(listed, key=lambda r: r.second - r.first)


def _cut(a: Mapping, b: Mapping) -> tuple[Mapping, Mapping]:
    """A pair with as many clicks as both have."""
    steps = min(len(a["dice"]), len(b["dice"]))
    return tuple({**row, **{key: row[key][:steps] for key in ("clicks", "dice", "nsd")}} for row in (a, b))


def _after(name: str, clicks: int) -> str:
    return f"{name} after {clicks} click{'s' * (clicks > 1)}"


def _at(scores: list[float], n: int) -> float | None:
    return scores[n - 1] if len(scores) >= n else None


def _difference(name: str, both: list[tuple[str, float, float]], rng: np.random.Generator) -> Difference:
    cases = sorted({case for case, _, _ in both})
    deltas = [np.array([y - x for c, x, y in both if c == case]) for case in cases]
    if len(cases) == 1:  # one case alone: its structures are resampled
        deltas = [np.array([d]) for d in deltas[0]]
    sums, counts = np.array([d.sum() for d in deltas]), np.array([d.size for d in deltas])
    drawn = rng.integers(len(deltas), size=(RESAMPLES, len(deltas)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    first, second = (float(np.mean([pair[i] for pair in both])) for i in (1, 2))
    return Difference(name, len(both), first, second, second - first, float(low), float(high))
