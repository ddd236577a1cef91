"""Fine-tuning of a promptable 3D model on a user's own annotations.

A step is `batch` patches with several objects each and several rounds of simulated prompts (as in pretraining). What the
model knew is kept by rehearsal on generated anatomy and by its own old answers beside the annotated structures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..anatomy.fields import Draw
from ..losses import hard_dice
from .data import occupancy, pick_targets
from .finetune_config import FinetuneConfig
from .patches import Patch, cut, in_halves, varied
from .pretrain import rounds_loss, unroll
from .tuning import Tuning

_VALIDATED = 6
_VALIDATION_CLICKS = 3


class Finetuning(Tuning):
    """See Tuning; patches are those of patches.py."""

    memory_format = torch.channels_last_3d
    config: FinetuneConfig

    def loss(self, seed: int) -> Tensor:
        """Loss of one patch."""
        c, draw = self.config, Draw(seed)
        torch.manual_seed(seed)
        image, halves = self._sample(draw)
        _, rounds = c.rounds[draw.weighted(share for share, _ in c.rounds)]
        with_box = self.spec.decoder.boxes and draw.chance(c.box_share)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            outs, sharp = unroll(
                self.model, image, occupancy(halves, self.spec.cell // 2), rounds, with_box, draw.chance(0.5), c.uniform_share,
                c.repeat_share,
            )  # fmt: skip
        return rounds_loss(outs, sharp, halves)["total"]

    def _sample(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image (1, channels, s, s, s) and occupancies (1, K, s/2, s/2, s/2) of a random patch or a cube of it."""
        c = self.config
        for _ in range(20):
            patch = Patch.read(self.pick(draw))
            size = self.spec.patch_size
            edge = c.cube if c.cube < size and draw.chance(c.cube_share) else size
            sample = varied(draw, cut(draw, patch, edge), c.objects, c.keep)
            if sample is not None:
                image, target = sample
                image = image[None].to(self.device).contiguous(memory_format=torch.channels_last_3d)
                return image, target[None].to(self.device).float() / 64
        raise ValueError("no patch holds a structure of at least 0.2 ml at the model's resolution; nothing to train on")

    def scores(self) -> tuple[list[float], list[float]]:
        """Dice, the mean over 1 to 3 clicks: of annotated structures; of the served model's steady answers beside them and
        of generated anatomy that is set aside.
        """
        learned, known = [], []
        for n, path in enumerate([*self.patches.validation[:_VALIDATED], *self.set_aside()]):
            patch = Patch.read(path)
            target = pick_targets(Draw(n), torch.from_numpy(patch.label).long(), 2)
            large = [k for k in range(len(patch.kept)) if (patch.kept[k] > 32).sum() > 1]
            kept = in_halves(torch.from_numpy(patch.kept[large[:2]]), self.spec.patch_size // 2)
            count, target = len(target), torch.cat([target, kept]) if len(target) else kept
            if not len(target):
                continue
            torch.manual_seed(n)
            image = torch.from_numpy(patch.image).float()[None].to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                cells = occupancy(target[None].to(self.device).float() / 64, self.spec.cell // 2)
                outs, _ = unroll(self.model, image, cells, _VALIDATION_CLICKS, False, True, 0.0)
            truth = cells[0, :, None] > 0.5
            scores = torch.stack([hard_dice(logits > 0, truth) for logits, _ in outs]).mean(0).tolist()
            (learned if n < len(self.patches.validation[:_VALIDATED]) else known).extend(scores[:count])
            known += scores[count:]
        return learned, known
