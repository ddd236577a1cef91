"""`segment` for what is no volume: photographs, and archives of the challenge with their boxes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..cli import UserError, emit
from .segment import chosen_segmenter, parse_click, parse_numbers

DEFAULT = "repmedsam"
SOME_FAILED = 3
"""Exit status when some of several archives could not be segmented."""


def segment_photo(args: argparse.Namespace) -> int:
    """Boxes, or clicks with at most one box, on a photograph -> a PNG: 255 in one object, or the numbers of the boxes.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    from ..sam.boxes import check_boxes
    from ..sam.photo_io import read_photo, write_photo_mask

    if Path(args.out).suffix.lower() != ".png":
        raise UserError(f"--out must end in .png for a photograph, got {args.out!r}")
    boxes = [parse_numbers(text, 4, "--box", "x0,y0,x1,y1") for text in args.box or []]
    clicks = [parse_click(text, 2, "x,y,+ or x,y,- for a photograph") for text in args.click]
    begin = time.perf_counter()
    image = read_photo(args.image)
    height, width = image.shape[:2]
    checked = check_boxes(np.array(boxes, dtype=np.int64).reshape(-1, 4), (width, height))
    if checked.faults:
        raise UserError("; ".join(checked.faults))
    if outside := [(x, y) for x, y, _ in clicks if not (0 <= x < width and 0 <= y < height)]:
        raise UserError(f"a click must lie in the image of {width} x {height} pixels, counted from 0, got {outside[0]}")
    if not boxes and not clicks:
        raise UserError("a photograph needs --box x0,y0,x1,y1 or --click x,y,+")
    segmenter = _flat_segmenter(args)
    found = segmenter.segment_image(image, checked.boxes, clicks)
    mask = np.zeros((height, width), dtype=np.uint8 if len(found) <= 255 else np.uint16)
    for number, answer in enumerate(found, start=1):
        (y, x), (h, w) = answer.corner, answer.mask.shape
        mask[y : y + h, x : x + w][answer.mask] = 255 if len(found) == 1 else number
    write_photo_mask(args.out, mask)
    report = {
        "out": str(args.out),
        "model": args.model or DEFAULT,
        "weights": {"name": segmenter.weights_name, "version": segmenter.weights_version},
        "predicted_iou": [round(float(answer.iou), 4) for answer in found],
        "pixels": [int(answer.mask.sum()) for answer in found],
        "seconds": round(time.perf_counter() - begin, 3),
        "warnings": list(checked.warnings),
    }
    text = f"{report['out']}: {sum(report['pixels'])} pixels of {len(found)} objects, {report['seconds']} s"
    emit(json.dumps(report, indent=2) if args.json else "\n".join([text, *_warnings(report)]))
    return 0


def segment_archives(args: argparse.Namespace, paths: Sequence[Path]) -> int:
    """Challenge archives -> archives with `segs`. A file that cannot be used is reported, and the others go on.

    Returns:
        0, or SOME_FAILED.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    if args.click or args.box:
        raise UserError("an archive holds its own boxes: leave out --box and --click")
    folder, out = Path(args.image).is_dir(), Path(args.out)
    if folder == (out.suffix.lower() == ".npz") or folder and out.resolve() == Path(args.image).resolve():
        wanted = "another folder" if folder else "a file that ends in .npz"
        raise UserError(f"--out must be {wanted} for {args.image}, got {args.out!r}")
    segmenter = _flat_segmenter(args)
    if folder:
        out.mkdir(parents=True, exist_ok=True)
    reports = []
    for path in paths:
        reports.append(_segment_archive(segmenter, path, out / path.name if folder else out))
        if not args.json:
            emit("\n".join([_in_words(reports[-1]), *_warnings(reports[-1])]))
    failed = sum("error" in report for report in reports)
    if args.json:
        weights = {"name": segmenter.weights_name, "version": segmenter.weights_version}
        emit(json.dumps({"model": args.model or DEFAULT, "weights": weights, "cases": reports}, indent=2))
    elif folder:
        emit(f"{len(reports) - failed} of {len(reports)} archives segmented")
    return SOME_FAILED if failed else 0


def _segment_archive(segmenter, path: Path, out: Path) -> dict:
    from ..sam import challenge

    begin = time.perf_counter()
    try:
        case = challenge.read_archive(path)
        segs, warnings = challenge.segment_archive(segmenter, case)
    except (ValueError, MemoryError) as error:
        return {"file": path.name, "error": str(error) or type(error).__name__}
    challenge.write_answer(out, segs, case.spacing)
    return {
        "file": path.name,
        "out": str(out),
        "boxes": len(case.boxes),
        "found": len(np.unique(segs[segs > 0])),
        "seconds": round(time.perf_counter() - begin, 3),
        "warnings": warnings,
    }


def _flat_segmenter(args: argparse.Namespace):
    from ..sam.slice_segmenter import SliceSegmenter

    segmenter = chosen_segmenter(args, args.model or DEFAULT)
    if not isinstance(segmenter, SliceSegmenter):
        raise UserError(f"{args.model} needs a volume; take --model {DEFAULT} for photographs and archives")
    return segmenter


def _in_words(report: dict) -> str:
    if "error" in report:
        return f"{report['file']}: FAILED: {report['error']}"
    return f"{report['out']}: {report['found']} of {report['boxes']} boxes found something, {report['seconds']} s"


def _warnings(report: dict) -> list[str]:
    return [f"warning: {text}" for text in report.get("warnings", [])]
