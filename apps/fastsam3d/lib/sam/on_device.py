"""A patch cut out, normalised and brought back where the network runs, for scans that lie in a GPU's memory.

The same steps as `preprocess.network_input` and `PatchFrame.paste`, and the same values up to the rounding of float32, as tensors:
nothing is waited for until the mask's place is known, and only the mask itself is copied to the processor's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import sampling
from .geometry import Lattice, PatchFrame
from .intensity import BINS, INTENSITY_SAMPLE

FREE_SHARE = 0.25
"""A scan is kept on a GPU if it takes at most this share of the memory that is free there."""


def resident(array: np.ndarray, device: torch.device) -> Tensor | None:
    """A scan (I, J, K) on a CUDA device, in its own type where the device computes with it; None where it should not lie there."""
    if device.type != "cuda" or array.nbytes > FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return to_tensor(array).to(device)


def to_tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor, in the same memory where torch can work with its type and order."""
    if array.dtype not in (np.uint8, np.int8, np.int16, np.int32, np.float32):
        array = array.astype(np.float32)
    return torch.from_numpy(np.require(array, requirements="W") if min(array.strides) >= 0 else array.copy())


def network_input(volume: Tensor, frame: PatchFrame, floor: float | None, intensity: str) -> Tensor:
    """See `preprocess.network_input`.

    Args:
        volume: (I, J, K), on any device.

    Returns:
        (channels, S, S, S) float32 there.
    """
    inside = frame.inside_axes()
    patch = crop(volume, frame)
    if floor is not None:
        patch[inside] = patch[inside].clamp_min(floor)
    return percentile_rank(patch, inside) if intensity == "percentile_rank" else znorm_positive(patch)[None]


def crop(volume: Tensor, frame: Lattice) -> Tensor:
    """`Lattice.crop` by linear interpolation, with 0 outside the scan: (S, S, S) float32."""
    inside = frame.inside_axes()
    result = torch.zeros(frame.shape, device=volume.device)
    if any(s.stop == s.start for s in inside):
        return result
    nodes = [frame.nodes_ijk(r)[inside[r]] for r in range(3)]
    result[inside] = linear(volume.permute(frame.axes), nodes)
    return result


def linear(volume: Tensor, coordinates: Sequence[np.ndarray]) -> Tensor:
    """`sampling.linear`: (I, J, K) of any type at three vectors of voxel coordinates -> (P0, P1, P2) float32."""
    first, second, third = sorted(range(3), key=lambda a: -volume.stride(a))
    plans = {}
    for axis, (places, length) in enumerate(zip(coordinates, volume.shape)):
        low, high, weight = sampling.neighbours(places, length)
        begin, end = int(min(low.min(), high.min())), int(max(low.max(), high.max())) + 1
        volume = volume.narrow(axis, begin, end - begin)
        shares = ((1.0 - weight).astype(np.float32), weight.astype(np.float32))
        plans[axis] = [torch.from_numpy(x).to(volume.device) for x in (low - begin, high - begin, *shares)]
    out = volume.float()
    for axis in (second, third, first):  # as in memory and on the processor, so that both round alike
        low, high, *shares = plans[axis]
        of_low, of_high = (x.reshape([-1 if a == axis else 1 for a in range(3)]) for x in shares)
        out = (out.index_select(axis, low) * of_low).add_(out.index_select(axis, high) * of_high)
    return out


def percentile_rank(x: Tensor, inside: tuple[slice, slice, slice]) -> Tensor:
    """See `intensity.percentile_rank`: (S, S, S) -> (2, S, S, S).

    Args:
        inside: the nodes of each axis that lie in the scan.
    """
    part = x[inside]
    out = x.new_full((2, *x.shape), -1.0)
    if not part.numel():
        return out
    sample = part.reshape(-1)[:: max(1, part.numel() // INTENSITY_SAMPLE)]
    ordered = sample.sort().values
    low, high = _quantile(ordered, 0.005), _quantile(ordered, 0.995)
    flat = ~(high > low)
    low, high = torch.where(flat, ordered[0], low), torch.where(flat, ordered[-1], high)
    differs = high > low
    scale = torch.where(differs, 1.0 / (high - low), 0.0)
    levels = (((sample - low) * scale).clamp(0, 1) * (BINS - 1)).long()
    counts = torch.zeros(BINS, device=x.device).scatter_add_(0, levels, torch.ones_like(sample))
    rank = ((counts.cumsum(0) - 0.5 * counts) / sample.numel() * 2 - 1).float()
    unit = ((part - low.float()) * scale.float()).clamp_(0, 1)
    ranked = rank[(unit * (BINS - 1)).long()]
    out[(slice(None), *inside)] = torch.where(differs, torch.stack([unit * 2 - 1, ranked]), -1.0)
    return out


def znorm_positive(x: Tensor) -> Tensor:
    """See `intensity.znorm_positive`: shape kept."""
    wide, positive = x.double(), (x > 0).double()
    count = positive.sum()
    mean = (wide * positive).sum() / count.clamp_min(1)
    deviation = (((wide - mean).square() * positive).sum() / (count - 1).clamp_min(1)).sqrt()
    use = deviation > 0
    shifted = (wide - torch.where(use, mean, wide.mean())).float()
    return shifted / torch.where(use, deviation, 1.0).float()


def paste(frame: Lattice, values: Tensor, threshold: float = 0.0) -> tuple[np.ndarray, tuple[int, int, int]]:
    """`Lattice.paste` by linear interpolation.

    Args:
        values: (S, S, S), on any device.

    Returns:
        (i, j, k) uint8 box of the scan, F-ordered, and the scan's voxel at its low corner.
    """
    spans = _spans(values > threshold)
    ranges, coordinates, needed = frame.reached(spans)
    if any(s.stop == s.start for s in ranges):
        return np.zeros((0, 0, 0), dtype=np.uint8), (0, 0, 0)
    view = values[tuple(needed)].permute(np.argsort(frame.axes).tolist())
    mask = (linear(view, coordinates) > threshold).to(torch.uint8)
    return mask.permute(2, 1, 0).contiguous().cpu().numpy().T, tuple(s.start for s in ranges)


def _spans(hits: Tensor) -> list[slice]:
    """The smallest slices that hold every True of (S, S, S); none without one."""
    found = [hits.any(2).any(1), hits.any(2).any(0), hits.any(1).any(0)]
    lengths = [len(x) for x in found]
    lines = np.split(torch.cat(found).cpu().numpy(), np.cumsum(lengths)[:-1])
    return [sampling.true_range(line) for line in lines] if lines[0].any() else []


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """() float64 of sorted values (N,), linear between neighbours, as `numpy.percentile`."""
    place = share * (len(ordered) - 1)
    low = int(place)
    below, above = ordered[low].double(), ordered[min(low + 1, len(ordered) - 1)].double()
    return below + (above - below) * (place - low)
