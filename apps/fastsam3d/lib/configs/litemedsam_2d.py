"""LiteMedSAM in one slice. Offered only where its weights are there."""

from __future__ import annotations

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from ..infers.slices import slice_infer


class LiteMedSAM2D(TaskConfig):
    """Offers the model for single slices: a box or extreme points."""

    def infer(self) -> InferTask:
        return slice_infer(
            self,
            dimension=2,
            description="LiteMedSAM in one slice, slower than RepMedSAM: a box, or the ends of a structure",
        )

    def trainer(self) -> TrainTask | None:
        return None
