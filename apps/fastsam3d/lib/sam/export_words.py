"""What model.json says of a network beside its ports: enough to write a client without reading this code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint_files import file_sha256, read_header
from .networks.prompt_maps import BOX_HIGH, BOX_LOW, NEGATIVE, PADDING, POSITIVE
from .placement import MAX_COARSENING, MAX_REFINING
from .postprocess import FARTHEST, GROWTH, NEAREST, NEAREST_BACKGROUND, REACH, SMALL_PIECE
from .registry import entries
from .segmenter import SINGLE_CLICKS
from .spec import AnySpec, Sam2dSpec, SamSpec
from .weights import ResolvedWeights

_UNKNOWN_LICENCE = "not recorded: ask whoever made the weights"
_WARNING = "not for clinical use"


def describe(model: str, resolved: ResolvedWeights, model_dir: str | Path) -> dict[str, Any]:
    """Name, weights, preprocessing, prompts and masks of a model.

    Args:
        model: what the app calls it. model_dir: the app's folder of weights, for the licence.
    """
    flat = isinstance(resolved.spec, Sam2dSpec)
    return {
        "model": model,
        "spec": resolved.spec.name,
        "warning": _WARNING,
        "weights": {
            "name": resolved.name,
            "version": resolved.version,
            "files": [{"name": path.name, "sha256": file_sha256(path)} for path in resolved.paths],
            "licence": _licence(resolved, Path(model_dir)),
        },
        "preprocessing": _image(resolved.spec) if flat else _patch(resolved.spec),
        "labels": _labels(resolved.spec),
        "passes": _passes2d(resolved.spec) if flat else _passes3d(resolved.spec),
        "mask": {"output": "mask_logits", "threshold": 0.0, "rule": _shown(resolved.spec)},
        "precision": "float32; a runtime that computes in bfloat16 or float16 of its own accord gives slightly other masks",
    }


def _licence(resolved: ResolvedWeights, model_dir: Path) -> str:
    row = entries(model_dir).get(resolved.name)
    if row is not None:
        return row.licence
    if resolved.paths[0].suffix == ".safetensors":
        return read_header(resolved.paths[0])[1].get("licence", _UNKNOWN_LICENCE)
    return _UNKNOWN_LICENCE


def _patch(spec: SamSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "patch_voxels": spec.patch_size,
        "spacing_mm": spec.spacing_mm,
        "channels": spec.encoder.channels,
        "axes": "the scan's own axes in the order and direction nearest to right, anterior, superior (RAS+): along axis 0 "
        "the index grows towards the patient's right-hand side, along axis 1 to the front, along axis 2 to the head. "
        "Nothing is rotated. C order: axis 2 is the fastest",
        "resampling": "linear, at the nodes of the patch; nodes outside the scan hold 0",
    }
    if spec.lattice == "click":
        found["placement"] = (
            f"the first click's voxel centre is a node, at index {spec.patch_size // 2} of {spec.patch_size} of every axis; "
            "of a box the middle"
        )
    else:
        found["placement"] = (
            "the whole scan is resampled first (outer corners aligned, ceil(n * spacing / new spacing) voxels an axis); the "
            "patch is cut around the first click"
        )
    if spec.zoom:
        found["zoom"] = (
            f"the app places a second patch after a first look: up to {MAX_COARSENING:g} times coarser where the mask "
            f"leaves the patch, up to {MAX_REFINING:g} times finer where it is small. A client may do so too; the network "
            "works at every spacing between"
        )
    if spec.intensity == "percentile_rank":
        found["intensity"] = {
            "rule": "two channels in [-1, 1] from the nodes inside the scan; nodes outside it are -1 in both",
            "channel 0": "2 * clip((x - low) / (high - low), 0, 1) - 1; low and high are the 0.5th and 99.5th percentile",
            "channel 1": "2 * r - 1; r is the share of nodes in lower bins plus half the share in the same bin; bin = "
            "trunc(1023 * clip((x - low) / (high - low), 0, 1)) of 1024",
            "constant patch": "-1 throughout",
        }
    else:
        found["intensity"] = {
            "rule": "one channel: (x - mean) / std of all nodes with x > 0 of the patch (std with n - 1); with fewer than two "
            "different such values x - mean of the whole patch"
        }
    return found


def _image(spec: Sam2dSpec) -> dict[str, Any]:
    s = spec.image_size
    return {
        "image_pixels": s,
        "axes": "channel, row (y), column (x); C order",
        "channels": "3: red, green, blue; a grey image three times",
        "source": "8 bits. A CT slice is first brought to 0..255 linearly from a grey window (soft tissue: level 40, width 400 "
        "HU; lung: level -160, width 1500), other scans from the 0.5th and 99.5th percentile of their non-zero voxels; it "
        "is shown as stored, the earlier axis along x",
        "resampling": f"the longest side becomes {s} pixels, the other in proportion, by area interpolation",
        "intensity": {"rule": "(x - min) / max(max - min, 1e-8) over the resized image and all channels, in [0, 1]"},
        "padding": f"0 on the right and below, to {s} x {s}",
        "points": "of a click: (pixel + 0.5) * resized / source - 0.5 along each axis; of a box: trunc(pixel * "
        f"{s} / longest side)",
    }


def _labels(spec: AnySpec) -> dict[str, str]:
    found = {str(POSITIVE): "click on the object", str(NEGATIVE): "click on what is not the object"}
    if isinstance(spec, Sam2dSpec) or spec.decoder.boxes:
        found[str(BOX_LOW)] = "low corner of a box (smallest index along every axis)"
        found[str(BOX_HIGH)] = "high corner of the box, within it; one box at most, right after its low corner"
    padding = "padding: the point means nothing"
    if isinstance(spec, Sam2dSpec):
        padding += ". A list without a box must end with one padding point at (0, 0); a list with a box must not"
    return {**found, str(PADDING): padding}


def _passes3d(spec: SamSpec) -> dict[str, Any]:
    given = {
        "all": "every pass gets all prompts so far (box corners first, then the clicks in their order)",
        "last": "every pass gets the newest click alone",
    }
    found: dict[str, Any] = {
        "rule": f"prompts are replayed in their order, one more in each round; {given[spec.replay]}, and as `previous` the "
        "`logits` of the pass before. So a new click costs one round",
        "first_prompt": spec.first_passes,
        "click_on_the_object": 1,
        "click_on_the_background": spec.background_passes,
        "one_by_one": f"the app gives the first {SINGLE_CLICKS} clicks one by one, later ones {SINGLE_CLICKS} at a time",
    }
    if spec.steady:
        found["steady"] = (
            f"optional, as the app does: with k = {spec.steady:g} * (1 - exp(-d^2 / (2 * s^2))), d the distance of a cell's centre "
            f"to the newest click in voxels, s = {REACH:g} times the click's distance to the nearest cell that is on the other side "
            f"of `before` > 0 than the click's own, at least {NEAREST:g} for a click on the object (times {GROWTH:g} where after > "
            f"before) and {NEAREST_BACKGROUND:g} for one on the background, at most {FARTHEST:g}, and mixed = k * before + (1 - k) * "
            "after: after a click on the object mixed, after one on the background min(before, mixed) replaces `logits`; there mixed "
            "= after in the pieces (26-connected) that the mask loses within one cell of that click, where a piece is at most "
            f"{SMALL_PIECE:g} of the mask"
        )
    return found


def _passes2d(spec: Sam2dSpec) -> dict[str, Any]:
    if not spec.decoder.dense_clicks:
        return {"rule": "one pass with all prompts; `previous` is zeros, which count as no mask"}
    return {
        "rule": "the box alone first, where there is one; then the clicks in their order, one more in each pass, which gets "
        "all prompts so far and as `previous` the `logits` of the pass before",
        "one_by_one": f"the app gives the first {SINGLE_CLICKS} clicks one by one, the rest at once",
    }


def _shown(spec: AnySpec) -> str:
    rule = "the mask is where mask_logits > 0"
    if isinstance(spec, Sam2dSpec):
        return f"{rule}; cut off the padding, resize bilinearly to the source, then threshold"
    if spec.connected:
        rule += "; of several 26-connected parts keep those with a click on the object in or beside them (all where none has)"
    return f"{rule}. To show it on the scan's grid interpolate the logits there linearly, then threshold"
