"""A fixed set of training patches on disk, with what the layers of a teacher give for each of them.

A teacher's forward pass is most of a distillation step, and generating anatomy costs more than either. Both are done once;
epochs then visit the patches in an order of their own. A patch of the compact size takes 13 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import IterableDataset

from ..anatomy.fields import Draw
from ..build import Sam3D
from ..device import has_bfloat16
from ..files import whole_file, write_text
from .data import TrainingPatches

RECORD = "pool.json"


class PatchPool(IterableDataset):
    """The patches of a folder, epoch after epoch without end.

    A sample is as of TrainingPatches (one whole patch, V = 1), and "stages" (D + 1, g, g, g, width) float16: the teacher's tokens
    after its embedding and after each of its D layers.

    Attributes:
        seed: of the order; another one for each run.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.files = sorted(Path(folder).glob("*.safetensors"))
        self.seed = seed
        if not self.files:
            raise ValueError(f"{folder} holds no patches; PatchPool.fill writes them")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        draw = Draw(self.seed)
        while True:
            for index in torch.randperm(len(self.files), generator=draw.generator).tolist():
                yield load_file(self.files[index])

    @classmethod
    def fill(
        cls, folder: Path, count: int, source: TrainingPatches, teacher: Sam3D, origin: str, device: torch.device | str
    ) -> PatchPool:
        """Writes `count` patches of the source; those that are there already are kept.

        Args:
            origin: what teacher and source are, for example a hash; patches of another origin are refused.

        Raises:
            ValueError: the folder holds patches of another origin.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / RECORD
        if record.exists() and json.loads(record.read_text())["origin"] != origin:
            raise ValueError(f"{folder} holds patches of another teacher or seed; delete it or take another folder")
        if len(list(folder.glob("*.safetensors"))) == count:
            return cls(folder)
        write_text(record, json.dumps({"origin": origin}) + "\n")
        teacher = teacher.to(device).eval()
        half = has_bfloat16(torch.device(device))
        for n, sample in enumerate(islice(source, count)):
            path = folder / f"{n:05d}.safetensors"
            if path.exists():
                continue
            with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
                stages = teacher.image_encoder.stages(sample["image"].to(device).float())
            tensors = sample | {"stages": torch.cat(stages).half().cpu()}
            with whole_file(path) as file:
                file.write(save({k: v.contiguous() for k, v in tensors.items()}))
        return cls(folder)
