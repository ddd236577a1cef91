"""`segment`: clicks and boxes on a volume, a photograph or challenge archives become mask files, without any server."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ..cli import UserError, emit

_MASK_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_ARCHIVE = ".npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "image",
        help="a volume (.nii, .nii.gz, .nrrd, .mha, .mhd), a folder with one DICOM series, a photograph (.png, .jpg, .tif, "
        ".bmp), or challenge archives: an .npz file with imgs and boxes, or a folder of them",
    )
    parser.add_argument(
        "--click",
        action="append",
        default=[],
        metavar="i,j,k,+",
        help="a voxel (column, row, slice, from 0; of a photograph x,y) of the structure (+) or of what is not it (-); "
        "may be repeated",
    )
    parser.add_argument(
        "--box",
        action="append",
        metavar="i0,i1,j0,j1,k0,k1",
        help="a box of voxels around the structure; of a photograph x0,y0,x1,y1, and may be repeated",
    )
    parser.add_argument(
        "--out",
        required=True,
        help="where to write the mask: .nii.gz, .nii or .nrrd; for a photograph .png; for archives .npz or a folder",
    )
    parser.add_argument(
        "--model", help="fastsam3d, sam_med3d; for slices repmedsam, litemedsam, for one slice repmedsam_2d, litemedsam_2d "
        "(default: fastsam3d for a volume, else repmedsam)",
    )  # fmt: skip
    parser.add_argument("--weights", help="a weights file, a folder or a registry name (default: the model's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--window", help="of the models for slices: auto, soft tissue, lung, bone, brain or percentiles"
    )
    parser.add_argument(
        "--extent", help="of the models for slices: how far an object without a box is followed, slices"
    )
    parser.add_argument(
        "--uncertainty",
        metavar="FILE",
        help="of the models for volumes: also write where the mask is unsure, a map from 0 to 1 (.nii.gz, .nii or .nrrd)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    from ..sam.photo_io import SUFFIXES
    from . import segment_flat

    image = Path(args.image)
    archives = sorted(image.glob(f"*{_ARCHIVE}")) if image.is_dir() else []
    flat = bool(archives) or image.suffix.lower() in (_ARCHIVE, *SUFFIXES)
    if flat and args.uncertainty:
        raise UserError("--uncertainty is for volumes; photographs and archives have no such map")
    if archives or image.suffix.lower() == _ARCHIVE:
        return segment_flat.segment_archives(args, archives or [image])
    if image.suffix.lower() in SUFFIXES:
        return segment_flat.segment_photo(args)
    return _segment_volume(args)


def _segment_volume(args: argparse.Namespace) -> int:
    request = parse_arguments(args)
    from ..conf import AppConf
    from ..infers.request import CLICKS, parse_prompts, parse_slice_prompts
    from ..sam.mask_io import write_map, write_mask
    from ..sam.session import SessionStore
    from ..sam.slice_segmenter import SliceSegmenter

    begin = time.perf_counter()
    name = args.model or "fastsam3d"
    unsure = None
    store = SessionStore(AppConf().cache_bytes)
    with store.open(args.image, args.image) as session:
        segmenter = chosen_segmenter(args, name)
        grid = session.volume.grid
        if isinstance(segmenter, SliceSegmenter):
            if args.uncertainty:
                raise UserError(f"--uncertainty needs a model for volumes, and {name} is one for slices")
            prompts, options = parse_slice_prompts({**request, "points": CLICKS}, grid, single=name.endswith("_2d"))
            result = segmenter.segment(session, prompts, options)
        else:
            prompts = parse_prompts(request, grid)
            result = segmenter.segment(session, prompts)
            if args.uncertainty:
                from ..sam.uncertainty import uncertainty_map

                unsure = uncertainty_map(segmenter, session, prompts)
    write_mask(args.out, result.full_mask(), result.grid)
    if unsure is not None:
        write_map(args.uncertainty, unsure.full(), result.grid)
    report = {
        "out": str(args.out),
        "model": name,
        "weights": {"name": result.weights, "version": result.version},
        "predicted_iou": round(float(result.iou), 4),
        "voxels": int(result.mask_box.sum()),
        "millilitres": round(float(result.mask_box.sum() * result.grid.spacing_mm.prod() / 1000), 3),
        "seconds": round(time.perf_counter() - begin, 3),
        "timings_ms": {stage: round(ms, 1) for stage, ms in result.timings_ms.items()},
        "warnings": list(dict.fromkeys(result.warnings)),
    }
    if unsure is not None:
        report["uncertainty"] = {
            "file": str(args.uncertainty),
            "disagreement": round(unsure.disagreement, 4),
            "most_uncertain_ijk": list(unsure.most_uncertain_ijk()),
        }
    emit(json.dumps(report, indent=2) if args.json else _in_words(report))
    return 0


def chosen_segmenter(args: argparse.Namespace, model: str):
    """The segmenter of a model with the weights and on the device that were asked for.

    Raises:
        UserError: there is no such model. WeightsError: there are no usable weights. ValueError: no such device.
    """
    from ..conf import MODEL_DIR, MODELS, weights_model
    from ..sam import weights
    from ..sam.device import choose_device
    from ..sam.segmenters import load_segmenter

    if model not in MODELS:
        raise UserError(f"--model takes {', '.join(MODELS)}, got {model!r}")
    resolved = weights.resolve(weights_model(model), MODEL_DIR, configured=args.weights)
    return load_segmenter(resolved, choose_device(args.device))


def parse_arguments(args: argparse.Namespace) -> dict[str, list]:
    """Turns the options into the form that clients send.

    Raises:
        UserError: for text that is not of the stated form.
    """
    if not str(args.out).endswith(_MASK_EXTENSIONS):
        raise UserError(f"--out must end in {', '.join(_MASK_EXTENSIONS)}, got {args.out!r}")
    request: dict[str, list] = {"foreground": [], "background": []}
    for text in args.click:
        *place, sign = parse_click(text, 3, "i,j,k,+ or i,j,k,-")
        request["foreground" if sign else "background"].append(place)
    if args.uncertainty and not str(args.uncertainty).endswith(_MASK_EXTENSIONS):
        raise UserError(f"--uncertainty must end in {', '.join(_MASK_EXTENSIONS)}, got {args.uncertainty!r}")
    if len(args.box or []) > 1:
        raise UserError(f"--box may be given once for a volume, got {len(args.box)}; run once for each structure")
    for text in args.box or []:
        request["box"] = parse_numbers(text, 6, "--box", "i0,i1,j0,j1,k0,k1")
    request |= {key: getattr(args, key) for key in ("window", "extent") if getattr(args, key, None) is not None}
    return request


def parse_click(text: str, axes: int, form: str) -> tuple:
    """Whole numbers, then True for + and False for -.

    Raises:
        UserError: for text that is not of that form.
    """
    *numbers, sign = (part.strip() for part in text.split(","))
    if sign not in ("+", "-") or len(numbers) != axes:
        raise UserError(f"--click takes {form} (whole voxel indices), got {text!r}")
    return (*parse_numbers(",".join(numbers), axes, "--click", form), sign == "+")


def parse_numbers(text: str, count: int, option: str, form: str) -> list[int]:
    """So many whole numbers.

    Raises:
        UserError: for text that is not of that form.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} takes {form} (whole voxel indices), got {text!r}") from error
    if len(numbers) != count:
        raise UserError(f"{option} takes {form}, got {text!r}")
    return numbers


def _in_words(report: dict) -> str:
    lines = [
        f"{report['out']}: {report['voxels']} voxels, {report['millilitres']} ml, predicted IoU {report['predicted_iou']}",
        f"{report['model']} with {report['weights']['name']} ({report['weights']['version']}), {report['seconds']} s",
    ]
    if "uncertainty" in report:
        place = ",".join(map(str, report["uncertainty"]["most_uncertain_ijk"]))
        lines.append(f"{report['uncertainty']['file']}: uncertainty, largest at {place}")
    return "\n".join(lines + [f"warning: {text}" for text in report["warnings"]])
