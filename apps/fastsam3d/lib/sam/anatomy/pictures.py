"""Generated pictures: what cameras, microscopes, X-ray tubes and ultrasound probes see, as labelled colour images.

    shown = picture(seed)
    shown.image                      # (256, 256, 3) uint8
    shown.label                      # (256, 256) int16, 0 = nothing, 1..n = objects

Crude on purpose: what counts is that shapes, colours, textures, borders and lighting vary more than in real pictures
(domain randomisation), so that a model trained on slices of volumes does not meet photographs unprepared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .fields import Draw

Window = tuple[slice, slice]


@dataclass
class Picture:
    """image (S, S, 3) uint8, label (S, S) int16."""

    image: Tensor
    label: Tensor


class Easel:
    """A picture in the making: image (3, S, S) in [0, 1], label (S, S), and noise that shapes and textures share."""

    def __init__(self, draw: Draw, size: int) -> None:
        self.draw, self.size, self.objects = draw, size, 0
        axis = torch.arange(size, dtype=torch.float32)
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")
        self.noise = [self.field(cells) for cells in (3, 7, 17, 45)]
        self.image = torch.zeros(3, size, size)
        self.label = torch.zeros(size, size, dtype=torch.int16)

    def field(self, cells: int) -> Tensor:
        """Smooth noise (S, S) of unit variance with about `cells` bumps an axis."""
        coarse = self.draw.normal(1, 1, cells + 1, cells + 1)
        field = F.interpolate(coarse, (self.size, self.size), mode="bicubic", align_corners=True)[0, 0]
        return field / field.std().clamp_min(1e-6)

    def texture(self, colour: Tensor, strength: float) -> Tensor:
        """(3, S, S): a colour (3,) with noise of two scales, mostly of brightness."""
        out = colour[:, None, None].expand(3, self.size, self.size)
        for _ in range(2):
            noise = self.draw.choice(self.noise)
            tint = 1 + 0.5 * self.draw.normal(3)
            out = out + strength * self.draw.uniform(0, 1) * tint[:, None, None] * noise
        return out

    def blob(self, centre: tuple[float, float], radii: tuple[float, float]) -> tuple[Window, Tensor]:
        """An irregular, turned ellipse: its window, and a level there (pixels from the border, negative inside)."""
        draw = self.draw
        reach = 1.6 * max(radii) + 3
        window = tuple(slice(max(0, int(c - reach)), max(1, min(self.size, int(c + reach) + 1))) for c in centre)
        angle = draw.uniform(0, math.pi)
        y, x = self.y[window] - centre[0], self.x[window] - centre[1]
        a = (math.cos(angle) * y + math.sin(angle) * x) / radii[0]
        b = (math.cos(angle) * x - math.sin(angle) * y) / radii[1]
        radius, theta = torch.sqrt(a * a + b * b), torch.atan2(a, b)
        border = torch.ones_like(radius)
        rough = draw.uniform(0, 0.28)
        for order in range(2, 7):
            border = border + rough / order * float(draw.normal(())) * torch.cos(
                order * theta + draw.uniform(0, 2 * math.pi)
            )
        border = border + 0.3 * rough * draw.choice(self.noise[1:3])[window]
        return window, (radius - border.clamp(0.35, 1.6)) * min(radii)

    def paint(self, window: Window, level: Tensor, fill: Tensor, soft: float, opacity: float = 1.0) -> None:
        """Lay a texture (3, S, S) over the inside of a level, with a border `soft` pixels wide."""
        alpha = opacity * torch.sigmoid(-level / max(0.2, 0.5 * soft))
        part = self.image[(slice(None), *window)]
        part += alpha * (fill[(slice(None), *window)] - part)

    def claim(self, window: Window, inside: Tensor, smallest: int = 30) -> None:
        """Make the pixels `inside` (bool, of the window) a new object."""
        if int(inside.sum()) >= smallest:
            self.objects += 1
            self.label[window][inside] = self.objects

    def shape(self, low: float, high: float, fill: Tensor, soft: float = 1.0, opacity: float = 1.0) -> None:
        """One labelled blob of a radius in that range, anywhere."""
        draw = self.draw
        radius, aspect = draw.log_uniform(low, high), draw.log_uniform(0.5, 1.0)
        centre = (draw.uniform(0.05, 0.95) * self.size, draw.uniform(0.05, 0.95) * self.size)
        window, level = self.blob(centre, (radius, radius * aspect))
        self.paint(window, level, fill, soft, opacity)
        self.claim(window, level < 0)

    def line(self, width: float, colour: Tensor, opacity: float) -> None:
        """A thin curve across the picture: hair, vessel, fold."""
        draw = self.draw
        t = torch.linspace(0, 1, 120)
        start, end = draw.rand(2) * self.size, draw.rand(2) * self.size
        bend = 0.15 * self.size * draw.normal(2)
        points = start + t[:, None] * (end - start) + torch.sin(math.pi * t)[:, None] * bend
        index = points.round().long()
        index = index[((index >= 0) & (index < self.size)).all(dim=1)]
        drawn = torch.zeros(1, 1, self.size, self.size)
        drawn[0, 0, index[:, 0], index[:, 1]] = 1
        kernel = 2 * int(width) + 1
        alpha = opacity * F.avg_pool2d(F.max_pool2d(drawn, kernel, 1, kernel // 2), 3, 1, 1)[0]
        self.image += alpha * (colour[:, None, None] - self.image)

    def light(self, strength: float) -> None:
        """Uneven lighting: a smooth factor."""
        self.image *= torch.exp(strength * self.noise[0])

    def disc(self, radius: float) -> Tensor:
        """(S, S) bool: a centred circle, as lenses and endoscopes show it."""
        middle = (self.size - 1) / 2
        return (self.y - middle) ** 2 + (self.x - middle) ** 2 < (radius * self.size) ** 2


def _colour(draw: Draw, *base: float, spread: float = 0.12) -> Tensor:
    return (torch.tensor(base) + spread * draw.normal(3)).clamp(0, 1)


def skin(easel: Easel) -> None:
    """A lesion or a few on skin, with hairs."""
    draw = easel.draw
    tone = _colour(draw, 0.8, 0.6, 0.5) * draw.uniform(0.5, 1.15)
    easel.image = easel.texture(tone, 0.05)
    for _ in range(1 if draw.chance(0.7) else draw.integer(2, 6)):
        darker = tone * draw.uniform(0.35, 0.85) * (1 + 0.15 * draw.normal(3))
        easel.shape(8, 90, easel.texture(darker, 0.12), draw.log_uniform(1, 14), draw.uniform(0.7, 1))
    for _ in range(draw.integer(1, 14) if draw.chance(0.4) else 0):
        easel.line(draw.uniform(0, 1.6), tone * draw.uniform(0.1, 0.5), 0.8)
    easel.light(draw.uniform(0, 0.25))
    if draw.chance(0.25):
        easel.image *= easel.disc(draw.uniform(0.48, 0.62))


def mucosa(easel: Easel) -> None:
    """A polyp, coloured nearly like its surroundings: shading and highlights tell it."""
    draw = easel.draw
    tone = _colour(draw, 0.75, 0.38, 0.32)
    easel.image = easel.texture(tone, 0.08)
    easel.light(draw.uniform(0.1, 0.5))
    for _ in range(draw.integer(0, 6)):
        easel.line(draw.uniform(1, 6), tone * draw.uniform(0.6, 1.25), 0.4)
    for _ in range(draw.integer(1, 4)):
        radius = draw.log_uniform(12, 80)
        centre = tuple(draw.uniform(0.15, 0.85) * easel.size for _ in range(2))
        window, level = easel.blob(centre, (radius, radius * draw.uniform(0.6, 1)))
        own = easel.texture(tone * (1 + 0.12 * draw.normal(3)) * draw.uniform(0.85, 1.2), 0.08)
        slope = draw.normal(2) * 0.25 / radius
        shade = 1 + slope[0] * (easel.y - centre[0]) + slope[1] * (easel.x - centre[1])
        easel.paint(window, level, own * shade.clamp(0.5, 1.6), draw.uniform(1, 4))
        rim = torch.exp(-((level - 1.5) ** 2) / draw.uniform(2, 20)) * draw.uniform(0, 0.5)
        easel.image[(slice(None), *window)] *= 1 - rim
        easel.claim(window, level < 0)
    for _ in range(draw.integer(0, 10)):
        window, level = easel.blob(tuple((draw.rand(2) * easel.size).tolist()), (draw.uniform(1, 6),) * 2)
        easel.paint(window, level, torch.ones(3, easel.size, easel.size), 1.0, 0.9)
    if draw.chance(0.6):
        easel.image *= easel.disc(draw.uniform(0.46, 0.66))


def fundus(easel: Easel) -> None:
    """The back of the eye: optic disc and cup, vessels, bright and dark lesions."""
    draw = easel.draw
    tone = _colour(draw, 0.75, 0.4, 0.2)
    easel.image = easel.texture(tone, 0.05)
    easel.light(draw.uniform(0, 0.3))
    for _ in range(draw.integer(6, 16)):
        easel.line(draw.uniform(0.5, 2.6), tone * draw.uniform(0.4, 0.8), 0.7)
    for _ in range(draw.integer(0, 7)):
        bright = draw.chance(0.5)
        fill = (tone * (1.4 if bright else 0.5) + draw.uniform(0, 0.2) * bright).clamp(0, 1)
        easel.shape(3, 14, easel.texture(fill, 0.03), draw.uniform(1, 3))
    radius = draw.uniform(14, 45)
    centre = tuple(draw.uniform(0.25, 0.75) * easel.size for _ in range(2))
    window, level = easel.blob(centre, (radius, radius * draw.uniform(0.8, 1)))
    easel.paint(window, level, easel.texture(_colour(draw, 0.95, 0.8, 0.5, spread=0.06), 0.04), draw.uniform(1, 5))
    easel.claim(window, level < 0)
    window, level = easel.blob(centre, (radius * draw.uniform(0.3, 0.65),) * 2)
    easel.paint(window, level, easel.texture(_colour(draw, 1, 0.9, 0.7, spread=0.05), 0.03), draw.uniform(1, 5))
    easel.claim(window, level < 0)
    seen = easel.disc(draw.uniform(0.42, 0.52))
    easel.image *= seen
    easel.label[~seen] = 0


def microscopy(easel: Easel) -> None:
    """Many cells, some with a nucleus: fluorescence (bright on dark) or stained (dark on light)."""
    draw = easel.draw
    dark = draw.chance(0.5)
    ground = _colour(draw, *((0.05,) * 3 if dark else (0.9, 0.82, 0.88)), spread=0.05)
    cell = _colour(draw, *((0.3, 0.5, 0.4) if dark else (0.7, 0.45, 0.65)), spread=0.2)
    easel.image = easel.texture(ground, 0.04)
    radius, soft = draw.log_uniform(6, 34), draw.uniform(0.8, 3)
    nuclei = draw.chance(0.4)
    for _ in range(draw.integer(8, min(70, int(30_000 / radius**2) + 9))):
        fill = easel.texture((cell * (1 + 0.25 * float(draw.normal(())))).clamp(0, 1), 0.08)
        r = radius * draw.log_uniform(0.6, 1.5)
        centre = tuple((draw.rand(2) * easel.size).tolist())
        window, level = easel.blob(centre, (r, r * draw.uniform(0.55, 1)))
        easel.paint(window, level, fill, soft, draw.uniform(0.6, 1))
        easel.claim(window, level < 0)
        if nuclei:
            inner, depth = easel.blob(centre, (0.4 * r, 0.4 * r))
            easel.paint(inner, depth, fill * 0.5 if not dark else fill * 1.6, soft)


def projection(easel: Easel) -> None:
    """X-ray: grey shadows that add up."""
    draw = easel.draw
    depth = draw.uniform(0.3, 1) + 0.15 * easel.noise[0]
    for _ in range(draw.integer(4, 16)):
        radius = draw.log_uniform(8, 100)
        centre = tuple(draw.uniform(0.0, 1.0) * easel.size for _ in range(2))
        window, level = easel.blob(centre, (radius, radius * draw.log_uniform(0.25, 1)))
        amount = draw.uniform(0.12, 0.6) * (1 if draw.chance(0.6) else -1)
        depth[window] += amount * torch.sigmoid(-level / draw.uniform(0.4, 2.5))
        if abs(amount) > 0.2:
            easel.claim(window, level < 0)
    for _ in range(draw.integer(0, 10)):
        easel.image.zero_()
        easel.line(draw.uniform(1, 5), torch.ones(3), 1.0)
        depth = depth + draw.uniform(0.05, 0.25) * easel.image[0]
    grey = torch.exp(-depth.clamp_min(0)) if draw.chance(0.5) else depth
    easel.image = ((grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-6)).expand(3, -1, -1).clone()


def ultrasound(easel: Easel) -> None:
    """Speckle in a fan, with shadows."""
    draw = easel.draw
    grey = torch.full((3,), draw.uniform(0.15, 0.5))
    easel.image = easel.texture(grey, 0.06).mean(0, keepdim=True).expand(3, -1, -1).clone()
    for _ in range(draw.integer(1, 7)):
        fill = torch.full((3, easel.size, easel.size), draw.uniform(0.01, 0.8))
        easel.shape(10, 80, fill, draw.uniform(1, 6), draw.uniform(0.7, 1))
    grain = F.avg_pool2d(draw.normal(1, 1, easel.size, easel.size), (3, draw.choice([1, 3, 5])), 1, (1, 0))
    grain = F.interpolate(grain, (easel.size, easel.size), mode="bilinear")[0, 0]
    easel.image *= (1 + draw.uniform(0.3, 0.9) * grain / grain.std()).clamp_min(0)
    easel.light(draw.uniform(0.1, 0.5))
    if draw.chance(0.7):
        apex = -draw.uniform(0.05, 0.6) * easel.size
        middle = easel.size * draw.uniform(0.4, 0.6)
        angle = torch.atan2(easel.x - middle, easel.y - apex).abs()
        reach = torch.sqrt((easel.x - middle) ** 2 + (easel.y - apex) ** 2)
        seen = (angle < draw.uniform(0.35, 0.8)) & (reach < easel.size * 1.0 - apex)
        easel.image *= seen
        easel.label[~seen] = 0


def anything(easel: Easel) -> None:
    """Blobs of any colour and size on any ground."""
    draw = easel.draw
    easel.image = easel.texture(draw.rand(3), draw.uniform(0, 0.2))
    largest = draw.choice([20.0, 50.0, 110.0])
    for _ in range(draw.integer(2, 18)):
        fill = easel.texture(draw.rand(3), draw.uniform(0, 0.15))
        easel.shape(5, largest, fill, draw.log_uniform(0.6, 6), draw.uniform(0.6, 1))
    if draw.chance(0.5):
        easel.image = easel.image.mean(0, keepdim=True).expand(3, -1, -1).clone()
    easel.light(draw.uniform(0, 0.3))


SCENES: dict[str, tuple[float, Callable[[Easel], None]]] = {
    "skin": (0.15, skin),
    "mucosa": (0.15, mucosa),
    "fundus": (0.1, fundus),
    "microscopy": (0.15, microscopy),
    "projection": (0.15, projection),
    "ultrasound": (0.1, ultrasound),
    "anything": (0.2, anything),
}


def picture(seed: int, size: int = 256, scene: str | None = None) -> Picture:
    """One picture; every random choice follows from the seed.

    Args:
        size: edge, pixels. scene: a key of SCENES, or None for a random one.
    """
    draw = Draw(seed)
    name = list(SCENES)[draw.weighted(share for share, _ in SCENES.values())]
    easel = Easel(draw, size)
    SCENES[scene or name][1](easel)
    image = easel.image
    if draw.chance(0.3):
        image = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = image + draw.log_uniform(0.003, 0.05) * draw.normal(*image.shape)
    return Picture((image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).contiguous(), easel.label)
