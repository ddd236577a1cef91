"""How long the network's stages take, beside the published computation on the same machine in the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import build
from .benchmark_rows import BenchRow, dtype_name
from .build import Sam3D, build_sam
from .intensity import normalise
from .metrics import dice
from .networks import attention, layers, transformer, vit3d
from .networks.layers import trilinear
from .networks.prompt_maps import NEGATIVE, POSITIVE
from .segmenter import VolumeSegmenter
from .spec import SamSpec
from .timing import seconds_of
from .zoo import get_spec

OURS = "fastsam3d_compact"
PUBLISHED = "fastsam3d_published_h6"
WARM_UP = 2
_CLICKS = ((0.5, 0.5, 0.5, POSITIVE), (0.8, 0.5, 0.4, NEGATIVE), (0.55, 0.42, 0.5, POSITIVE))
"""Shares of the patch's edge, and the sign: made one after the other for the Dice of both sides' masks."""


@dataclass(frozen=True)
class Row(BenchRow):
    """One comparison; the medians of both sides, taken alternately.

    Attributes:
        part: what was run: encode, decode, click or read.
        case: on what.
        ours_ms, reference_ms: medians in milliseconds.
        ratio: reference_ms / ours_ms, so more is better.
        rounds: measurements on each side.
        threads: CPU threads of each side.
        dtype: of our network's weights.
        device: where both ran.
        dice: the least overlap of both sides' masks of the same prompts, where both run the same network; not in the JSON
            otherwise.
    """

    ours_ms: float
    reference_ms: float
    ratio: float
    rounds: int
    threads: int
    dtype: str
    device: str
    dice: float | None = None

    @classmethod
    def of(
        cls, part: str, case: str, ours_ms: Sequence[float], reference_ms: Sequence[float], threads: int,
        dtype: torch.dtype, device: torch.device | str, dice: float | None = None,
    ) -> Row:  # fmt: skip
        """Takes the medians of both sides' measurements, in milliseconds."""
        ours, reference = median(ours_ms), median(reference_ms)
        return cls(
            part, case, round(ours, 3), round(reference, 3), round(reference / ours, 2), len(ours_ms), threads,
            dtype_name(dtype), str(device), None if dice is None else round(dice, 4),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in super().as_dict().items() if key != "dice" or value is not None}

    def line(self) -> str:
        """For the terminal."""
        overlap = "" if self.dice is None else f", Dice {self.dice:.4f}"
        return (
            f"{self.part:7s} ours {self.ours_ms:9.1f} ms  reference {self.reference_ms:9.1f} ms  {self.ratio:6.1f} times  "
            f"({self.case}; {self.rounds} rounds, {self.ran_with}{overlap})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> milliseconds."""
        return {"ours": self.ours_ms, "reference": self.reference_ms}


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
            elapsed = seconds_of(sides[side])
            if n >= warm_up:
                taken[side].append(1000 * elapsed)
    return taken


@dataclass(frozen=True)
class _Pair:
    """A network as the app serves it, and the same weights in eager float32 as published."""

    spec: SamSpec
    served: VolumeSegmenter
    eager: Sam3D
    patch: Tensor
    kind: str

    @classmethod
    def of(cls, spec: SamSpec, network: Sam3D, device: torch.device | str, kind: str) -> _Pair:
        eager = copy.deepcopy(network).float().eval().requires_grad_(False).to(device)
        served = VolumeSegmenter(network, spec, kind, kind, device)
        served.record_graphs()
        return cls(spec, served, eager, _patch(spec).to(device), kind)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.served.half else torch.float32

    def eager_encode(self, patch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`Sam3D.encode` in eager float32; the published networks with attention as published."""
        with plain_layers() if self.spec.decoder.refine else attention_as_published():
            return self.eager.encode(patch)

    def served_cube(
        self, embedding, points: tuple[Tensor, Tensor], previous: Tensor, passes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """One click as `VolumeSegmenter.segment` answers it: logits for the next click, and of the whole patch."""
        logits, _ = self.served.decode(embedding, points, previous, passes)
        return logits, trilinear(self.served.sharpen(embedding, logits)[0, 0], self.spec.patch_size)

    def eager_cube(
        self, embedding, points: tuple[Tensor, Tensor], previous: Tensor, passes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The same in eager float32."""
        logits = previous
        for _ in range(passes):
            logits = decode_as_published(self.eager, embedding, points, logits)
        sharp = self.eager.sharpen(embedding, logits)
        cube = F.interpolate(sharp, size=(self.spec.patch_size,) * 3, mode="trilinear", align_corners=False)
        return logits, cube[0, 0]

    def clicks(self, count: int) -> tuple[Tensor, Tensor]:
        """The first of the clicks: points (1, N, 3) in patch voxels, labels (1, N)."""
        edge, device = self.spec.patch_size, self.patch.device
        places = [[int(edge * share) for share in click[:3]] for click in _CLICKS[:count]]
        labels = [click[3] for click in _CLICKS[:count]]
        return torch.tensor([places], dtype=torch.float32, device=device), torch.tensor([labels], device=device)

    def dice(self) -> float:
        """The least overlap of both forms' masks after each of the clicks, each form going on from its own logits; with as many
        passes as served."""
        embeddings = self.served.encode(self.patch), self.eager_encode(self.patch)
        before = [torch.zeros(1, 1, *(self.spec.mask_size,) * 3, device=self.patch.device)] * 2
        found = []
        for count in range(1, len(_CLICKS) + 1):
            points, masks = self.clicks(count), []
            background = _CLICKS[count - 1][3] == NEGATIVE
            passes = self.spec.first_passes if count == 1 else self.spec.background_passes if background else 1
            for n, form in enumerate((self.served_cube, self.eager_cube)):
                before[n], cube = form(embeddings[n], points, before[n], passes)
                masks.append((cube > 0).cpu().numpy())
            found.append(dice(*masks))
        return min(found)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attention.attend` as two products and a softmax."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


@contextmanager
def attention_as_published() -> Iterator[None]:
    """Makes all attention run as `eager_attention`, as in the published code."""
    with (
        mock.patch.object(attention, "attend", eager_attention),
        mock.patch.object(transformer, "attend", eager_attention),
    ):
        yield


@contextmanager
def plain_layers() -> Iterator[None]:
    """Makes the encoder of our own networks run as torch's layers are, without what makes them faster here."""
    with (
        mock.patch.object(layers, "gelu", F.gelu),
        mock.patch.object(vit3d, "gelu", F.gelu),
        mock.patch.object(build, "pool_cells", F.avg_pool3d),
    ):
        yield


def decode_as_published(
    model: Sam3D, embedding: tuple[Tensor, tuple[Tensor, ...]], points: tuple[Tensor, Tensor], previous: Tensor
) -> Tensor:
    """`Sam3D.decode` with the layers and the masks of the published decoder, all four of which it computes.

    Source: SAM-Med3D's mask decoder: position encodings anew in each pass, transposed convolutions, every mask token's mask.
    A decoder with parts that the published one has not runs as it is.

    Returns:
        (1, 1, m, m, m) logits of mask 0.
    """
    if model.spec.decoder.refine:
        return model.decode(embedding, points, previous)[0]
    image, decoder = embedding[0], model.mask_decoder
    pe = model.prompt_encoder.dense_position()
    sparse, dense, _ = model.prompt_encoder(points, previous)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
    source, pe = (x.flatten(2).transpose(1, 2) for x in (image + dense, pe))
    with attention_as_published():
        tokens, source = decoder.transformer(source, pe, torch.cat([tokens, sparse], dim=1))
    x = decoder.output_upscaling(source.transpose(1, 2).unflatten(2, image.shape[2:]))
    kernels = [head(tokens[:, 1 + n]) for n, head in enumerate(decoder.output_hypernetworks_mlps)]
    masks = (torch.stack(kernels, dim=1) @ x.flatten(2)).unflatten(2, x.shape[2:])
    decoder.iou_prediction_head(tokens[:, 0])
    return masks[:, :1]


def measure_encode(
    rounds: int, threads: int, device: torch.device | str = "cpu", ours: tuple[SamSpec, Sam3D] | None = None
) -> list[Row]:
    """Patch to embedding, see `_measure`."""
    return _measure("encode", rounds, threads, device, ours)


def measure_decode(
    rounds: int, threads: int, device: torch.device | str = "cpu", ours: tuple[SamSpec, Sam3D] | None = None
) -> list[Row]:
    """One click to logits of the whole patch: prompt encoder, one decoder pass, sharper logits where the model has them,
    upsampling; see `_measure`."""
    return _measure("decode", rounds, threads, device, ours)


@torch.inference_mode()
def _measure(
    part: str, rounds: int, threads: int, device: torch.device | str, ours: tuple[SamSpec, Sam3D] | None
) -> list[Row]:
    """The default model as served against the published student in eager float32, then either against its own eager form.

    Args:
        ours: the default model; None for random weights. The published student's weights are random: nobody here has them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    compact = (get_spec(OURS), build_sam(get_spec(OURS))) if ours is None else ours
    pairs = [
        _Pair.of(*compact, device, "random weights" if ours is None else "its weights"),
        _Pair.of(get_spec(PUBLISHED), build_sam(get_spec(PUBLISHED)), device, "random weights"),
    ]
    sides: list[Callable[[], Any]] = []
    for pair in pairs:
        for encode, cube in ((pair.served.encode, pair.served_cube), (pair.eager_encode, pair.eager_cube)):
            if part == "encode":
                sides.append(lambda encode=encode, patch=pair.patch: encode(patch))
            else:
                zeros = torch.zeros(1, 1, *(pair.spec.mask_size,) * 3, device=device)
                given = encode(pair.patch), pair.clicks(1), zeros
                sides.append(lambda cube=cube, given=given: cube(*given))
    taken = alternate(sides, rounds, min(WARM_UP, rounds))
    (served, own), (published, reference) = taken[:2], taken[2:]
    name, about = pairs[0].spec.name, "against the same in eager float32"
    return [
        Row.of(part, f"{name} against {PUBLISHED}, eager float32", served, reference, threads, pairs[0].dtype, device),
        *(
            Row.of(part, f"{p.spec.name} {about}, {p.kind}", ours, eager, threads, p.dtype, device, p.dice())
            for p, ours, eager in ((pairs[0], served, own), (pairs[1], published, reference))
        ),
    ]


def _patch(spec: SamSpec) -> Tensor:
    """(1, channels, S, S, S) network input: a bright ellipsoid and darker ones in soft tissue, in the noise of a CT."""
    edge = spec.patch_size
    rng = np.random.default_rng(0)
    voxels = 40 + 15 * rng.standard_normal((edge,) * 3, dtype=np.float32)
    axis = (np.arange(edge, dtype=np.float32) + 0.5) / edge
    for centre, radii, height in (
        ((0.5, 0.5, 0.5), (0.22, 0.16, 0.19), 120),
        ((0.8, 0.5, 0.4), (0.1, 0.15, 0.2), -90),
        ((0.2, 0.3, 0.6), (0.12, 0.2, 0.1), 60),
    ):
        i, j, k = (((axis - c) / r) ** 2 for c, r in zip(centre, radii))
        distance = i[:, None, None] + j[:, None] + k
        voxels += height / (1 + np.exp(8 * (distance.clip(0, 8) - 1)))
    return torch.from_numpy(normalise(voxels, np.ones(voxels.shape, dtype=bool), spec.intensity))[None]
