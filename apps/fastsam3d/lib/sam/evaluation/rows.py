"""The form of a row of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

_TEXTS = ("case", "name", "model", "protocol", "modality")
_CURVES = ("dice", "nsd", "seconds")
KEYS = frozenset({*_TEXTS, *_CURVES, "label", "volume_ml", "clicks", "box"})


def row_fault(row: object) -> str:
    """What is wrong with a row; nothing where it is as `evaluate` writes it."""
    if not isinstance(row, Mapping) or not set(row) >= KEYS:
        return f"the keys must be {', '.join(sorted(KEYS))}"
    for key in _TEXTS:
        if not isinstance(row[key], str):
            return f"{key} must be text, got {row[key]!r}"
    if not _is_number(row["label"]) or not _is_number(row["volume_ml"]):
        return f"label and volume_ml must be numbers, got {row['label']!r} and {row['volume_ml']!r}"
    if not isinstance(row["clicks"], list):
        return f"clicks must be a list, got {row['clicks']!r}"
    for key in _CURVES:
        values = row[key]
        if not isinstance(values, list) or not all(map(_is_number, values)) or len(values) != len(row["clicks"]):
            return f"{key} must be one number a click, got {str(values)[:80]}"
    box = row["box"]
    if box is not None and not (isinstance(box, Mapping) and all(_is_number(box.get(key)) for key in ("dice", "nsd"))):
        return f"box must be null or have a dice and an nsd, got {str(box)[:80]}"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
