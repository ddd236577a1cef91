"""`export`: encoder and decoder as files for other programs, checked, with a description."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ..cli import UserError, emit
from ..conf import DEFAULT_MODEL, MODEL_DIR, MODELS, weights_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{', '.join(MODELS)} (default: %(default)s)")
    parser.add_argument("--weights", help="a weights file, a folder or a registry name (default: the model's own)")
    parser.add_argument("--format", default="onnx", help="onnx or openvino (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder for the files and model.json")
    parser.add_argument("--json", action="store_true", help="print what model.json says")


def main(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    from ..sam import weights
    from ..sam.export import check_ready, export
    from ..sam.export_words import describe

    if args.model not in MODELS:
        raise UserError(f"--model takes {', '.join(MODELS)}, got {args.model!r}")
    check_ready(args.format, args.out)
    begin = time.perf_counter()
    resolved = weights.resolve(weights_model(args.model), MODEL_DIR, configured=args.weights)
    model = weights.load_sam(resolved)
    report = export(model, describe(args.model, resolved, MODEL_DIR), args.format, args.out)
    words = _in_words(report, args.out, time.perf_counter() - begin)
    if weights.has_router(resolved):
        words += (
            f"\n{resolved.name} has two networks; this is the one that was trained, for all clicks (docs/training.md)"
        )
    emit(json.dumps(report, indent=2) if args.json else words)
    return 0


def _in_words(report: dict, out: Path, seconds: float) -> str:
    steps = report["check"]["steps"]
    worst = max(max(step["difference"].values()) for step in steps)
    dice = min(step["dice"] for step in steps if "dice" in step)
    files = [name for part in ("encoder", "decoder") for name in report[part]["files"]]
    return "\n".join(
        [
            f"{out}: {', '.join(files)}, model.json ({seconds:.0f} s)",
            f"{report['model']} with {report['weights']['name']} ({report['weights']['version']}), licence: "
            f"{report['weights']['licence']}",
            f"checked against torch with {len(steps) - 1} sets of prompts: largest difference {worst:.1g} of the largest "
            f"value, smallest Dice of the masks {dice:.5f}",
            "not for clinical use",
        ]
    )
