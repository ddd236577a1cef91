"""Inference over many images that also works where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask


class BatchInfer(BatchInferTask):
    """MONAI Label's task, whose default of several GPUs divides by zero on a machine without any.

    The images are taken one after another: each model uses all of the device.
    """

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}
        return super().__call__({**request, "max_workers": 1}, datastore, infer)
