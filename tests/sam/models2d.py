"""Models for images for tests: the row of the zoo that ships, with random weights that look like trained ones."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from lib.sam.build import build_sam2d
from lib.sam.weights_files import write_model
from lib.sam.zoo import get_spec2d
from torch import Tensor, nn

SMALL = "repmedsam_compact"


def small_state(seed: int = 0, spec: str = SMALL) -> OrderedDict[str, Tensor]:
    """Weights of a row, with statistics of batch norms such as training leaves them."""
    torch.manual_seed(seed)
    model = build_sam2d(get_spec2d(spec))
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.3, generator=draw)
            nn.init.normal_(module.running_mean, 0, 0.1, generator=draw)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=draw)
    return model.state_dict()


def write_small_model(folder: Path, seed: int = 0) -> Path:
    """A folder of weights with an untrained `repmedsam`, written by the code that writes those that ship."""
    write_model(small_state(seed), get_spec2d(SMALL), folder, "repmedsam_untrained")
    return folder
