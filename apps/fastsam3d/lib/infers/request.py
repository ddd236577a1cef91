"""What clients send: the only place that knows their dialects.

Every client counts voxels of the image as it is stored, [i, j, k] = (column, row, slice).

| client | clicks | box |
|---|---|---|
| OHIF and Slicer, a deepgrow model | `foreground`, `background`: lists of points | Slicer: `roi` [i0, i1, j0, j1, k0, k1], in any order |
| deepedit form | the list under the name that `label` holds; `background` | the same |
| point form (vista3d) | `points` with `point_labels` 1 or 0 | |
| this app's command and scripts | any of these | `box`, as `roi` or as two corner points |

Keys that carry no prompt for a three-dimensional model (`slice`, `reset_state`, `client_id`, ...) are passed over.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..encode import DTYPES, EXTENSIONS
from ..sam.geometry import Grid
from ..sam.prompts import MAX_CLICKS, Box, Click, Prompts

DEFAULT_LABEL = "foreground"
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
    """

    label: str = DEFAULT_LABEL
    extension: str = ".nii.gz"
    dtype: str = "uint8"
    write: bool = True


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
    clicks = _clicks(request)
    box = _box(request, grid)
    if box is None and not any(click.positive for click in clicks):
        found = f"only {len(clicks)} background clicks" if clicks else "none"
        raise RequestError(f"A request needs at least one foreground click or a box (roi), found {found}.")
    prompts = Prompts(clicks=clicks, box=box)
    prompts.validate(grid)
    return prompts


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
    return AnswerOptions(label, extension, dtype, write)


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
    key = "box" if request.get("box") else "roi"
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
    low = tuple(max(0, min(pair)) for pair in zip(first, second, strict=True))
    high = tuple(min(n - 1, max(pair)) for pair, n in zip(zip(first, second, strict=True), grid.shape, strict=True))
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise RequestError(f"{key} must touch the image of {_size(grid)} voxels, got {show(values)}.")
    return Box(low, high)


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
