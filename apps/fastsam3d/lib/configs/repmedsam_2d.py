"""RepMedSAM in one slice."""

from __future__ import annotations

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from ..infers.slices import slice_infer
from ..trainers.finetune import slice_trainer


class RepMedSAM2D(TaskConfig):
    """Offers the model for single slices: a box or extreme points, and clicks."""

    def infer(self) -> InferTask:
        return slice_infer(
            self, dimension=2, description="RepMedSAM in one slice: a box, or the ends of a structure; clicks refine"
        )

    def trainer(self) -> TrainTask:
        return slice_trainer(self)
