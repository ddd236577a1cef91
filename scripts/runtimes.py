"""Eight slices through RepMedSAM's encoder by other CPU runtimes beside torch as served, alternately in one process.

    .venv/bin/pip install --no-deps -r requirements-export.txt
    .venv/bin/python scripts/runtimes.py [--spec repmedsam] [--rounds 10] [--threads 2]

Random weights; the largest difference of each embedding from the fused encoder's in float32 is a share of its largest value.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "apps" / "fastsam3d"))

from lib.sam.benchmark import alternate  # noqa: E402
from lib.sam.benchmark2d import random_models  # noqa: E402
from lib.sam.networks.fuse import fused_encoder  # noqa: E402

SLICES = 8


def served(encoder: torch.nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """As `SliceNetwork` runs it: bfloat16, channels last."""
    half = encoder.bfloat16().to(memory_format=torch.channels_last)
    pixels = images.bfloat16().contiguous(memory_format=torch.channels_last)
    return lambda: half(pixels)


def onnx_runtime(file: Path, images: torch.Tensor, threads: int) -> Callable[[], np.ndarray]:
    """ONNX Runtime in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, given)[0]


def openvino(file: Path, images: torch.Tensor, threads: int, precision: str) -> Callable[[], np.ndarray]:
    """OpenVINO, asked for a precision."""
    from openvino import Core

    core = Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(str(file), "CPU", settings)
    given = images.numpy()
    return lambda: compiled(given)[0]


def main() -> int:
    """Prints a line a runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default="repmedsam")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = random_models(args.spec)[0]
    encoder, edge = fused_encoder(model.image_encoder), model.spec.image_size
    images = torch.rand(SLICES, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "encoder.onnx"
        expected = encoder(images).numpy()
        with torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(encoder, (images.clone(),), str(file), dynamo=True, verbose=False)
        sides = {
            "torch, bfloat16, as served": served(fused_encoder(model.image_encoder), images),
            "torch, float32": lambda: encoder(images),
            "ONNX Runtime, float32": onnx_runtime(file, images, args.threads),
            "OpenVINO, float32": openvino(file, images, args.threads, "f32"),
            "OpenVINO, bfloat16": openvino(file, images, args.threads, "bf16"),
        }
        taken = alternate(list(sides.values()), args.rounds)
        for (name, side), times in zip(sides.items(), taken):
            found = side()
            found = found.float().numpy() if isinstance(found, torch.Tensor) else np.asarray(found, dtype=np.float32)
            apart = np.abs(found - expected).max() / np.abs(expected).max()
            sys.stdout.write(f"{name:27s} {median(times) / SLICES:7.1f} ms a slice   difference {apart:.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
