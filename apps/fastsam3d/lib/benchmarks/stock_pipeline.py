"""The comparator: a click as a stock MONAI Label app runs it, with the same network and the same weights.

Everything around the network is MONAI's and MONAI Label's own: BasicInferTask, LoadImaged, EnsureChannelFirstd,
Orientationd, Spacingd, their inverses, MONAI Label's Writer. Nothing is kept from click to click, as in every app built
that way. Only what no library offers for this network is written here: the crop around the click (made of MONAI's
BorderPad and SpatialCrop) and the replay of the clicks.

Two ways back to the scan's grid are common, and both are offered:

- "inverse": BasicInferTask's inverse_transforms on the probabilities, linear, then the threshold. This gives the same
  quality as our app's answer.
- "resize": the threshold first, then a nearest-neighbour Resize of the mask, as MONAI Label's Restored transform does
  (which cannot be imported beside a CPU build of torch: its module needs torchvision). Quicker, and blocky at 1.5 mm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import (
    AsDiscreted,
    BorderPad,
    EnsureChannelFirstd,
    InvertibleTransform,
    LoadImaged,
    MapTransform,
    Orientation,
    Orientationd,
    Resize,
    Spacingd,
    SpatialCrop,
    SqueezeDimd,
    Transform,
)
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from torch.nn import functional as F

from ..sam.build import Sam3D
from ..sam.geometry import cut_begin
from ..sam.grid import apply_affine
from ..sam.intensity import normalise
from ..sam.networks.prompt_maps import NEGATIVE, POSITIVE
from ..sam.spec import SamSpec

_AXIS_NAMES = (("L", "R"), ("P", "A"), ("I", "S"))


class StockClick(BasicInferTask):
    """One of the two stock pipelines.

    Args:
        network: built and loaded.
        spec: its description.
        labels: label name -> number.
        device: "cpu" or "cuda".
        way_back: one of `WAYS_BACK`.
    """

    def __init__(self, network: Sam3D, spec: SamSpec, labels: Mapping[str, int], device: str, way_back: str) -> None:
        super().__init__(
            path=None,
            network=network,
            type=InferType.DEEPGROW,
            labels=dict(labels),
            dimension=3,
            description=f"Stock MONAI Label pipeline ({way_back})",
            config={"device": device},
        )
        self.spec, self.way_back = spec, way_back

    def pre_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable]:
        return [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS", labels=_AXIS_NAMES),
            Spacingd(keys="image", pixdim=(self.spec.spacing_mm,) * 3, mode="bilinear"),
            CropAroundClickd(keys="image", size=self.spec.patch_size),
            NormalisePatchd(keys="image", mode=self.spec.intensity),
        ]

    def inferer(self, data: dict[str, Any] | None = None) -> Inferer:
        return ReplayClicks(self.spec, data["points"], data["point_labels"])

    def inverse_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable] | None:
        return [] if self.way_back == "inverse" else None  # all that have an inverse, or none

    def post_transforms(self, data: dict[str, Any] | None = None) -> Sequence[Callable]:
        discrete = AsDiscreted(keys="pred", threshold=0.5)
        if self.way_back == "inverse":
            return [discrete, SqueezeDimd(keys="pred", dim=0)]
        return [discrete, ResizeBackd(keys="pred"), SqueezeDimd(keys="pred", dim=0)]


class CropAroundClickd(MapTransform, InvertibleTransform):
    """Cuts the cube around the first foreground click, padded with zeros, and maps all clicks into it.

    Serves one request: its inverse undoes its own last call. Adds to the data: `points` (N, 3) voxels of the cube,
    `point_labels` (N,), `inside` (which of its voxels the scan covers), `spaced_affine` and `spaced_shape` (of the
    image before the cut), `cut` (first voxel and pads of the cube in it).
    """

    def __init__(self, keys: str, size: int) -> None:
        super().__init__(keys)
        self.size = size
        self._steps: tuple[BorderPad, SpatialCrop] | None = None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image = d["image"]
        foreground, background = d.get("foreground") or [], d.get("background") or []
        stored = np.array([*foreground, *background], dtype=np.float64)
        world = apply_affine(np.asarray(image.meta["original_affine"], dtype=np.float64), stored)
        spaced = np.asarray(image.affine, dtype=np.float64)
        nodes = apply_affine(np.linalg.inv(spaced), world).round().astype(int)
        begin = np.array(cut_begin(nodes[0], nodes[0], self.size))
        shape = np.array(image.shape[1:])
        before, after = np.maximum(-begin, 0), np.maximum(begin + self.size - shape, 0)
        start = begin + before
        pad = BorderPad([int(n) for pair in zip(before, after) for n in pair])
        crop = SpatialCrop(roi_start=start.tolist(), roi_end=(start + self.size).tolist())
        self._steps = (pad, crop)
        d["image"] = crop(pad(image))
        d["inside"] = np.zeros((self.size,) * 3, dtype=bool)
        d["inside"][tuple(slice(int(a), self.size - int(b)) for a, b in zip(before, after))] = True
        d["points"] = (nodes - begin).clip(0, self.size - 1)
        d["point_labels"] = np.array([POSITIVE] * len(foreground) + [NEGATIVE] * len(background))
        d["spaced_affine"], d["spaced_shape"], d["cut"] = spaced, tuple(shape.tolist()), (begin, before, after)
        return d

    def inverse(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        pad, crop = self._steps
        d["image"] = pad.inverse(crop.inverse(d["image"]))
        return d


class NormalisePatchd(MapTransform):
    """The network's own normalisation of the cube."""

    def __init__(self, keys: str, mode: str) -> None:
        super().__init__(keys)
        self.mode = mode

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        image = d["image"]
        patch = np.ascontiguousarray(image.as_tensor()[0].float().numpy())
        patch = torch.from_numpy(normalise(patch, d["inside"], self.mode))
        d["image"] = MetaTensor(patch).copy_meta_from(image)
        return d


class ReplayClicks(Inferer):
    """Encodes the cube, then decodes click by click, each round with all clicks so far and the logits before.

    Args:
        spec: of the network.
        points: (N, 3) voxels of the cube.
        labels: (N,) POSITIVE or NEGATIVE.
    """

    def __init__(self, spec: SamSpec, points: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.spec, self.points, self.labels = spec, points, labels

    def __call__(self, inputs: MetaTensor, network: Sam3D) -> MetaTensor:
        """Probabilities (1, 1, S, S, S) of a normalised cube (1, C, S, S, S)."""
        device = inputs.device
        points = torch.as_tensor(self.points, dtype=torch.float32, device=device)[None]
        labels = torch.as_tensor(self.labels, device=device)[None]
        embedding = network.encode(inputs.as_tensor())
        logits = torch.zeros(1, 1, *(self.spec.mask_size,) * 3, device=device)
        for n in range(len(self.points)):
            first = n if self.spec.replay == "last" else 0
            for _ in range(self.spec.first_passes if n == 0 else 1):
                logits, _ = network.decode(embedding, (points[:, first : n + 1], labels[:, first : n + 1]), logits)
        size = (self.spec.patch_size,) * 3
        probabilities = torch.sigmoid(F.interpolate(logits, size=size, mode="trilinear", align_corners=False))
        return MetaTensor(probabilities.float().cpu()).copy_meta_from(inputs)


class ResizeBackd(Transform):
    """Puts the mask of the cube back into the resampled image, turns that back, and resizes it, nearest neighbour."""

    def __init__(self, keys: str) -> None:
        self.key = keys

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        d = dict(data)
        mask, meta = d[self.key], d["image"].meta
        begin, before, after = d["cut"]
        size = mask.shape[-1]
        window = tuple(slice(int(b + p), int(b + size - q)) for b, p, q in zip(begin, before, after))
        kept = tuple(slice(int(p), int(size - q)) for p, q in zip(before, after))
        spaced = torch.zeros(1, *d["spaced_shape"])
        spaced[(0, *window)] = mask.as_tensor()[(0, *kept)]
        original = torch.as_tensor(meta["original_affine"], dtype=torch.float64)
        turn = Orientation(axcodes=nib.aff2axcodes(original.numpy()), labels=_AXIS_NAMES)
        turned = turn(MetaTensor(spaced, affine=torch.as_tensor(d["spaced_affine"])))
        stored = tuple(int(n) for n in meta["spatial_shape"])
        d[self.key] = MetaTensor(Resize(stored, mode="nearest")(turned).as_tensor(), affine=original)
        return d
