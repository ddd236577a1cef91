"""What clients send: the only place that knows their dialects.

Every client counts voxels of the image as it is stored, [i, j, k] = (column, row, slice).

| client | clicks | box |
|---|---|---|
| OHIF and Slicer, a deepgrow model | `foreground`, `background`: lists of points | Slicer: `roi` [i0, i1, j0, j1, k0, k1], in any order |
| deepedit form | the list under the name that `label` holds; `background` | the same |
| point form (vista3d) | `points` with `point_labels` 1 or 0 | |
| this app's command and scripts | any of these | `box`, as `roi` or as two corner points |

Keys that carry no prompt for a three-dimensional model (`slice`, `reset_state`, `client_id`, ...) are passed over.

Models for slices have options of their own (SLICE_CONFIG). A client sends what its user chose, or the list of all choices,
whose first is the default, or nothing. Slicer adds `slice`, the k of the slice that its user looks at, for a model of
dimension 2; OHIF then sends the points of that slice only.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..encode import DTYPES, EXTENSIONS
from ..sam.geometry import Grid
from ..sam.intensity import WINDOWS
from ..sam.prompts import MAX_CLICKS, Box, Click, Prompts
from ..sam.slice_segmenter import SliceOptions

DEFAULT_LABEL = "foreground"
EXTREME, CLICKS = "extreme", "clicks"
SLICE_CONFIG = {"points": [EXTREME, CLICKS], "window": list(WINDOWS), "extent": 0}
"""Options of the models for slices: how foreground points are read where there is no box (the points at the ends of the
structure, whose bounding box is the prompt, or clicks on it); the grey window; how many slices an object that no box bounds
is followed in each direction (0: until it ends)."""

_MAX_LABEL_LENGTH = 128
_LARGEST_INDEX = 2**31 - 1
_SHOWN = 60


class RequestError(ValueError):
    """A request that breaks a rule; the message names the rule and the value received."""


@dataclass(frozen=True)
class AnswerOptions:
    """How the client wants its answer.

    Attributes:
        label: name of the structure being segmented; any name is taken.
        extension: of the answer file, one of `encode.EXTENSIONS`.
        dtype: of the answer's voxels.
        write: False for an answer without a file.
        uncertainty: the file holds how unsure the mask is, voxel by voxel, in place of the mask (uncertainty.py).
    """

    label: str = DEFAULT_LABEL
    extension: str = ".nii.gz"
    dtype: str = "uint8"
    write: bool = True
    uncertainty: bool = False


def parse_prompts(request: Mapping[str, Any], grid: Grid) -> Prompts:
    """Reads the clicks and the box.

    Clients do not say how positive and negative clicks interleave: they are taken in turn, first positive, first negative,
    second positive and so on, each list in its own order. So a new click seldom comes before many that were answered
    already. A box that reaches past the image is cut to it.

    Args:
        request: the client's parameters.
        grid: of the image; clicks must lie in it.

    Returns:
        The prompts, in voxels of the grid.

    Raises:
        RequestError: if there is nothing to segment (no positive click and no box), if a point is malformed, or if
            there are more than `MAX_CLICKS` clicks.
        PromptError: if a click lies outside the image.
    """
    return _asked(_clicks(request), _box(request, grid), grid)


def _asked(clicks: tuple[Click, ...], box: Box | None, grid: Grid) -> Prompts:
    if box is None and not any(click.positive for click in clicks):
        found = f"only {len(clicks)} background clicks" if clicks else "none"
        raise RequestError(f"A request needs at least one foreground click or a box (roi), found {found}.")
    prompts = Prompts(clicks=clicks, box=box)
    prompts.validate(grid)
    return prompts


def parse_slice_prompts(request: Mapping[str, Any], grid: Grid, single: bool) -> tuple[Prompts, SliceOptions]:
    """Reads prompts and options for a model for slices.

    Args:
        request: the client's parameters.
        grid: of the image; clicks must lie in it.
        single: the model answers in one slice (dimension 2).

    Returns:
        The prompts, in voxels of the grid, and the options; their notes say what was done with the prompts.

    Raises:
        RequestError, PromptError: as `parse_prompts`; an option that is not offered; a slice that the image has not, or
            that the box does not touch.
    """
    plain = {key: value for key, value in request.items() if key != "points" or _is_points(value)}
    index, notes = _slice(request, grid) if single else None, []
    box, clicks = _box(plain, grid), _clicks(plain)
    if box is not None and _reaches_past(plain, grid):
        notes.append("the box reaches past the image and was cut to it")
    if box is not None and index is not None:
        box = _cut_to_slice(box, index)
    if index is not None:
        elsewhere = [click for click in clicks if click.ijk[2] != index]
        clicks = tuple(click for click in clicks if click.ijk[2] == index)
        notes += [f"{len(elsewhere)} points lie in other slices and were not used"] if elsewhere else []
    if box is None and _choice(request, "points") == EXTREME:
        clicks, box = _read_extreme(clicks, notes)
    options = SliceOptions(
        single=single,
        window=_choice(request, "window"),
        extent=_extent(request),
        axis=None if index is None else 2,
        notes=tuple(notes),
    )
    return _asked(clicks, box, grid), options


def parse_answer(request: Mapping[str, Any]) -> AnswerOptions:
    """Reads what kind of answer is wanted; `result_compress` is passed over, as all answers are cheap to inflate.

    Raises:
        RequestError: for an extension or data type that is not offered, or an unusable label name.
    """
    label = request.get("label") or DEFAULT_LABEL
    if not isinstance(label, str) or len(label) > _MAX_LABEL_LENGTH or not label.isprintable():
        raise RequestError(
            f"label must be a name of at most {_MAX_LABEL_LENGTH} printable characters, got {show(label)}."
        )
    extension = request.get("result_extension") or AnswerOptions.extension
    if extension not in EXTENSIONS:
        raise RequestError(f"result_extension must be one of {', '.join(EXTENSIONS)}, got {show(extension)}.")
    dtype = request.get("result_dtype") or AnswerOptions.dtype
    if dtype not in DTYPES:
        raise RequestError(f"result_dtype must be one of {', '.join(DTYPES)}, got {show(dtype)}.")
    write = request.get("result_write_to_file", True)
    if not isinstance(write, bool):
        raise RequestError(f"result_write_to_file must be true or false, got {show(write)}.")
    uncertainty = request.get("uncertainty", False)
    if not isinstance(uncertainty, bool):
        raise RequestError(f"uncertainty must be true or false, got {show(uncertainty)}.")
    return AnswerOptions(label, extension, dtype, write, uncertainty)


def _clicks(request: Mapping[str, Any]) -> tuple[Click, ...]:
    label = request.get("label")
    positive = "foreground"
    if positive not in request and isinstance(label, str) and isinstance(request.get(label), (list, tuple)):
        positive = label
    lists = [(positive, True), ("background", False)]
    points = _list(request, "points")
    signs = _list(request, "point_labels")
    count = sum(len(_list(request, key)) for key, _ in lists) + len(points)
    if count > MAX_CLICKS:
        raise RequestError(f"A request may hold at most {MAX_CLICKS} clicks, got {count}.")
    clicks = [
        Click(_point(lst[n], f"{key}[{n}]"), sign)
        for n in range(max(len(_list(request, key)) for key, _ in lists))
        for key, sign in lists
        if n < len(lst := _list(request, key))
    ]
    if len(signs) != len(points) or any(isinstance(s, bool) or s not in (0, 1) for s in signs):
        raise RequestError(f"point_labels must hold 1 or 0 for each of the {len(points)} points, got {show(signs)}.")
    clicks += [Click(_point(point, f"points[{n}]"), bool(signs[n])) for n, point in enumerate(points)]
    return tuple(clicks)


def _box(request: Mapping[str, Any], grid: Grid) -> Box | None:
    corners = _corners(request)
    if corners is None:
        return None
    low = tuple(max(0, low) for low in corners[0])
    high = tuple(min(n - 1, high) for high, n in zip(corners[1], grid.shape, strict=True))
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise RequestError(f"{_box_key(request)} must touch the image of {_size(grid)} voxels, got {show(corners)}.")
    return Box(low, high)


def _corners(request: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Low and high corner of the box as it was sent, in order; None without one."""
    key = _box_key(request)
    values = _list(request, key)
    if not values:
        return None
    if len(values) == 2:
        first, second = (_point(corner, f"{key}[{n}]") for n, corner in enumerate(values))
    elif len(values) == 6:
        first = _point(values[0::2], f"{key}[0,2,4]")
        second = _point(values[1::2], f"{key}[1,3,5]")
    else:
        raise RequestError(f"{key} must be [i0, i1, j0, j1, k0, k1] or two corner points, got {show(values)}.")
    return tuple(map(min, first, second)), tuple(map(max, first, second))


def _box_key(request: Mapping[str, Any]) -> str:
    return "box" if request.get("box") else "roi"


def _reaches_past(request: Mapping[str, Any], grid: Grid) -> bool:
    low, high = _corners(request)
    return min(low) < 0 or any(value >= n for value, n in zip(high, grid.shape))


def _cut_to_slice(box: Box, index: int) -> Box:
    if not box.low_ijk[2] <= index <= box.high_ijk[2]:
        raise RequestError(
            f"the box must touch the slice that is asked for, got slice {index} and a box from slice {box.low_ijk[2]} to "
            f"{box.high_ijk[2]}; move the box, or show one of its slices."
        )
    return Box((*box.low_ijk[:2], index), (*box.high_ijk[:2], index))


def _read_extreme(clicks: tuple[Click, ...], notes: list[str]) -> tuple[tuple[Click, ...], Box | None]:
    """Foreground points as the ends of the structure: their bounding box, and as clicks those that are no end.

    Points that span no box stay clicks.
    """
    points = [c.ijk for c in clicks if c.positive]
    if not points:
        return clicks, None
    low, high = tuple(map(min, *points, points[0])), tuple(map(max, *points, points[0]))
    spanned = [axis for axis in range(3) if low[axis] < high[axis]]
    if len(spanned) < 2:
        if len(points) > 1:
            notes.append("the foreground points lie in one line and span no box; they were read as clicks")
        return clicks, None
    inner = [c for c in clicks if not c.positive or all(low[a] < c.ijk[a] < high[a] for a in spanned)]
    return tuple(inner), Box(low, high)


def _slice(request: Mapping[str, Any], grid: Grid) -> int | None:
    value = request.get("slice")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < grid.shape[2] or value % 1:
        raise RequestError(f"slice must be the k of a slice, 0 to {grid.shape[2] - 1}, got {show(value)}.")
    return int(value)


def _choice(request: Mapping[str, Any], key: str) -> str:
    """The value of an option: what was chosen, or the first of a list of choices, or the default."""
    offered = SLICE_CONFIG[key]
    value = request.get(key)
    if isinstance(value, (list, tuple)):
        value = value[0] if value and isinstance(value[0], str) else None
    if value is None:
        return offered[0]
    if value not in offered:
        raise RequestError(f"{key} must be one of {', '.join(offered)}, got {show(value)}.")
    return value


def _extent(request: Mapping[str, Any]) -> int:
    value = request.get("extent", 0)
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= _LARGEST_INDEX or number % 1:
        raise RequestError(f"extent must be a whole number of slices, 0 for all, got {show(value)}.")
    return int(number)


def _is_points(value: Any) -> bool:
    """Whether `points` holds points (the point form) rather than the option of that name."""
    return isinstance(value, (list, tuple)) and not any(isinstance(item, str) for item in value)


def _list(request: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = request.get(key)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise RequestError(f"{key} must be a list, got {show(value)}.")
    return value


def _point(value: Any, name: str) -> tuple[int, int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise RequestError(f"{name} must be a point of three voxel indices [i, j, k], got {show(value)}.")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise RequestError(f"{name} must hold numbers, got {show(value)}.")
        if not abs(number) <= _LARGEST_INDEX or number != int(number):
            raise RequestError(f"{name} must hold whole voxel indices, got {show(value)}.")
    return int(value[0]), int(value[1]), int(value[2])


def _size(grid: Grid) -> str:
    return " x ".join(str(n) for n in grid.shape)


def show(value: Any) -> str:
    """What a client sent, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
