"""Counts the threads of a process that answers as a server does: after answers to one request thread, and to all of them.

python thread_count.py APP FOLDER
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import nibabel as nib
import numpy as np
import torch
from lib.conf import MODEL_DIR
from lib.sam import weights
from lib.sam.compute import start_compute_thread
from lib.sam.prompts import Box, Click, Prompts
from lib.sam.router import RoutedSegmenter, Router
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.segmenters import load_segmenter
from lib.sam.session import SessionStore
from lib.sam.uncertainty import uncertainty_map

CLICKS = (Click((30, 30, 20)), Click((12, 12, 30), False), Click((40, 30, 22)))


def answer(volumes, slices, path: Path) -> None:
    with SessionStore(2**30).open("scan", path) as session:
        for n in range(1, len(CLICKS) + 1):
            volumes.segment(session, Prompts(CLICKS[:n]))
        uncertainty_map(volumes, session, Prompts(CLICKS))
        slices.segment(session, Prompts(CLICKS, Box((20, 20, 10), (44, 40, 30))))


def routed(base: VolumeSegmenter) -> RoutedSegmenter:
    """The same network twice, and a router that was fitted to as much as a training describes."""
    image, skips = base.encode(torch.zeros(1, base.spec.encoder.channels, *(base.spec.patch_size,) * 3))
    width = 4 * sum(features.shape[1] for features in (image, *skips)) + 2
    samples, taught = np.random.default_rng(0).normal(0, 1, (400, width)), np.arange(400) % 3 == 0
    router = Router.fit(samples, taught, np.zeros(400))
    return RoutedSegmenter(base.model, base, router, (), "two", "2")


def main(folder: Path) -> None:
    torch.set_num_threads(3)
    start_compute_thread()
    volumes, slices = (load_segmenter(weights.resolve(name, MODEL_DIR)) for name in ("fastsam3d", "repmedsam"))
    volumes = routed(volumes)
    values = np.random.default_rng(0).normal(40, 20, (70, 60, 40))
    values[20:44, 20:40, 10:30] += 80
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0])), folder / "scan.nii.gz")
    found = []
    with ThreadPoolExecutor(4) as requests:
        together = threading.Barrier(4)
        list(requests.map(lambda _: together.wait(60), range(4)))
        requests.submit(answer, volumes, slices, folder / "scan.nii.gz").result()
        found.append(len(os.listdir("/proc/self/task")))
        for made in [requests.submit(answer, volumes, slices, folder / "scan.nii.gz") for _ in range(8)]:
            made.result()
        found.append(len(os.listdir("/proc/self/task")))
    sys.stdout.write(" ".join(map(str, found)))


main(Path(sys.argv[2]))
