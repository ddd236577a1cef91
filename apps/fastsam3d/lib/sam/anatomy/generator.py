"""The anatomy generator: one seed -> one labelled, randomised patch.

    case = generate(seed)            # the same seed gives the same case on the same device kind
    case.image                       # (S, S, S) float32, HU for CT-like cases, arbitrary units otherwise
    case.label                       # (S, S, S) int64, 0 = nothing, 1..n = objects

Nothing here knows the phantom of sample-data, which is for demonstration and tests only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .fields import Draw
from .rendering import render
from .scenes import SCENES

MIX = {"torso": 0.38, "chest": 0.17, "back": 0.18, "cells": 0.09, "scatter": 0.18}


@dataclass
class Case:
    """image float32, label int64, inside bool (False out of the scanned volume); each (S, S, S)."""

    image: Tensor
    label: Tensor
    inside: Tensor


def generate(seed: int, size: int = 128, device: str = "cpu", mix: Mapping[str, float] = MIX) -> Case:
    """One case; every random choice follows from the seed.

    Args:
        mix: scene -> share; see `scenes.SCENES`.
    """
    draw = Draw(seed, device)
    name = list(mix)[draw.weighted(mix.values())]
    scene = SCENES[name](draw, size)
    image, inside = render(draw, scene)
    return Case(image, scene.label * inside, inside)
