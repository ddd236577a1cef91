"""`benchmark`: how long a click and its stages take, beside a reference on the same machine in the same run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cli import UserError, emit

PARTS = ("encode", "decode", "click")
TABLE = "repmedsam"
_ROUNDS = {"encode": 20, "decode": 20, "click": 5}
_SIZE = "512,512,300"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all of them), or {TABLE}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--size", default=_SIZE, metavar="I,J,K", help="voxels of click's scans (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="runs of each side; for click, scans (default: 20; click 5)")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (default: all cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--weights", help="for click: a weights file or a registry name (default: the model's own)")
    table = parser.add_argument_group(TABLE, "whole cases of the published table, beside LiteMedSAM's way of working")
    table.add_argument("--samples", type=int, help="boxes on slices that each other side runs a round (default: 3)")
    table.add_argument("--spec", default=TABLE, help="our network, with random weights (default: %(default)s, M2.3)")
    table.add_argument("--case", default="", help="only the cases whose name holds this text, such as MR")
    table.add_argument(
        "--variants", action="store_true", help="instead: forms, precisions and batch sizes of our network"
    )
    table.add_argument("--small", type=int, metavar="N", help="cases of 1/N of the size, to see that it works")


def main(args: argparse.Namespace) -> int:
    """Runs the parts one after another; prints a line a row.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    if args.parts == [TABLE]:
        return _table(args)
    parts = args.parts or list(PARTS)
    if not set(parts) <= set(PARTS):
        raise UserError(f"the parts are {', '.join(PARTS)}, and by itself {TABLE}; got {', '.join(parts)}")
    shape = _shape(args.size)
    threads = _positive("--threads", args.threads, os.cpu_count() or 1)
    rounds = {part: _positive("--rounds", args.rounds, _ROUNDS[part]) for part in parts}
    from ..sam.benchmark import measure_decode, measure_encode
    from ..sam.device import choose_device

    device = choose_device(args.device)
    measures: dict[str, Callable[[], list]] = {
        "encode": lambda: measure_encode(rounds["encode"], threads, device),
        "decode": lambda: measure_decode(rounds["decode"], threads, device),
        "click": lambda: _click(shape, rounds["click"], threads, device, args.weights),
    }
    rows: list[dict[str, Any]] = []
    for part in dict.fromkeys(parts):
        for row in measures[part]():
            rows.append(row.as_dict())
            emit(
                f"{row.part:7s} ours {row.ours_ms:9.1f} ms  reference {row.reference_ms:9.1f} ms  {row.ratio:6.1f} times  "
                f"({row.case}; {row.rounds} rounds, {row.threads} threads, {row.dtype}, {row.device})"
            )
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _table(args: argparse.Namespace) -> int:
    """Measures and prints case by case; a line a side."""
    threads = _positive("--threads", args.threads, os.cpu_count() or 1)
    rounds, samples = _positive("--rounds", args.rounds, 3), _positive("--samples", args.samples, 3)
    smaller = _positive("--small", args.small, 1)
    import torch

    from ..sam.benchmark2d import CASES, SIDES, PlainPath, measure_case, random_models
    from ..sam.device import choose_device
    from ..sam.slice_segmenter import SliceSegmenter

    cases = [case for case in CASES if args.case.lower() in case.name.lower()]
    if not cases:
        raise UserError(f"--case takes a part of {'; '.join(case.name for case in CASES)}; got {args.case!r}")
    device = choose_device(args.device)
    torch.set_num_threads(threads)
    try:
        ours, baseline = random_models(args.spec, device)
    except KeyError as error:
        raise UserError(str(error.args[0])) from error
    if args.variants:
        return _variants(ours, rounds, device, args.json)
    plain = {"baseline": PlainPath(baseline), "unfused": PlainPath(ours), "fused": PlainPath(ours, fused=True)}
    segmenter = SliceSegmenter(ours, "random", "random", device)
    rows = []
    for case in cases:
        case = case if smaller == 1 else case.smaller(smaller)
        row = measure_case(case, segmenter, plain, rounds, samples, threads, device)
        rows.append(row.as_dict())
        size = " x ".join(map(str, row.shape))
        emit(f"{row.case}, {size}: {row.pairs} boxes on slices, {row.slices} slices; Dice {row.dice:.4f}")
        for side in SIDES:
            how = f"from {row.pairs_run} of {row.pairs}" if side in row.extrapolated else "run whole"
            emit(f"  {side:9s} {row.seconds[side]:10.2f} s  {row.ratio[side]:7.1f} times  ({how})")
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    emit(f"{rows[-1]['spec']} in {rows[-1]['dtype']}, {threads} threads, {device}; random weights")
    return 0


def _variants(model: Any, rounds: int, device: Any, file: Path | None) -> int:
    from ..sam.benchmark2d import measure_variants

    rows = measure_variants(model, rounds, device)
    for row in rows:
        emit(
            f"{row.name:17s} batch {row.batch:2d}  encode {row.encode_ms:7.1f} ms  decode {row.decode_ms:6.1f} ms of processor "
            f"time a slice  Dice {row.dice:.4f}"
        )
    if file:
        file.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
    return 0


def _click(shape: tuple[int, int, int], rounds: int, threads: int, device: Any, chosen: str | None) -> list:
    from ..benchmarks.click import measure_click
    from ..benchmarks.servers import ServerError
    from ..conf import DEFAULT_MODEL, MODEL_DIR
    from ..sam import weights

    resolved = weights.resolve(DEFAULT_MODEL, MODEL_DIR, configured=chosen)
    dtype = next(weights.load_sam(resolved, "cpu").parameters()).dtype
    try:
        return measure_click(shape, rounds, threads, device, dtype, chosen, say=emit)
    except ServerError as error:
        raise UserError(str(error)) from error


def _shape(text: str) -> tuple[int, int, int]:
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 3 or not all(n.isdecimal() and int(n) >= 16 for n in numbers):
        raise UserError(f"--size takes three whole numbers of at least 16 such as {_SIZE}, got {text!r}")
    return tuple(int(n) for n in numbers)


def _positive(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise UserError(f"{option} takes a whole number of at least 1, got {value}")
    return default if value is None else value
