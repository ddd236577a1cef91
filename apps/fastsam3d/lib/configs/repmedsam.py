"""RepMedSAM through the stack."""

from __future__ import annotations

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from ..infers.slices import slice_infer
from ..trainers.finetune import slice_trainer


class RepMedSAM(TaskConfig):
    """Offers the model for stacks: a box or extreme points, and clicks."""

    def infer(self) -> InferTask:
        return slice_infer(
            self,
            dimension=3,
            description="RepMedSAM through the stack: a box, or the ends of a structure; clicks refine",
        )

    def trainer(self) -> TrainTask:
        return slice_trainer(self)
