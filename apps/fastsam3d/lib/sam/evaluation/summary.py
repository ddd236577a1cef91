"""Rows of metrics.json to tables: by model, by structure, by modality, and the CVPR 2025 challenge's own metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import Any

import numpy as np

from ..metrics import click_area, clicks_to_reach
from .cases import MODALITIES

Row = Mapping[str, Any]
SHOWN_CLICKS = (1, 3, 5, 10)
_LOW_DICE = 0.2


def shown_clicks(rows: Iterable[Row]) -> list[int]:
    """Which clicks tables show: 1, 3, 5, 10, and the last."""
    most = max((len(row["clicks"]) for row in rows), default=0)
    return sorted({n for n in SHOWN_CLICKS if n <= most} | ({most} if most else set()))


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by key, keys in the order in which they first come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def averages(rows: list[Row], goal: float) -> dict[str, Any]:
    """Means over rows of one model.

    Returns:
        structures; dice and nsd {clicks: mean}; dice_area, nsd_area; reached (share of the rows that came to the goal)
        and clicks_to_goal (median over those); first_seconds and seconds (medians of the first and of later clicks);
        box_dice, box_nsd. What there is nothing of is None.
    """
    clicked = [row for row in rows if row["clicks"]]
    boxed = [row["box"] for row in rows if row["box"] is not None]
    needed = [clicks_to_reach(row["dice"], goal) for row in clicked]
    reached = [n for n in needed if n is not None]
    later = [s for row in clicked for s in row["seconds"][1:] if s > 0]
    first = [row["seconds"][0] for row in clicked]
    return {
        "structures": len(rows),
        "dice": {
            n: _mean([row["dice"][n - 1] for row in clicked if len(row["dice"]) >= n]) for n in shown_clicks(rows)
        },
        "nsd": {n: _mean([row["nsd"][n - 1] for row in clicked if len(row["nsd"]) >= n]) for n in shown_clicks(rows)},
        "dice_area": _mean([click_area(row["dice"]) for row in clicked]),
        "nsd_area": _mean([click_area(row["nsd"]) for row in clicked]),
        "reached": len(reached) / len(clicked) if clicked else None,
        "clicks_to_goal": median(reached) if reached else None,
        "first_seconds": median(first) if first else None,
        "seconds": median(later) if later else None,
        "box_dice": _mean([b["dice"] for b in boxed]),
        "box_nsd": _mean([b["nsd"] for b in boxed]),
    }


def by_modality(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of every modality of RepMedSAM's table (empty lists where there is no data), then of others."""
    groups = grouped(rows, lambda row: row["modality"])
    return {name: groups.get(name, []) for name in [*MODALITIES, *(m for m in groups if m not in MODALITIES)]}


def challenge_metrics(rows: list[Row]) -> dict[str, float] | None:
    """DSC_AUC, NSD_AUC, DSC_Final, NSD_Final of one model, as the CVPR 2025 challenge computes them.

    In every case Dice and NSD are averaged over its structures after each click; where that Dice is not above 0.2 the
    NSD counts as 0. The area is that of the trapezoids over the clicks alone (4 at most for 5 clicks), without the box.
    Then the mean over cases. (CVPR25_iter_eval.py of JunMa11/CVPR-MedSegFMCompetition.)

    Returns:
        None without rows of that protocol.
    """
    rows = [row for row in rows if row["protocol"] == "cvpr25" and row["clicks"]]
    if not rows:
        return None
    per_case = []
    for case in grouped(rows, lambda row: row["case"]).values():
        dice = np.mean([row["dice"] for row in case], axis=0)
        nsd = np.where(dice > _LOW_DICE, np.mean([row["nsd"] for row in case], axis=0), 0.0)
        width = max(1, len(dice) - 1)
        per_case.append((click_area(list(dice)) * width, click_area(list(nsd)) * width, dice[-1], nsd[-1]))
    names = ("DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final")
    return {name: float(value) for name, value in zip(names, np.mean(per_case, axis=0))}


def as_csv(rows: list[Row], extras: list[Mapping[str, Any]], goal: float) -> str:
    """One line a row, with everything that metrics.json holds and what follows from it."""
    most = max((len(row["clicks"]) for row in rows), default=0)
    kinds = ("dice", "nsd", "seconds")
    head = ["case", "label", "name", "volume_ml", "modality", "model", "protocol"]
    head += [f"{kind}_{n}" for kind in kinds for n in range(1, most + 1)]
    head += ["dice_area", "nsd_area", f"clicks_to_{goal:g}", "box_dice", "box_nsd", "box_seconds", "patch_ceiling"]
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(head)
    for row, extra in zip(rows, extras):
        values = [row[key] for key in head[:7]]
        values += [row[kind][n] if n < len(row[kind]) else "" for kind in kinds for n in range(most)]
        areas = [round(click_area(row[k]), 5) if row[k] else "" for k in ("dice", "nsd")]
        box = row["box"] or {"dice": "", "nsd": ""}
        values += [*areas, clicks_to_reach(row["dice"], goal) or "", box["dice"], box["nsd"]]
        values += [extra.get("box_seconds", ""), extra.get("ceiling", "")]
        table.writerow(values)
    return stream.getvalue()


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
