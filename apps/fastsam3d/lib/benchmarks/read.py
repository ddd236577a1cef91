"""The first click on a scan that no server has seen, beside nibabel's reading of the same file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..sam.benchmark import Row
from .ct import size_text, write_scan
from .servers import OURS, WARM_UP_SHAPE, our_server, studies_folder


def measure_read(
    shape: tuple[int, int, int],
    rounds: int,
    threads: int,
    device: torch.device,
    dtype: torch.dtype,
    conf: dict[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Times the whole first click over HTTP: reading, embedding, mask, answer; and `np.asarray(nibabel.load(file).dataobj)`.

    Each round takes another .nii.gz file, just written and so in the system's page cache; who comes first changes each time.

    Args:
        shape: (I, J, K) of the scans. rounds: number of scans.
        threads: of the server. nibabel has one.
        dtype: of our weights, for the row.
        conf: the server's `--conf` pairs.

    Returns:
        One row; the goal is a ratio of at least 1 / 1.3.

    Raises:
        ServerError: the server does not start or answers with an error.
    """
    with studies_folder() as studies:
        warm_up = write_scan(studies / "warmup.nii.gz", WARM_UP_SHAPE, 1, 0)
        scans = [write_scan(studies / f"scan{n}.nii.gz", shape, 1, n + 1) for n in range(rounds)]
        ours: list[float] = []
        reference: list[float] = []
        with our_server(studies, conf, threads) as server:
            server.click(OURS, warm_up.name, warm_up.clicks)
            for n, scan in enumerate(scans):
                sides = [
                    lambda scan=scan: ours.append(server.click(OURS, scan.name, scan.clicks)[0]),
                    lambda scan=scan: reference.append(_read(scan.path)),
                ]
                for side in sides if n % 2 else sides[::-1]:
                    side()
                say(f"scan {n + 1} of {rounds}: first click {ours[-1]:.0f} ms, nibabel {reference[-1]:.0f} ms")
                scan.path.unlink()
    case = f"first click on {size_text(shape)}, nibabel reads the same .nii.gz"
    return [Row.of("read", case, ours, reference, threads, dtype, device)]


def _read(path: Path) -> float:
    """Milliseconds for all voxels."""
    begin = time.perf_counter()
    voxels = np.asarray(nib.load(path).dataobj)
    elapsed = 1000 * (time.perf_counter() - begin)
    if voxels.dtype != np.int16:
        raise RuntimeError(f"nibabel gave {voxels.dtype} for int16 voxels")
    return elapsed
