"""`segment`: clicks and a box on a volume become a mask file, without any server."""

from __future__ import annotations

import argparse
import json
import time

from ..cli import UserError, emit

_MASK_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("image", help="a volume (.nii, .nii.gz, .nrrd, .mha, .mhd) or a folder with one DICOM series")
    parser.add_argument(
        "--click",
        action="append",
        default=[],
        metavar="i,j,k,+",
        help="a voxel (column, row, slice, from 0) of the structure (+) or of what is not it (-); may be repeated",
    )
    parser.add_argument("--box", metavar="i0,i1,j0,j1,k0,k1", help="a box of voxels around the structure")
    parser.add_argument("--out", required=True, help="where to write the mask: .nii.gz, .nii or .nrrd")
    parser.add_argument("--model", default="fastsam3d", help="name of the model (default: %(default)s)")
    parser.add_argument("--weights", help="a weights file, a folder or a registry name (default: the model's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    request = parse_arguments(args)
    from ..conf import MODEL_DIR, AppConf
    from ..infers.request import parse_prompts
    from ..sam import weights
    from ..sam.device import choose_device
    from ..sam.preprocess import write_mask
    from ..sam.segmenter import VolumeSegmenter
    from ..sam.session import SessionStore

    begin = time.perf_counter()
    device = choose_device(args.device)
    store = SessionStore(AppConf().cache_bytes)
    with store.open(args.image, args.image) as session:
        prompts = parse_prompts(request, session.volume.grid)
        resolved = weights.resolve(args.model, MODEL_DIR, configured=args.weights)
        network = weights.load_sam(resolved, device)
        segmenter = VolumeSegmenter(network, resolved.spec, resolved.name, resolved.version, device)
        result = segmenter.segment(session, prompts)
        warnings = [*session.volume.warnings, *result.warnings]
    write_mask(args.out, result.full_mask(), result.grid)
    report = {
        "out": str(args.out),
        "model": args.model,
        "weights": {"name": result.weights, "version": result.version},
        "predicted_iou": round(float(result.iou), 4),
        "voxels": int(result.mask_box.sum()),
        "millilitres": round(float(result.mask_box.sum() * result.grid.spacing_mm.prod() / 1000), 3),
        "seconds": round(time.perf_counter() - begin, 3),
        "timings_ms": {stage: round(ms, 1) for stage, ms in result.timings_ms.items()},
        "warnings": list(dict.fromkeys(warnings)),
    }
    emit(json.dumps(report, indent=2) if args.json else _in_words(report))
    return 0


def parse_arguments(args: argparse.Namespace) -> dict[str, list]:
    """Turns --click and --box into the form that clients send.

    Raises:
        UserError: for text that is not of the stated form.
    """
    if not str(args.out).endswith(_MASK_EXTENSIONS):
        raise UserError(f"--out must end in {', '.join(_MASK_EXTENSIONS)}, got {args.out!r}")
    request: dict[str, list] = {"foreground": [], "background": []}
    for text in args.click:
        *numbers, sign = (part.strip() for part in text.split(","))
        if sign not in ("+", "-") or len(numbers) != 3:
            raise UserError(f"--click takes i,j,k,+ or i,j,k,- (whole voxel indices), got {text!r}")
        request["foreground" if sign == "+" else "background"].append(_indices(numbers, "--click", text))
    if args.box is not None:
        numbers = [part.strip() for part in args.box.split(",")]
        if len(numbers) != 6:
            raise UserError(f"--box takes i0,i1,j0,j1,k0,k1, got {args.box!r}")
        request["box"] = _indices(numbers, "--box", args.box)
    return request


def _indices(numbers: list[str], option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in numbers]
    except ValueError as error:
        raise UserError(f"{option} takes whole voxel indices, got {text!r}") from error


def _in_words(report: dict) -> str:
    lines = [
        f"{report['out']}: {report['voxels']} voxels, {report['millilitres']} ml, predicted IoU {report['predicted_iou']}",
        f"{report['model']} with {report['weights']['name']} ({report['weights']['version']}), {report['seconds']} s",
    ]
    return "\n".join(lines + [f"warning: {text}" for text in report["warnings"]])
