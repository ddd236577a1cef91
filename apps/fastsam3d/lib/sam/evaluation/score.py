"""One structure, one model: every step asked and scored."""

from __future__ import annotations

import logging
import zlib
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..files import plain_name
from ..geometry import PatchFrame
from ..grid import Grid
from ..mask_io import write_mask
from ..metrics import TOLERANCE_MM, dice, surface_dice
from ..sampling import bounding_box
from ..session import ImageSession, SessionStore
from ..volume_io import Volume, VolumeError
from .cases import Case, Problem
from .components import largest_component
from .grids import apart_mm
from .interface import Model, ModelError, Wanted
from .pictures import render
from .protocols import BOX, Step, automatic_steps, box_step, challenge_box, click_steps, slices_step, tight_box
from .scans import read_labels

PUBLISHED_SIZE, PUBLISHED_SPACING_MM = 128, 1.5
PARTS = ("all", "largest")
_FAULTS = (ModelError, ValueError, RuntimeError, OSError, MemoryError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is asked, and how it is scored.

    Attributes:
        protocol: one of PROTOCOLS. clicks: how many. rule: where the next click goes. seed: for rules that draw.
        tolerance_mm: of the surface Dice.
        parts: "all" of a structure, or its "largest" 26-connected part alone.
        min_ml: smaller structures are passed over. only: label values to take; empty means all.
        masks: a folder for every mask, or None. pictures: a folder for a picture of every structure, or None.
    """

    protocol: str = "points"
    clicks: int = 10
    rule: str = "centre"
    seed: int = 0
    tolerance_mm: float = TOLERANCE_MM
    parts: str = "all"
    min_ml: float = 0.0
    only: tuple[int, ...] = ()
    masks: Path | None = None
    pictures: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """What decides the numbers; folders and filters do not."""
        left_out = ("min_ml", "only", "masks", "pictures")
        return {key: value for key, value in asdict(self).items() if key not in left_out}


@dataclass(frozen=True)
class Structure:
    """One label of one case.

    Attributes:
        case: where it is. label: its value. name: in words. volume_ml: of what is scored.
    """

    case: Case
    label: int
    name: str
    volume_ml: float


@dataclass(frozen=True)
class Result:
    """What came of one structure and one model.

    Attributes:
        row: the entry of metrics.json; None if it could not be scored.
        extra: clicks made, seconds of the box, warnings, the ceiling of the published patch, the picture's file.
        problems: why it was not scored, and notes.
    """

    row: dict[str, Any] | None
    extra: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def examine(case: Case, settings: Settings, names: dict[int, str]) -> tuple[list[Structure], list[Problem]]:
    """Lists what a case's label map holds."""
    try:
        labels = label_map(case)
    except VolumeError as error:
        return [], [Problem(case.name, f"its label map cannot be read: {error}")]
    if labels.nonfinite:
        return [], [Problem(case.name, f"its label map holds {labels.nonfinite} voxels that are NaN or infinite")]
    values = np.unique(labels.array)
    if not np.array_equal(values, np.round(values)):
        return [], [Problem(case.name, "its label map must hold whole numbers; was it resampled with interpolation?")]
    values = [int(v) for v in values if v != 0]
    if not values:
        return [], [Problem(case.name, "its label map is empty")]
    millilitres = float(np.prod(labels.grid.spacing_mm)) / 1000
    found = []
    for value in values:
        if settings.only and value not in settings.only:
            continue
        count = int(target_of(labels, value, settings.parts).sum())
        if count * millilitres >= settings.min_ml:
            found.append(Structure(case, value, names.get(value, str(value)), count * millilitres))
    return found, []


@lru_cache(maxsize=1)
def label_map(case: Case) -> Volume:
    """A case's label map; the last one is remembered."""
    return read_labels(case.labels, image=case.image)


def target_of(labels: Volume, value: int, parts: str) -> np.ndarray:
    """(I, J, K) bool, the truth of one structure."""
    mask = labels.array == value
    return largest_component(mask) if parts == "largest" else mask


def score(model: Model, structure: Structure, store: SessionStore, settings: Settings) -> Result:
    """Asks for a structure by the protocol; whatever goes wrong becomes a Problem."""
    case = structure.case
    try:
        with store.open(str(case.image), case.image) as session:
            labels = label_map(case)
            fault = apart_mm(session.volume.grid, labels.grid)
            if fault:
                return _unscored(case.name, f"label map and image must have one grid: the label map has {fault}")
            target = target_of(labels, structure.label, settings.parts)
            return _scored(model, structure, session, target, settings)
    except VolumeError as error:
        return _unscored(case.name, f"its image cannot be used: {error}")
    except _FAULTS as error:
        return _unscored(case.name, f"{type(error).__name__}: {error}", structure.label, model.name)
    except Exception as error:  # a defect in one structure must not cost the others
        _log.exception("%s, label %s, %s", case.name, structure.label, model.name)
        return _unscored(case.name, f"unexpected {type(error).__name__}: {error}", structure.label, model.name)


def _unscored(case: str, reason: str, label: int | None = None, model: str = "") -> Result:
    return Result(None, problems=(Problem(case, " ".join(reason.split())[:400], label, model),))


def _scored(
    model: Model, structure: Structure, session: ImageSession, target: np.ndarray, settings: Settings
) -> Result:
    spacing = tuple(float(s) for s in session.volume.grid.spacing_mm)
    window = bounding_box(target)
    notes = [Problem(structure.case.name, text, scored=True) for text in session.volume.warnings]
    steps: list[tuple[int, float, float, float]] = []
    warnings: list[str] = []
    last: Step | None = None
    measured: np.ndarray | None = None
    with model.open(session, structure.case.image, Wanted(structure.label, structure.name)) as ask:
        for step in _steps(model, ask, target, spacing, settings, notes, structure):
            mask = step.answer.mask
            if mask is not measured:  # one that was perfect, or needed no prompts, comes again as it is
                values = dice(mask, target), surface_dice(mask, target, spacing, settings.tolerance_mm)
                measured = mask
            steps.append((step.clicks, *values, step.answer.seconds))
            warnings += step.answer.warnings
            if settings.masks is not None:
                _save(settings.masks, model, structure, step, session.volume.grid)
            last = step if step.clicks != BOX or last is None else last
    if last is None:
        raise ModelError(f"{model.name} takes none of the prompts of the protocol {settings.protocol}")
    clicked = [s for s in steps if s[0] != BOX]
    boxed = next((s for s in steps if s[0] == BOX), None)
    extra = {
        "clicks": [[*click.ijk, int(click.positive)] for click in last.prompts.clicks],
        "box_seconds": None if boxed is None else round(boxed[3], 4),
        "warnings": list(dict.fromkeys(warnings)),
        "ceiling": _ceiling(target, session.volume.grid, window),
        "extent_mm": [round(s * (w.stop - w.start), 1) for s, w in zip(spacing, window)],
    }
    if settings.pictures is not None:
        extra["picture"] = _draw(model, structure, session, target, last, settings)
    row = {
        "case": structure.case.name,
        "label": structure.label,
        "name": structure.name,
        "volume_ml": round(structure.volume_ml, 4),
        "model": model.name,
        "clicks": [s[0] for s in clicked],
        "dice": [round(s[1], 5) for s in clicked],
        "nsd": [round(s[2], 5) for s in clicked],
        "seconds": [round(s[3], 4) for s in clicked],
        "protocol": settings.protocol,
        "modality": structure.case.modality,
        "box": None if boxed is None else {"dice": round(boxed[1], 5), "nsd": round(boxed[2], 5)},
    }
    return Result(row, extra, tuple(notes))


def _steps(model: Model, ask, target, spacing, settings: Settings, notes: list[Problem], structure: Structure):
    """The steps of the protocol that this model takes part in."""
    if model.automatic:
        yield from automatic_steps(ask, 0 if settings.protocol == "box2d" else settings.clicks)
        return
    if settings.protocol == "box2d":
        if not model.boxes:
            raise ModelError(f"the protocol box2d needs a model that takes boxes; {model.name} takes clicks")
        if min(target.shape[:2]) == 1:
            size = " x ".join(map(str, target.shape))
            raise ModelError(f"box2d asks by slices along the third axis, which in this scan of {size} are lines")
        yield slices_step(ask, target)
        return
    make_box = challenge_box if settings.protocol == "cvpr25" else tight_box
    box = make_box(target) if model.boxes else None
    if model.boxes and box is None:
        notes.append(Problem(structure.case.name, "too thin for a box", structure.label, model.name, scored=True))
    boxed = box_step(ask, box)
    if boxed is not None:
        yield boxed
    if model.clicks:
        rng = np.random.default_rng(_seed(settings.seed, structure))
        start = boxed if settings.protocol == "cvpr25" else None
        yield from click_steps(ask, target, spacing, settings.clicks, settings.rule, rng, start)


def _seed(seed: int, structure: Structure) -> int:
    return zlib.crc32(f"{seed}/{structure.case.name}/{structure.label}".encode())


def _ceiling(target: np.ndarray, grid: Grid, window) -> float:
    """The Dice of the truth itself, cut by the published patch (128 voxels of 1.5 mm) in the middle of its box."""
    centre = [(s.start + s.stop - 1) / 2 for s in window]
    frame = PatchFrame.around(grid, centre, PUBLISHED_SIZE, PUBLISHED_SPACING_MM)
    box, corner = frame.paste(np.ones(frame.shape, dtype=np.float32), threshold=0.5, order=0)
    seen = int(target[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))].sum())
    return round(2 * seen / (seen + int(target.sum())), 4)


def file_stem(structure: Structure, model: str) -> str:
    """The name, without ending, of the files about a structure and a model."""
    return plain_name(f"{structure.case.name}_{structure.label}_{model}")


def mask_name(structure: Structure, model: str, clicks: int) -> str:
    """The name of the file of a mask, after so many clicks or of a box (BOX)."""
    return f"{file_stem(structure, model)}_{'box' if clicks == BOX else f'click{clicks}'}.nii.gz"


def _save(folder: Path, model: Model, structure: Structure, step: Step, grid: Grid) -> None:
    write_mask(folder / mask_name(structure, model.name, step.clicks), step.answer.mask, grid)


def _draw(
    model: Model, structure: Structure, session: ImageSession, target: np.ndarray, last: Step, settings: Settings
) -> str:
    uncertain = None if settings.protocol == "box2d" else model.uncertainty(session, last.prompts)
    name = f"{file_stem(structure, model.name)}.png"
    render(settings.pictures / name, session.volume, target, last.answer.mask, last.prompts.clicks, uncertain)
    return name
