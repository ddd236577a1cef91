"""FastSAM3D: the compact student, the app's default model."""

from __future__ import annotations

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from ..infers.interactive import InteractiveInfer
from ..trainers.finetune import trainer_of


class FastSAM3D(TaskConfig):
    """Offers the model as a click-and-box segmenter."""

    def infer(self) -> InferTask:
        app_conf = self.kwargs["app_conf"]
        return InteractiveInfer(
            model=self.name,
            labels=app_conf.labels,
            model_dir=self.model_dir,
            store=self.kwargs["store"],
            weights_choice=app_conf.weights.get(self.name),
            device=app_conf.device,
            description="FastSAM3D: click on a structure or draw a box around it; add clicks to refine",
        )

    def trainer(self) -> TrainTask:
        return trainer_of(self)
