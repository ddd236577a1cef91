"""A MONAI Label app that holds nothing but the comparator; the benchmark starts it with this app's library on the path.

By hand: PYTHONPATH=apps/fastsam3d monailabel start_server --app apps/fastsam3d/lib/benchmarks/stock_app --studies ...
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lib.benchmarks import WAYS_BACK
from lib.benchmarks.stock_pipeline import StockClick
from lib.conf import DEFAULT_LABELS, DEFAULT_MODEL, MODEL_DIR
from lib.sam import weights
from lib.server import apply_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask


class StockApp(MONAILabelApp):
    """Offers `stock_inverse` and `stock_resize`; --conf takes threads, device and weights, as the app itself does."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        apply_settings()
        conf = dict(conf or {})
        torch.set_num_threads(int(conf.get("threads") or torch.get_num_threads()))
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="Stock", labels=list(DEFAULT_LABELS))

    def init_infers(self) -> dict[str, InferTask]:
        resolved = weights.resolve(DEFAULT_MODEL, MODEL_DIR, configured=self.conf.get("weights"))
        device = self.conf.get("device", "cpu")
        network = weights.load_sam(resolved, device)
        labels = {name: n for n, name in enumerate(DEFAULT_LABELS, 1)}
        return {f"stock_{way}": StockClick(network, resolved.spec, labels, device, way) for way in WAYS_BACK}
