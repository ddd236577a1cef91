"""`benchmark`: how long a click and its stages take, beside a reference on the same machine in the same run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cli import UserError, emit

PARTS = ("encode", "decode", "click", "read", "memory", "scale", "attention", "table")
DEFAULT_PARTS = PARTS[:3]
TABLE = "repmedsam"
_ROUNDS = {"encode": 20, "decode": 20, "attention": 5, "scale": 5, "click": 5, "read": 5, "table": 3, "memory": 1}
_SIZE = "512,512,300"
_LARGE = "512,512,600"
_SIZES = ("128,128,128", "256,256,150", _SIZE)
_COUNTS = "1,5,20,100"
_TOKENS = "512,4096"
_MOST_CLICKS, _MOST_VOLUMES, _MOST_CLIENTS, _MOST_PAUSE, _MOST_CACHE_GB = 150, 10_000, 64, 60.0, 1024.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "parts", nargs="*", metavar="PART",
        help=f"{', '.join(PARTS)} (default: {', '.join(DEFAULT_PARTS)}), or {TABLE}",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the rows as bars, a .png")
    parser.add_argument(
        "--size", metavar="I,J,K", help=f"voxels of the scans of click and read ({_SIZE}), and memory's one ({_LARGE})"
    )
    parser.add_argument("--rounds", type=int, help=f"runs of each side, or scans; by default {_said(_ROUNDS)}")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (default: all cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--weights", help="of ours: a weights file or a registry name (default: the model's own)")
    memory = parser.add_argument_group("memory", "a server with one scan open, and one after many")
    memory.add_argument("--volumes", type=int, help="how many are opened in turn (default: 200)")
    memory.add_argument("--volume-size", default=_SIZE, metavar="I,J,K", help="of those (default: %(default)s)")
    memory.add_argument(
        "--cache-gb", type=float, default=2.0, metavar="GIB",
        help="the server's budget while they are opened, which the first of them should fill (default: %(default)s)",
    )  # fmt: skip
    scale = parser.add_argument_group("scale", "sizes of scans, numbers of clicks, several annotators")
    scale.add_argument("--sizes", nargs="+", default=_SIZES, metavar="I,J,K", help=f"default: {' '.join(_SIZES)}")
    scale.add_argument("--clicks", default=_COUNTS, metavar="N,N,...", help="default: %(default)s")
    scale.add_argument("--clients", type=int, help="annotators, one of whom opens large scans (default: 8)")
    scale.add_argument("--pause", type=float, default=1.0, help="seconds between an annotator's clicks (default: 1)")
    parser.add_argument_group("attention", "one layer of the encoders").add_argument(
        "--tokens", default=_TOKENS, metavar="N,N,...", help="cubes of multiples of 8 (default: %(default)s)"
    )
    parser.add_argument_group("table", "SAM by slices, the teacher, the student, our default").add_argument(
        "--cube", type=int, default=128, help="edge in voxels: a multiple of 32 (default: %(default)s)"
    )
    table = parser.add_argument_group(TABLE, "whole cases of the published table, beside LiteMedSAM's way of working")
    table.add_argument(
        "--samples", type=int, help="boxes on slices that each other side runs a round; of table, slices (default: 3)"
    )
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
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise UserError(f"--json: there is no folder {str(args.json.parent)!r}")
    if args.parts == [TABLE]:
        if args.plot is not None:
            raise UserError(f"--plot draws the rows of {', '.join(PARTS)}, not of {TABLE}")
        return _repmedsam(args)
    parts = tuple(dict.fromkeys(args.parts or DEFAULT_PARTS))
    if not set(parts) <= set(PARTS):
        raise UserError(f"the parts are {', '.join(PARTS)}, and by itself {TABLE}; got {', '.join(parts)}")
    measures = _Measures(args, parts)
    from ..benchmarks.plot import check_plot, draw
    from ..benchmarks.servers import ServerError

    if args.plot is not None:
        check_plot(args.plot)
    rows: list[Any] = []
    with _interrupted_by_sigterm():
        for part in parts:
            try:
                found = measures.of(part)
            except ServerError as error:
                raise UserError(str(error)) from error
            for row in found:
                rows.append(row)
                emit(row.line())
            if args.json is not None:
                _write_rows(rows, args.json)
            if args.plot is not None:
                draw(rows, args.plot)
    return 0


class _Measures:
    """The arguments, checked, and a function for every part.

    Raises:
        UserError, ValueError: an argument is not what it must be, or there are no such weights.
    """

    def __init__(self, args: argparse.Namespace, parts: Sequence[str]) -> None:
        self.shape = _shape("--size", args.size) if args.size else None
        self.threads = _positive("--threads", args.threads, os.cpu_count() or 1)
        self.rounds = {part: _positive("--rounds", args.rounds, _ROUNDS[part]) for part in parts}
        self.volumes = _positive("--volumes", args.volumes, 200, _MOST_VOLUMES)
        self.volume_shape = _shape("--volume-size", args.volume_size)
        self.cache_gb = _between("--cache-gb", args.cache_gb, 0.01, _MOST_CACHE_GB)
        self.sizes = [_shape("--sizes", text) for text in args.sizes]
        self.counts = _numbers("--clicks", args.clicks, _MOST_CLICKS)
        self.clients = _positive("--clients", args.clients, 8, _MOST_CLIENTS)
        self.pause = _between("--pause", args.pause, 0.0, _MOST_PAUSE)
        self.tokens = _numbers("--tokens", args.tokens, 32**3)
        self.samples = _positive("--samples", args.samples, 3)
        self.cube = args.cube
        if self.clients < 2:
            raise UserError(f"--clients takes a whole number of at least 2, got {self.clients}")
        if not set(self.tokens) <= {n**3 for n in (8, 16, 24, 32)}:
            raise UserError(f"--tokens takes 512, 4096, 13824 and 32768, got {args.tokens}")
        if not 32 <= self.cube <= 128 or self.cube % 32:
            raise UserError(f"--cube takes 32, 64, 96 or 128, got {self.cube}")
        from ..conf import DEFAULT_MODEL, MODEL_DIR
        from ..sam import weights
        from ..sam.device import choose_device

        self.device = choose_device(args.device)
        self.chosen = args.weights
        try:
            self.resolved = weights.resolve(DEFAULT_MODEL, MODEL_DIR, configured=args.weights)
        except weights.WeightsError:
            if args.weights is not None or not set(parts) <= {"encode", "decode", "attention"}:
                raise
            self.resolved = None  # stages take as long with random weights

    def of(self, part: str) -> list[Any]:
        """The rows of a part."""
        return getattr(self, f"_{part}")()

    def _size(self, default: str) -> tuple[int, int, int]:
        return self.shape or _shape("--size", default)

    @property
    def _conf(self) -> dict[str, str]:
        chosen = {"weights": self.chosen} if self.chosen else {}
        return {"threads": str(self.threads), "device": self.device.type} | chosen

    @property
    def _dtype(self) -> Any:
        import torch

        from ..sam.device import has_bfloat16

        return torch.bfloat16 if self.resolved.spec.half and has_bfloat16(self.device) else torch.float32

    def _network(self) -> Any:
        from ..sam import weights

        return None if self.resolved is None else (self.resolved.spec, weights.load_sam(self.resolved, "cpu"))

    def _encode(self) -> list:
        from ..sam.benchmark import measure_encode

        return measure_encode(self.rounds["encode"], self.threads, self.device, self._network())

    def _decode(self) -> list:
        from ..sam.benchmark import measure_decode

        return measure_decode(self.rounds["decode"], self.threads, self.device, self._network())

    def _click(self) -> list:
        from ..benchmarks.click import measure_click

        return measure_click(
            self._size(_SIZE), self.rounds["click"], self.threads, self.device, self._dtype, self.chosen, say=emit
        )

    def _read(self) -> list:
        from ..benchmarks.read import measure_read

        return measure_read(
            self._size(_SIZE), self.rounds["read"], self.threads, self.device, self._dtype, self._conf, say=emit
        )

    def _memory(self) -> list:
        from ..benchmarks.memory import measure_memory

        many = self.volumes, self.volume_shape, self.cache_gb
        return measure_memory(self._size(_LARGE), *many, self.threads, self.device, self._conf, say=emit)

    def _scale(self) -> list:
        from ..benchmarks.scale import measure_scale

        asked = self.sizes, self.counts, self.clients, self.pause, self.rounds["scale"]
        return measure_scale(*asked, self.threads, self.device, self._dtype, self._conf, say=emit)

    def _attention(self) -> list:
        from ..benchmarks.attention import measure_attention

        return measure_attention(self.tokens, self.rounds["attention"], self.threads, self.device, say=emit)

    def _table(self) -> list:
        from ..benchmarks.table import measure_table

        given = self.rounds["table"], self.samples, self.threads, self.device, self._network()
        return measure_table(*given, cube=self.cube, say=emit)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM an interruption, as Ctrl-C is, so that servers are ended before the command is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _repmedsam(args: argparse.Namespace) -> int:
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
        rows.append(row)
        size = " x ".join(map(str, row.shape))
        emit(f"{row.case}, {size}: {row.pairs} boxes on slices, {row.slices} slices; Dice {row.dice:.4f}")
        for side in SIDES:
            how = f"from {row.pairs_run} of {row.pairs}" if side in row.extrapolated else "run whole"
            emit(f"  {side:9s} {row.seconds[side]:10.2f} s  {row.ratio[side]:7.1f} times  ({how})")
        if args.json:
            _write_rows(rows, args.json)
    emit(f"{rows[-1].spec} in {rows[-1].dtype}, {threads} threads, {device}; random weights")
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
        _write_rows(rows, file)
    return 0


def _write_rows(rows: Sequence[Any], file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n")


def _shape(option: str, text: str) -> tuple[int, int, int]:
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 3 or not all(n.isdecimal() and 16 <= int(n) <= 4096 for n in numbers):
        raise UserError(f"{option} takes three whole numbers from 16 to 4096 such as {_SIZE}, got {text!r}")
    return tuple(int(n) for n in numbers)


def _numbers(option: str, text: str, most: int) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(n.isdecimal() and 1 <= int(n) <= most for n in numbers):
        raise UserError(f"{option} takes whole numbers from 1 to {most} with commas between them, got {text!r}")
    return sorted({int(n) for n in numbers})


def _positive(option: str, value: int | None, default: int, most: int | None = None) -> int:
    if value is not None and value < 1:
        raise UserError(f"{option} takes a whole number of at least 1, got {value}")
    if value is not None and most is not None and value > most:
        raise UserError(f"{option} takes a whole number of at most {most}, got {value}")
    return default if value is None else value


def _between(option: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # so that nan is refused
        raise UserError(f"{option} takes a number from {low:g} to {high:g}, got {value:g}")
    return value


def _said(numbers: dict[str, int]) -> str:
    return ", ".join(f"{part} {number}" for part, number in numbers.items())
