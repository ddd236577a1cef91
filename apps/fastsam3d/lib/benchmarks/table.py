"""The comparison of FastSAM3D's paper on one cube: SAM slice by slice, the 3D teacher, the published student, our default.

Only times: every network but the last has random weights, which take as long as trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..sam.benchmark import PUBLISHED, alternate, attention_as_published, decode_as_published, eager_attention
from ..sam.benchmark_rows import BenchRow
from ..sam.build import Sam3D, build_sam
from ..sam.networks.attention import DenseAttention, position_bias
from ..sam.networks.layers import trilinear
from ..sam.networks.prompt_maps import POSITIVE
from ..sam.segmenter import VolumeSegmenter
from ..sam.spec import SamSpec
from ..sam.zoo import get_spec

CUBE = 128
TEACHER = "sam_med3d"
_SAM_PIXELS = 1024
_SAM_2D_CASE = f"SAM ViT-B, {_SAM_PIXELS}x{_SAM_PIXELS}, slice by slice, random weights"
_INSTALL = "pip install transformers"


@dataclass(frozen=True)
class TableRow(BenchRow):
    """One model's way to a mask of the cube: everything encoded, then one click.

    Attributes:
        part: "table". case: the model and its form.
        encode_ms, decode_ms: medians; of all slices for the 2D model, each with a click. total_ms: their sum.
        ratio: total_ms of the published student / total_ms, so more is better.
        parameters: millions.
        slices: of the cube, for a model that sees slices, else 0. slices_run: how many of them were run.
        extrapolated: whether the times are those of slices_run, times slices / slices_run.
        missing: why nothing was run; then all times are None. None otherwise.
    """

    encode_ms: float | None
    decode_ms: float | None
    total_ms: float | None
    ratio: float | None
    parameters: float
    slices: int
    slices_run: int
    extrapolated: bool
    rounds: int
    threads: int
    dtype: str
    device: str
    missing: str | None = None

    def line(self) -> str:
        """For the terminal."""
        if self.missing is not None:
            return f"{self.part:7s} not run: {self.missing} ({self.case})"
        how = f", from {self.slices_run} of {self.slices} slices" if self.extrapolated else ""
        return (
            f"{self.part:7s} encode {self.encode_ms:10.1f} ms  decode {self.decode_ms:8.1f} ms  {self.ratio:7.4f} times  "
            f"({self.case}{how}; {self.parameters:.1f} M parameters, {self.rounds} rounds, {self.ran_with})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> milliseconds."""
        return {} if self.missing is not None else {"encode": self.encode_ms, "decode": self.decode_ms}


@dataclass(frozen=True)
class _Side:
    """One row to be: what encodes, what decodes a click given what was encoded, and how much of the cube that is."""

    case: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    parameters: int
    dtype: str = "float32"
    slices: int = 0
    slices_run: int = 0


@torch.inference_mode()
def measure_table(
    rounds: int,
    samples: int,
    threads: int,
    device: torch.device | str,
    ours: tuple[SamSpec, Sam3D],
    cube: int = CUBE,
    say: Callable[[str], None] = lambda text: None,
) -> list[TableRow]:
    """Times all models in turn, encoders first, then a click on what each has encoded.

    Args:
        rounds: runs of each model.
        samples: slices that the 2D model is run on; its times are extrapolated from them.
        ours: the default model.
        cube: edge of the cube: 128, or less to see that it works.
        say: is told what goes on.

    Raises:
        ValueError: cube is no multiple of 32.
    """
    if cube < 32 or cube % 32:
        raise ValueError(f"a cube's edge is a multiple of 32, got {cube}")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device(device)
    sides: list[_Side] = []
    rows: list[TableRow] = []
    slices, problem = _sam_2d(cube, min(samples, cube), device)
    if slices is None:
        nothing = TableRow(
            "table", _SAM_2D_CASE, None, None, None, None, 0.0, cube, 0, False, 0, threads, "float32", str(device), problem,
        )  # fmt: skip
        rows.append(nothing)
    else:
        sides.append(slices)
    teacher = resized(get_spec(TEACHER), cube)
    sides.append(_eager_side(f"{TEACHER}, eager float32 as published, with its padding", teacher, device, padded=True))
    sides.append(_eager_side(f"{TEACHER}, eager float32, without the padding", teacher, device))
    sides.append(_eager_side(f"{PUBLISHED}, eager float32", resized(get_spec(PUBLISHED), cube), device))
    sides.append(_served_side(f"{PUBLISHED}, as served", resized(get_spec(PUBLISHED), cube), None, device))
    spec = resized(ours[0], cube)
    sides.append(_served_side(f"{spec.name}, as served", spec, ours[1] if cube == CUBE else None, device))
    warm_up = min(1, rounds - 1)
    say(f"{len(sides)} encoders, {rounds} rounds")
    encode = alternate([side.encode for side in sides], rounds, warm_up)
    say(f"{len(sides)} decoders, {rounds} rounds")
    decoders = []
    for side in sides:
        encoded = side.encode()
        decoders.append(lambda side=side, encoded=encoded: side.decode(encoded))
    decode = alternate(decoders, rounds, 1)
    found = []
    for side, encode_ms, decode_ms in zip(sides, encode, decode):
        times = side.slices / side.slices_run if side.slices_run else 1.0
        found.append((side, times * median(encode_ms), times * median(decode_ms)))
    reference = next(e + d for side, e, d in found if side.case.startswith(f"{PUBLISHED}, eager"))
    return rows + [
        TableRow(
            "table", side.case, round(e, 2), round(d, 2), round(e + d, 2), round(reference / (e + d), 4),
            round(side.parameters / 1e6, 1), side.slices, side.slices_run, side.slices_run < side.slices, rounds, threads,
            side.dtype, str(device),
        )
        for side, e, d in found
    ]  # fmt: skip


def resized(spec: SamSpec, cube: int) -> SamSpec:
    """The same model for a smaller cube; padded windows shrink with it."""
    encoder = spec.encoder
    window = encoder.window * cube // encoder.image_size
    return replace(spec, encoder=replace(encoder, image_size=cube, window=window))


def _click(spec: SamSpec, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """One click in the middle, and the logits before it."""
    at = torch.tensor([[[spec.patch_size // 2] * 3]], dtype=torch.float32, device=device)
    zeros = torch.zeros(1, 1, *(spec.mask_size,) * 3, device=device)
    return (at, torch.tensor([[POSITIVE]], device=device)), zeros


def _eager_side(case: str, spec: SamSpec, device: torch.device, padded: bool = False) -> _Side:
    model = build_sam(spec).eval().requires_grad_(False).to(device)
    if padded:
        for block in model.image_encoder.blocks:
            if isinstance(block.attn, DenseAttention) and block.attn.window > spec.encoder.grid:
                block.attn = PaddedAttention(block.attn)
    patch = torch.randn(1, spec.encoder.channels, *(spec.patch_size,) * 3, device=device)
    points, zeros = _click(spec, device)

    def decode(embedding) -> Tensor:
        logits = decode_as_published(model, embedding, points, zeros)
        return F.interpolate(logits, size=(spec.patch_size,) * 3, mode="trilinear", align_corners=False)

    def encode() -> Any:
        with attention_as_published():
            return model.encode(patch)

    return _Side(case, encode, decode, _parameters(model))


def _served_side(case: str, spec: SamSpec, network: Sam3D | None, device: torch.device) -> _Side:
    served = VolumeSegmenter(build_sam(spec) if network is None else network, spec, case, case, device)
    served.record_graphs()
    patch = torch.randn(1, spec.encoder.channels, *(spec.patch_size,) * 3)
    points, zeros = _click(spec, device)

    def decode(embedding) -> Tensor:
        logits, _ = served.decode(embedding, points, zeros)
        return trilinear(served.sharpen(embedding, logits)[0, 0], spec.patch_size)

    dtype = "bfloat16" if served.half else "float32"
    return _Side(case, lambda: served.encode(patch), decode, _parameters(served.model), dtype)


class PaddedAttention(nn.Module):
    """`DenseAttention` with a padded window as SAM-Med3D published it: every row of the window is computed, then the padding's
    are thrown away. (B, g, g, g, width) -> the same."""

    def __init__(self, exact: DenseAttention) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        a, n, g = self.exact, self.exact.window, x.shape[1]
        full = F.pad(x, (0, 0, *(0, n - g) * 3))
        b, width = full.shape[0], full.shape[-1]
        q, k, v = a.qkv(full).reshape(b, n**3, 3, a.heads, -1).permute(2, 0, 3, 1, 4)
        bias = None
        if a.relative:
            bias = position_bias(q.unflatten(2, (n, n, n)), a.rel_pos_d, a.rel_pos_h, a.rel_pos_w)
        out = eager_attention(q, k, v, bias).transpose(1, 2).reshape(b, n, n, n, width)
        return a.proj(out)[:, :g, :g, :g]


def _sam_2d(cube: int, samples: int, device: torch.device) -> tuple[_Side | None, str | None]:
    """SAM ViT-B as transformers has it, on `samples` slices; or why not."""
    try:
        from transformers import SamConfig, SamModel
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            return None, f"it needs the package transformers: {_INSTALL}"
        return None, f"the package transformers does not work here: {error}"
    except (ImportError, RuntimeError, OSError) as error:  # for example a torchvision made for another torch
        return None, f"the package transformers does not work here: {error}"
    model = SamModel(SamConfig()).eval().requires_grad_(False).to(device)
    voxels = torch.randn(samples, 1, cube, cube, device=device)
    pixels = F.interpolate(voxels, (_SAM_PIXELS,) * 2, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    middle = torch.full((1, 1, 1, 2), _SAM_PIXELS / 2, device=device)
    labels = torch.ones(1, 1, 1, dtype=torch.long, device=device)

    def decode(embeddings: Sequence[Tensor]) -> list[Tensor]:
        masks = []
        for embedding in embeddings:
            answer = model(image_embeddings=embedding, input_points=middle, input_labels=labels, multimask_output=False)
            masks.append(F.interpolate(answer.pred_masks[0], (cube,) * 2, mode="bilinear", align_corners=False))
        return masks

    side = _Side(
        _SAM_2D_CASE,
        lambda: [model.get_image_embeddings(image[None]) for image in pixels],
        decode,
        _parameters(model),
        slices=cube,
        slices_run=samples,
    )
    return side, None


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
