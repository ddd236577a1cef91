"""The whole click over HTTP: our server and a stock one, side by side on the same scans."""

from __future__ import annotations

import io
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import nrrd
import numpy as np
import torch

from ..sam.benchmark import Row
from ..sam.evaluate import dice
from . import WAYS_BACK
from .ct import Scan, size_text, write_scan
from .servers import APP, OURS, WARM_UP_SHAPE, Server, studies_folder

REFINEMENTS = 2
"""Clicks after the first one on each scan; each request holds all clicks so far, as viewers send them."""

_STOCK_APP = Path(__file__).resolve().parent / "stock_app"
_REFERENCES = {"inverse": "inverse transforms", "resize": "nearest-neighbour resize"}


def measure_click(
    shape: tuple[int, int, int],
    rounds: int,
    threads: int,
    device: torch.device,
    dtype: torch.dtype,
    weights: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times first clicks and refinement clicks.

    Each round takes a scan that no server has seen: a first click, then refinements, each with one click more than the
    request before. The servers answer in turn, another one first each time; both got one small scan to warm up. One more
    refinement asks our server alone what it spent itself.

    Args:
        shape: (I, J, K) of the scans.
        rounds: number of scans.
        threads: CPU threads of each server.
        device: where both networks run.
        dtype: of our weights, for the rows.
        weights: a weights file or a registry name for both; None takes the app's default.
        say: is told what goes on, a line at a time.

    Returns:
        Rows for the first click and the refinement click, against each stock way back to the scan's grid.

    Raises:
        ServerError: a server does not start or answers with an error.
    """
    conf = {"threads": str(threads), "device": device.type} | ({"weights": weights} if weights else {})
    with studies_folder() as studies, ExitStack() as stack:
        clicks = 2 + REFINEMENTS
        scans = [write_scan(studies / "warmup.nii.gz", WARM_UP_SHAPE, clicks, 0)]
        for n in range(rounds):
            scans.append(write_scan(studies / f"scan{n}.nii.gz", shape, clicks, n + 1))
        megabytes = scans[-1].path.stat().st_size / 1e6
        say(f"{rounds} scans of {size_text(shape)} int16, {megabytes:.0f} MB each as .nii.gz")
        home = studies.parent
        stock_app = shutil.copytree(_STOCK_APP, home / "stock_app")  # MONAI Label writes into an app's folder
        ours = stack.enter_context(Server(APP, studies, home / "ours", {"models": OURS, **conf}, threads))
        stock = stack.enter_context(Server(stock_app, studies, home / "stock", conf, threads, [APP]))
        for server in (ours, stock):
            server.wait()
        sides = {OURS: ours} | {f"stock_{way}": stock for way in WAYS_BACK}
        taken: dict[tuple[str, str], list[float]] = defaultdict(list)
        agreement: dict[str, list[float]] = defaultdict(list)
        inside: list[float] = []
        for n, scan in enumerate(scans):  # none is deleted: MONAI Label's own watcher would empty its list for a moment
            _one_scan(scan, sides, n, taken if n else defaultdict(list), agreement if n else defaultdict(list))
            if n:
                inside.append(ours.inside_ms(OURS, scan.name, scan.clicks))
                latest = ", ".join(f"{model} {taken[model, 'first click'][-1]:.0f} ms" for model in sides)
                say(f"scan {n} of {rounds}, first click: {latest}")
    say(f"inside our server, which says so itself, a refinement click takes {median(inside):.1f} ms")
    for way in WAYS_BACK:
        overlap = median(agreement[f"stock_{way}"])
        say(f"our masks overlap those of stock_{way} with a Dice of {overlap:.3f} (only ours may zoom on the object)")
    return [
        Row.of(
            "click", f"{kind} on {size_text(shape)}, stock pipeline with {_REFERENCES[way]}",
            taken[OURS, kind], taken[f"stock_{way}", kind], threads, dtype, device,
        )
        for way in WAYS_BACK for kind in ("first click", "refinement click")
    ]  # fmt: skip


def _one_scan(
    scan: Scan, sides: dict[str, Server], turn: int, taken: dict[tuple[str, str], list[float]], agreement: dict
) -> None:
    """Makes all clicks on one scan; adds to `taken` (model, kind of click) and to `agreement` (model)."""
    models = list(sides)
    for count in range(1, len(scan.clicks)):
        kind = "first click" if count == 1 else "refinement click"
        masks = {}
        for n in range(len(models)):
            model = models[(n + turn + count) % len(models)]
            elapsed, answer = sides[model].click(model, scan.name, scan.clicks[:count])
            taken[model, kind].append(elapsed)
            masks[model] = _voxels(answer)
        for model in models[1:]:
            agreement[model].append(dice(masks[OURS], masks[model]))


def _voxels(answer: bytes) -> np.ndarray:
    """(I, J, K) bool of a NRRD file."""
    file = io.BytesIO(answer)
    header = nrrd.read_header(file)
    return nrrd.read_data(header, file).astype(bool)
