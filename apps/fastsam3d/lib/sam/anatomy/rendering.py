"""From a scene to an image: intensities drawn at random per tissue, then the artefacts of CT, MR, PET and ultrasound.

Domain randomisation after SynthSeg (Billot et al. 2023) and SynthMorph; written anew. Output units: HU for CT, arbitrary
for the others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .fields import Draw, blur, smooth_field
from .scenes import Scene

# HU of a tissue sort: mean and spread of its mean from case to case.
HOUNSFIELD = {
    "air": (-1000, 5), "lung": (-820, 70), "fat": (-100, 15), "soft": (35, 15), "muscle": (55, 12), "fluid": (10, 12),
    "organ": (95, 38), "bowel": (30, 60), "vessel": (170, 75), "lesion": (60, 45), "bright": (200, 80),
    "spongy": (215, 75), "bone": (600, 200), "disc": (75, 30),
}  # fmt: skip


def ct(draw: Draw, scene: Scene) -> Tensor:
    """Hounsfield units with texture, partial volume, correlated noise."""
    table = torch.tensor(
        [HOUNSFIELD[k][0] + HOUNSFIELD[k][1] * float(draw.normal(())) for k in scene.kinds], device=draw.device
    )
    rough = torch.tensor([draw.uniform(0, 9) for _ in scene.kinds], device=draw.device)
    image = table[scene.tissue] + rough[scene.tissue] * smooth_field(draw, scene.label.shape[0], draw.integer(6, 40))[0]
    image = blur(image, (draw.uniform(0.4, 0.9),) * 3)
    noise = draw.normal(*image.shape)
    if draw.chance(0.6):
        s = draw.uniform(0.4, 1.0)
        noise = blur(noise, (s, s, s))
        noise = noise / noise.std()
    return image + noise * draw.log_uniform(3, 32)


def generic(draw: Draw, scene: Scene) -> Tensor:
    """Any contrast: MR-like bias field, Rician noise, gamma, or PET-like blur, or ultrasound-like speckle."""
    n = len(scene.kinds)
    table = draw.rand(n)
    if draw.chance(0.7):
        table[0] = draw.uniform(0, 0.06)
    rough = 0.12 * draw.rand(n) ** 2
    size = scene.label.shape[0]
    image = table[scene.tissue] + rough[scene.tissue] * smooth_field(draw, size, draw.integer(4, 50))[0]
    image = blur(image.clamp_min(0), (draw.uniform(0.3, 1.1),) * 3)
    style = draw.uniform(0, 1)
    if style < 0.7:  # magnetic resonance
        image = image * torch.exp(draw.uniform(0, 0.35) * smooth_field(draw, size, 2)[0])
        level = draw.log_uniform(0.008, 0.09)
        image = torch.sqrt((image + level * draw.normal(*image.shape)) ** 2 + (level * draw.normal(*image.shape)) ** 2)
        image = image ** draw.uniform(0.7, 1.5)
    elif style < 0.85:  # emission tomography
        image = blur(image**2, (draw.uniform(1.2, 2.4),) * 3)
        image = image + draw.uniform(0.01, 0.06) * blur(draw.normal(*image.shape), (1.2,) * 3) * (0.2 + image.sqrt())
    else:  # ultrasound
        speckle = blur(draw.normal(*image.shape), (draw.uniform(0.5, 1.3),) * 3)
        image = image * (1 + draw.uniform(0.2, 0.6) * speckle / speckle.std())
        image = image * (0.6 + 0.4 * torch.sigmoid(smooth_field(draw, size, 3)[0] * 2))
    return image * draw.log_uniform(50, 3000)


def thick_slices(draw: Draw, image: Tensor) -> Tensor:
    """Thick slices along one axis: averages of 2 to 5 voxels, brought back by linear interpolation."""
    axis, factor = draw.integer(0, 3), draw.integer(2, 6)
    kernel = [1, 1, 1]
    kernel[axis] = factor
    low = F.avg_pool3d(image[None, None], kernel, stride=kernel, ceil_mode=True, count_include_pad=False)
    return F.interpolate(low, size=image.shape, mode="trilinear", align_corners=False)[0, 0]


def outside_volume(draw: Draw, size: int) -> Tensor:
    """(S, S, S) bool, False where the patch reaches out of the scanned volume (cut off at up to three faces)."""
    inside = torch.ones((size,) * 3, dtype=torch.bool, device=draw.device)
    for _ in range(draw.integer(1, 4)):
        axis, depth = draw.integer(0, 3), int(draw.uniform(0, 0.33) * size)
        inside.narrow(axis, 0 if draw.chance(0.5) else size - depth, depth).fill_(False)
    return inside


def render(draw: Draw, scene: Scene) -> tuple[Tensor, Tensor]:
    """Image (S, S, S) float32 and the mask of nodes inside the volume, (S, S, S) bool."""
    image = ct(draw, scene) if draw.chance(0.5) else generic(draw, scene)
    if draw.chance(0.35):
        image = thick_slices(draw, image)
    if draw.chance(0.12):  # a display window burnt into the values
        low, high = torch.quantile(
            image.flatten()[::97], torch.tensor([draw.uniform(0, 0.2), draw.uniform(0.8, 1)], device=image.device)
        ).tolist()
        image = image.clamp(low, max(high, low + 1e-3))
    inside = torch.ones_like(scene.label, dtype=torch.bool)
    if draw.chance(0.35):
        inside = outside_volume(draw, image.shape[0])
    return image, inside
