"""The one place where chosen weights become a segmenter."""

from __future__ import annotations

import torch

from . import weights
from .compute import compute
from .router import RoutedSegmenter, Router
from .segmenter import VolumeSegmenter
from .slice_segmenter import SliceSegmenter
from .spec import Sam2dSpec

Segmenter = VolumeSegmenter | SliceSegmenter


def load_segmenter(resolved: weights.ResolvedWeights, device: torch.device | str = "cpu") -> Segmenter:
    """Loads the weights into the segmenter of their kind of network, where this process computes.

    Raises:
        WeightsError: as `weights.load_sam`.
    """
    return compute(_load, resolved, device)


def _load(resolved: weights.ResolvedWeights, device: torch.device | str) -> Segmenter:
    network = weights.load_sam(resolved, device)
    if isinstance(resolved.spec, Sam2dSpec):
        return SliceSegmenter(network, resolved.name, resolved.version, device)
    beside = weights.load_beside(resolved, device)
    if beside is None:
        return VolumeSegmenter(network, resolved.spec, resolved.name, resolved.version, device)
    base = VolumeSegmenter(beside.base, resolved.spec, resolved.name, f"{resolved.version}-base", device)
    router = Router.of(beside.router, resolved.paths[0].name)
    return RoutedSegmenter(network, base, router, beside.names, resolved.name, resolved.version)
