"""Which image to annotate next, without a model: the first open one, or any open one."""

from __future__ import annotations

import random
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


def open_images(request: dict[str, Any], datastore: Datastore) -> list[str]:
    """Ids of the images without a final label, sorted."""
    return sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))


class First(Strategy):
    """Always the first image, by id, that has no final label."""

    def __init__(self) -> None:
        super().__init__("The first image, by name, that is not labelled yet")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = open_images(request, datastore)
        reason = f"the first by name of {len(images)} open images"
        return {"id": images[0], "weight": 1.0, "reason": reason} if images else None


class Random(Strategy):
    """Any image that has no final label; the longer ago it was offered, the likelier.

    The weight is the time since this strategy last offered the image, and at least one second: two calls within a
    second, with one image left, are no error.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__("A random image that is not labelled yet; those offered lately come less often")
        self._rng = rng or random.Random()

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = open_images(request, datastore)
        if not images:
            return None
        now = time.time()
        weights = [max(1.0, now - self._last_offered(datastore, image, request)) for image in images]
        chosen = self._rng.choices(range(len(images)), weights)[0]
        reason = f"drawn from {len(images)} open images; those offered lately come less often"
        return {"id": images[chosen], "weight": weights[chosen], "reason": reason}

    @staticmethod
    def _last_offered(datastore: Datastore, image: str, request: dict[str, Any]) -> float:
        offered = datastore.get_image_info(image).get("strategy", {}).get(request.get("strategy", "random"), {})
        ts = offered.get("ts", 0) if isinstance(offered, dict) else 0
        return float(ts) if isinstance(ts, (int, float)) else 0.0
