"""How long the network's stages take, beside the published computation on the same machine in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .build import Sam3D, build_sam
from .networks.layers import trilinear
from .networks.prompt_maps import POSITIVE
from .segmenter import VolumeSegmenter
from .spec import SamSpec
from .zoo import get_spec

OURS = "fastsam3d_compact"
PUBLISHED = "fastsam3d_published_h6"
WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """One comparison; the medians of both sides, taken alternately.

    Attributes:
        part: what was run: encode, decode or click.
        case: on what.
        ours_ms, reference_ms: medians in milliseconds.
        ratio: reference_ms / ours_ms, so more is better.
        rounds: measurements on each side.
        threads: CPU threads of each side.
        dtype: of our network's weights.
        device: where both ran.
    """

    part: str
    case: str
    ours_ms: float
    reference_ms: float
    ratio: float
    rounds: int
    threads: int
    dtype: str
    device: str

    @classmethod
    def of(
        cls, part: str, case: str, ours_ms: Sequence[float], reference_ms: Sequence[float], threads: int,
        dtype: torch.dtype, device: torch.device | str,
    ) -> Row:  # fmt: skip
        """Takes the medians of both sides' measurements, in milliseconds."""
        ours, reference = median(ours_ms), median(reference_ms)
        return cls(
            part, case, round(ours, 3), round(reference, 3), round(reference / ours, 2), len(ours_ms), threads,
            str(dtype).removeprefix("torch."), str(device),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def alternate(sides: Sequence[Callable[[], Any]], rounds: int, warm_up: int = WARM_UP) -> list[list[float]]:
    """Runs all sides in turn, the first side of a round being another one each time.

    Args:
        sides: what to time; what they start on a CUDA device is waited for.
        rounds: counted runs of each side.
        warm_up: runs of each side before those.

    Returns:
        Milliseconds of each counted run, one list a side.
    """
    taken: list[list[float]] = [[] for _ in sides]
    for n in range(warm_up + rounds):
        for turn in range(len(sides)):
            side = (n + turn) % len(sides)
            _wait()
            begin = time.perf_counter()
            sides[side]()
            _wait()
            if n >= warm_up:
                taken[side].append(1000 * (time.perf_counter() - begin))
    return taken


@torch.inference_mode()
def measure_encode(rounds: int, threads: int, device: torch.device | str = "cpu") -> list[Row]:
    """Patch to embedding: the default model as it is served, against the published student in eager float32."""
    torch.set_num_threads(threads)
    sides = []
    for spec, model in _models(device):
        patch = _patch(spec, device)
        sides.append(lambda model=model, patch=patch: model.encode(patch))
    ours, reference = alternate(sides, rounds)
    return [Row.of("encode", _case(), ours, reference, threads, _dtype(device), device)]


@torch.inference_mode()
def measure_decode(rounds: int, threads: int, device: torch.device | str = "cpu") -> list[Row]:
    """One click to logits of the whole patch: prompt encoder, mask decoder, upsampling."""
    torch.set_num_threads(threads)
    sides = []
    for spec, model in _models(device):
        embedding = model.encode(_patch(spec, device))
        sides.append(lambda model=model, spec=spec, embedding=embedding: _click(model, spec, embedding, device))
    ours, reference = alternate(sides, rounds)
    return [Row.of("decode", _case(), ours, reference, threads, _dtype(device), device)]


def _models(device: torch.device | str) -> list[tuple[SamSpec, VolumeSegmenter | Sam3D]]:
    """Ours as the segmenter serves it, and the reference; random weights, as values do not change the time."""
    torch.manual_seed(0)
    ours, published = get_spec(OURS), get_spec(PUBLISHED)
    served = VolumeSegmenter(build_sam(ours), ours, "random", "random", device)
    return [(ours, served), (published, build_sam(published).float().eval().to(device))]


def _click(
    model: VolumeSegmenter | Sam3D, spec: SamSpec, embedding: tuple[Tensor, tuple[Tensor, ...]], device
) -> Tensor:
    centre = [[[spec.patch_size // 2] * 3]]
    points = torch.tensor(centre, dtype=torch.float32, device=device), torch.tensor([[POSITIVE]], device=device)
    previous = torch.zeros(1, 1, *(spec.mask_size,) * 3, device=device)
    logits, _ = model.decode(embedding, points, previous)
    if isinstance(model, VolumeSegmenter):
        return trilinear(logits[0, 0], spec.patch_size)
    return F.interpolate(logits, size=(spec.patch_size,) * 3, mode="trilinear", align_corners=False)


def _patch(spec: SamSpec, device: torch.device | str) -> Tensor:
    return torch.randn(1, spec.encoder.channels, *(spec.patch_size,) * 3, device=device)


def _dtype(device: torch.device | str) -> torch.dtype:
    return torch.bfloat16 if _models(device)[0][1].half else torch.float32


def _case() -> str:
    return f"{OURS} against {PUBLISHED}, eager float32"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
