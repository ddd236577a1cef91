"""One attention layer of the image encoders: kernels, dense and sparse forms, numbers of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..sam.benchmark import alternate, eager_attention
from ..sam.benchmark_rows import BenchRow, dtype_name
from ..sam.device import has_bfloat16
from ..sam.networks import attention
from ..sam.networks.vit3d import build_attention
from ..sam.zoo import get_spec

SPECS = (
    "fastsam3d_published_h6",
    "fastsam3d_published_h6_strided",
    "fastsam3d_published_h6_sparse",
    "fastsam3d_compact",
    "fastsam3d_compact_sparse",
)
TOKENS = (512, 4096)
EAGER = "eager"
FLASH_ATTN = "flash-attn"
_TORCH = {
    "torch math": SDPBackend.MATH,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch cudnn": SDPBackend.CUDNN_ATTENTION,
}
_GPU_REPEATS = 20
"""Runs of the layer in one measurement on a GPU, where choosing a kernel would take as long as one."""

BACKENDS = (EAGER, *_TORCH, FLASH_ATTN)


@dataclass(frozen=True)
class AttentionRow(BenchRow):
    """One layer (projections included) with one kernel.

    Attributes:
        part: "attention". case: spec, tokens, kernel.
        spec: whose encoder. form: of its attention. tokens: in the grid. backend: the kernel.
        ms: median time. eager_ms: that of two matrix products and a softmax in the same dtype. ratio: eager_ms / ms.
        difference: largest difference to the eager form in float32, as a share of its largest value.
    """

    spec: str
    form: str
    tokens: int
    backend: str
    ms: float
    eager_ms: float
    ratio: float
    difference: float
    rounds: int
    threads: int
    dtype: str
    device: str

    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.part:7s} {self.ms:9.2f} ms  {self.ratio:6.2f} times eager, differs by {self.difference:.1e}  "
            f"({self.case}, {self.form}; {self.rounds} rounds, {self.ran_with})"
        )

    def bars(self) -> dict[str, float]:
        """For the plot: name -> milliseconds."""
        return {self.backend: self.ms, EAGER: self.eager_ms}


@torch.inference_mode()
def measure_attention(
    tokens: Sequence[int],
    rounds: int,
    threads: int,
    device: torch.device | str = "cpu",
    specs: Sequence[str] = SPECS,
    say: Callable[[str], None] = lambda text: None,
) -> list[AttentionRow]:
    """Times every kernel that works here, in float32 and, where the device computes so natively, bfloat16.

    Args:
        tokens: sizes of the token grid: cubes of multiples of 8.
        say: is told of kernels that do not work here.
    """
    torch.set_num_threads(threads)
    device = torch.device(device)
    rows = []
    missing: set[str] = set()
    for name in specs:
        spec = get_spec(name).encoder
        for count in tokens:
            edge = round(count ** (1 / 3))
            torch.manual_seed(0)
            layer = build_attention(replace(spec, image_size=edge * spec.patch), edge).eval().to(device)
            for table in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
                if hasattr(layer, table):  # 0 when fresh
                    torch.nn.init.trunc_normal_(getattr(layer, table), std=0.02)
            x = torch.randn(1, edge, edge, edge, spec.width, device=device)
            with using(EAGER):
                exact = layer(x)
            for dtype in (torch.float32, *((torch.bfloat16,) if has_bfloat16(device) else ())):
                rows += _rows(
                    name, spec.attention, count, layer.to(dtype), x.to(dtype), exact, rounds, threads, missing
                )
    for backend in sorted(missing):
        say(f"no rows for {backend} where it does not work: on this device, in this dtype, or with a position term")
    return rows


def _rows(
    name: str, form: str, count: int, layer, x: Tensor, exact: Tensor, rounds: int, threads: int, missing: set[str]
) -> list[AttentionRow]:
    """All kernels in turn."""
    sides, differences = {}, {}
    repeats = _GPU_REPEATS if x.is_cuda else 1
    for backend in BACKENDS:
        try:
            differences[backend] = float((_run(layer, x, backend).float() - exact).abs().max() / exact.abs().max())
        except RuntimeError:  # torch: no such kernel for this device, dtype or bias
            missing.add(backend)
            continue
        sides[backend] = lambda backend=backend: _run(layer, x, backend, repeats)
    taken = dict(zip(sides, alternate(list(sides.values()), rounds, warm_up=1)))
    taken = {backend: [ms / repeats for ms in several] for backend, several in taken.items()}
    eager = median(taken[EAGER])
    dtype, device = dtype_name(x.dtype), str(x.device)
    return [
        AttentionRow(
            "attention", f"{name}, {count} tokens, {backend}", name, form, count, backend, round(median(ms), 3),
            round(eager, 3), round(eager / median(ms), 2), differences[backend], rounds, threads, dtype, device,
        )
        for backend, ms in taken.items()
    ]  # fmt: skip


def _run(layer, x: Tensor, backend: str, repeats: int = 1) -> Tensor:
    """The layer's answer, the last of several."""
    with using(backend):
        for _ in range(repeats - 1):
            layer(x)
        return layer(x)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Makes the encoders' attention run through one kernel.

    Raises:
        RuntimeError: it is not there. Torch raises the same where a kernel cannot take what it gets.
    """
    if backend in _TORCH:
        with warnings.catch_warnings(), sdpa_kernel([_TORCH[backend]]), mock.patch.object(attention, "attend", _torch):
            warnings.simplefilter("ignore")  # torch tells at length why a kernel cannot
            yield
    elif backend == FLASH_ATTN:
        if not attention.flash_attn_available():
            raise RuntimeError("flash-attn is not installed, or there is no CUDA device")
        with mock.patch.object(attention, "attend", _flash):
            yield
    else:
        with mock.patch.object(attention, "attend", eager_attention):
            yield


def _torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """flash-attn's kernel, or an error where `attention.attend` would quietly take torch's."""
    if bias is not None or not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("flash-attn takes half precision on CUDA, and no position term")
    from flash_attn import flash_attn_func  # optional extra, CUDA only

    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
