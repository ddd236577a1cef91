"""How good is a model: simulated clicks on labelled scans, through the same segmenter as serving.

Nothing here looks at the truth except the click simulator: the first click decides the patch, and the Dice is that of
the mask on the whole scan after that very click.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from .clicks import next_click
from .preprocess import read_volume
from .prompts import Box, Prompts
from .sampling import bounding_box
from .segmenter import VolumeSegmenter
from .session import ImageSession


@dataclass(frozen=True)
class ClickCurve:
    """Result for one structure.

    Attributes:
        case, label, name, volume_ml, model: what was segmented by what.
        clicks: 1, 2, ...; dice, seconds: after that many clicks (seconds of that click alone).
        box_dice: Dice of a tight box alone, or None for a model without boxes.
    """

    case: str
    label: int
    name: str
    volume_ml: float
    model: str
    clicks: tuple[int, ...]
    dice: tuple[float, ...]
    seconds: tuple[float, ...]
    box_dice: float | None

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def dice(pred: np.ndarray, target: np.ndarray) -> float:
    """Dice coefficient of two bool arrays; 1 where both are empty."""
    total = int(pred.sum()) + int(target.sum())
    return 2.0 * int((pred & target).sum()) / total if total else 1.0


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected part of a bool array."""
    window = bounding_box(mask)
    if window is None:
        return mask
    parts, n = ndimage.label(mask[window], structure=np.ones((3, 3, 3)))
    out = np.zeros_like(mask)
    if n > 1:
        out[window] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    else:
        out[window] = mask[window]
    return out


def evaluate_case(
    segmenter: VolumeSegmenter,
    session: ImageSession,
    target: np.ndarray,
    *,
    max_clicks: int,
    rule: str = "centre",
    seed: int = 0,
    boxes: bool = True,
) -> tuple[list[float], list[float], float | None]:
    """Clicks on one structure until `max_clicks`, each in the error of the mask before.

    Args:
        target: (I, J, K) bool, the truth on the session's grid, not empty.
        boxes: also try a tight box.

    Returns:
        Dice after each click, seconds of each click, and the Dice of a tight box alone (None without boxes).
    """
    grid = session.volume.grid
    rng = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in grid.spacing_mm)
    pred = np.zeros(target.shape, dtype=bool)
    clicks, scores, seconds = [], [], []
    for _ in range(max_clicks):
        click = next_click(pred, target, rng, rule, spacing)
        if click is not None:
            clicks.append(click)
            answer = segmenter.segment(session, Prompts(tuple(clicks)))
            pred = answer.full_mask().astype(bool)
            seconds.append(sum(answer.timings_ms.values()) / 1000)
        else:
            seconds.append(0.0)
        scores.append(dice(pred, target))
    box_dice = None
    if boxes and segmenter.spec.decoder.boxes:
        window = bounding_box(target)
        box = Box(tuple(s.start for s in window), tuple(s.stop - 1 for s in window))
        if sum(a == b for a, b in zip(box.low_ijk, box.high_ijk)) < 2:
            box_dice = dice(segmenter.segment(session, Prompts((), box)).full_mask().astype(bool), target)
    return scores, seconds, box_dice


def find_pairs(images: Path, labels: Path) -> list[tuple[str, Path, Path]]:
    """(case, image, label) of two folders with equal file names.

    Raises:
        ValueError: no pair at all.
    """
    pairs = [
        (p.name.split(".")[0], p, labels / p.name)
        for p in sorted(images.iterdir())
        if p.is_file() and p.name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")) and (labels / p.name).is_file()
    ]
    if not pairs:
        raise ValueError(f"no image in {images} has a label map of the same name in {labels}")
    return pairs


def evaluate(
    segmenter: VolumeSegmenter,
    store,
    pairs: list[tuple[str, Path, Path]],
    model: str,
    *,
    max_clicks: int,
    rule: str = "centre",
    names: dict[int, str] | None = None,
    min_ml: float = 0.0,
    only: set[int] | None = None,
) -> Iterator[ClickCurve]:
    """Curves of every structure (its largest connected part) of every case, one after another."""
    for case, image, label_path in pairs:
        label = read_volume(label_path)
        with store.open(case, image) as session:
            grid = session.volume.grid
            if label.array.shape != grid.shape:
                raise ValueError(
                    f"{label_path.name}: label map {label.array.shape} and image {grid.shape} must have one grid"
                )
            for value in np.unique(label.array).astype(int).tolist():
                if value <= 0 or (only and value not in only):
                    continue
                target = largest_component(np.asarray(label.array == value))
                ml = float(target.sum() * np.prod(grid.spacing_mm) / 1000)
                if ml < min_ml:
                    continue
                scores, seconds, box_dice = evaluate_case(segmenter, session, target, max_clicks=max_clicks, rule=rule)
                yield ClickCurve(
                    case, value, (names or {}).get(value, str(value)), round(ml, 3), model,
                    tuple(range(1, max_clicks + 1)), tuple(round(s, 4) for s in scores),
                    tuple(round(s, 4) for s in seconds), None if box_dice is None else round(box_dice, 4),
                )  # fmt: skip
