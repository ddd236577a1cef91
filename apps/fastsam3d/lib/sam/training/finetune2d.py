"""Fine-tuning of a promptable model for slices on a user's own annotations.

A step is `batch` passes of a few slices with several objects each; prompts and losses are those of pretraining. What the
model knew is kept by rehearsal on generated slices and pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..anatomy.fields import Draw
from ..losses import hard_dice
from .annotated2d import read_slice
from .data2d import sample, vary
from .finetune_config import Finetune2dConfig
from .pretrain2d import prompt_loss
from .prompting2d import Prompting, occupancy, prompt_rounds
from .recipe2d import Stage
from .tuning import Tuning

_VALIDATED = 8
_VALIDATED_OBJECTS = 3
_TIGHT = Prompting(tight_share=1.0, uniform_share=0.0)
_TRIES = 50


class Finetuning2d(Tuning):
    """See Tuning; slices are those of annotated2d.py.

    The running statistics of batch norms stay those of the served weights: two slices of three patients say little of
    them, and a step would depend on what else is in the batch.
    """

    memory_format = torch.channels_last
    config: Finetune2dConfig

    def train_mode(self) -> None:
        """Training mode, batch norms apart."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def loss(self, seed: int) -> Tensor:
        """Loss of `images` slices."""
        c, draw = self.config, Draw(seed)
        torch.manual_seed(seed)
        found = [self._sample(draw) for _ in range(c.images)]
        image, target = (torch.stack([one[key] for one in found]).to(self.device) for key in ("image", "target"))
        size = self.spec.image_size
        self.model.set_image_size(size // 2 if draw.chance(c.small_share) else size)
        return prompt_loss(self.model, image, target, self.stage)["total"]

    @property
    def stage(self) -> Stage:
        """Prompts, losses and precision of a step, in the words of pretraining: those of the default model's last recipe."""
        prompting = Prompting(
            box_jitter=5, box_inward=2, tight_share=0.4, click_share=0.15, both_share=0.1, rounds=self.config.rounds
        )
        return Stage(prompting=prompting, loss_weights=(1.0, 2.0, 0.2), balance=10.0, half=self.half)

    def _sample(self, draw: Draw) -> dict[str, Tensor]:
        """A random slice, varied, and its targets."""
        for _ in range(_TRIES):
            path = self.pick(draw)
            item = vary(draw, read_slice(path))
            found = sample(draw, item, self.spec.image_size, self.config.objects, _annotated(path))
            if found is not None:
                return found
        raise ValueError("no slice holds a structure that is large enough to train on at the model's resolution")

    def scores(self) -> tuple[list[float], list[float]]:
        """Dice, the mean of a tight box and of it with a click: of annotated structures, and of generated ones."""
        self.model.set_image_size(self.spec.image_size)
        learned, known = [], []
        annotated = self.patches.validation[:_VALIDATED]
        for n, path in enumerate([*annotated, *self.set_aside()[:_VALIDATED]]):
            found = sample(Draw(n), read_slice(path), self.spec.image_size, _VALIDATED_OBJECTS, _annotated(path))
            if found is None:
                continue
            torch.manual_seed(n)
            truth = found["target"].to(self.device)[:, None]
            image = found["image"].to(self.device)[None].contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                embedding = self.model.encode(image).expand(len(truth), -1, -1, -1)
                outs = prompt_rounds(self.model, embedding, truth, _TIGHT, 2)
            cells = occupancy(truth, self.model.spec.mask_size) > 0.5
            scores = torch.stack([hard_dice(logits > 0, cells) for logits, _ in outs]).mean(0).tolist()
            (learned if n < len(annotated) else known).extend(scores)
        return learned, known


def _annotated(path: Path) -> bool:
    return not path.name.startswith("rehearsal")
