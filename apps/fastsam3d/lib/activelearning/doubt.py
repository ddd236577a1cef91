"""How unsure the model is about an image, kept with the image; for the strategy and for the scoring method."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from ..sam.atlas import Atlas
from ..sam.geometry import Grid
from ..sam.intensity import padding_floor
from ..sam.probing import Probe, probe
from ..sam.segmenter import VolumeSegmenter
from ..sam.session import SessionStore
from ..sam.volume_io import VolumeError
from .strategies import open_images

logger = logging.getLogger(__name__)

KEY = "uncertainty"
_PLACES = 4
_BUDGET_SECONDS = 5.0
_INSIDE = (45, 97)
"""Percentiles between which an intensity is taken for tissue where no annotation says where to look."""


class Doubt:
    """Measures images and remembers the result in the datastore, with the weights that it holds for.

    Args:
        store: resident images. segmenter: gives the segmenter that serves now. atlas: see AutomaticInfer.
    """

    def __init__(
        self, store: SessionStore, segmenter: Callable[[], VolumeSegmenter], atlas: Callable[[], Atlas | None]
    ) -> None:
        self._store, self._segmenter, self._atlas = store, segmenter, atlas

    def known(self, image: str, datastore: Datastore, version: str) -> dict[str, Any] | None:
        """What was measured on an image with these weights, or None."""
        found = datastore.get_image_info(image).get(KEY)
        usable = isinstance(found, dict) and found.get("version") == version
        return found if usable and isinstance(found.get("score"), (int, float)) else None

    def version(self) -> str:
        """Of the weights that serve now."""
        return self._segmenter().weights_version

    def measure(self, image: str, datastore: Datastore) -> dict[str, Any]:
        """Measures an image and remembers it.

        Raises:
            VolumeError: it cannot be read.
        """
        segmenter, atlas = self._segmenter(), self._atlas()
        with self._store.open(image, datastore.get_image_uri(image)) as session:
            array, grid = session.volume.array, session.volume.grid
            rng = np.random.default_rng(int(hashlib.sha256(image.encode()).hexdigest()[:8], 16))
            floor = (padding_floor(array),)
            places = [(p.structure, p.centre_ijk) for p in atlas.find(array, grid)] if atlas else []
            places = places or [(f"place {n + 1}", c) for n, c in enumerate(_anywhere(array, grid, rng))]
            probes = {name: probe(segmenter, array, grid, np.array(c), rng, floor) for name, c in places}
        result = _summary(probes) | {"version": segmenter.weights_version}
        datastore.update_image_info(image, {KEY: result})
        return result


def _anywhere(array: np.ndarray, grid: Grid, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Voxels of middling intensity in the inner part of a scan."""
    begin = [n // 5 for n in grid.shape]
    inner = array[tuple(slice(b, max(b + 1, n - b)) for b, n in zip(begin, grid.shape))]
    step = tuple(slice(None, None, max(1, n // 48)) for n in inner.shape)
    sample = inner[step]
    low, high = np.percentile(sample, _INSIDE)
    usable = np.argwhere((sample >= low) & (sample <= high))
    chosen = usable[rng.permutation(len(usable))[:_PLACES]]
    return [tuple(int(b + v * s.step) for b, v, s in zip(begin, voxel, step)) for voxel in chosen]


def _summary(probes: dict[str, Probe]) -> dict[str, Any]:
    worst = max(probes, key=lambda name: probes[name].doubt)
    mean = {key: float(np.mean([getattr(p, key) for p in probes.values()])) for key in ("iou", "clarity", "agreement")}
    score = float(np.mean([p.doubt for p in probes.values()]))
    reason = (
        f"the model is unsure here (doubt {score:.2f}, most at {worst}): predicted IoU {mean['iou']:.2f}, "
        f"masks of moved clicks agree to {mean['agreement']:.2f}, entropy {1 - mean['clarity']:.2f} bits"
    )
    return {"score": round(score, 4), "reason": reason} | {key: round(value, 4) for key, value in mean.items()}


class Uncertainty(Strategy):
    """The image about which the model is least sure, by its own measures.

    Images without a measure are measured within five seconds, at least one a call; scoring measures all of them.
    """

    def __init__(self, doubt: Doubt) -> None:
        super().__init__("The image about which the model is least sure")
        self._doubt = doubt

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = open_images(request, datastore)
        version = self._doubt.version() if images else ""
        known = {image: self._doubt.known(image, datastore, version) for image in images}
        begin = time.monotonic()
        for image in [image for image in images if known[image] is None]:
            try:
                known[image] = self._doubt.measure(image, datastore)
            except VolumeError as error:
                logger.warning("%s is passed over: %s", image, error)
            if time.monotonic() - begin > _BUDGET_SECONDS:
                break
        measured = {image: found for image, found in known.items() if found}
        if not measured:
            return {"id": images[0], "weight": 0.0, "reason": "no open image could be measured"} if images else None
        chosen = max(measured, key=lambda image: measured[image]["score"])
        reason = f"{measured[chosen]['reason']}; {len(measured)} of {len(images)} open images compared"
        return {"id": chosen, "weight": measured[chosen]["score"], "reason": reason}


class UncertaintyScoring(ScoringMethod):
    """Measures every image without a final label, so that the strategy can compare all of them."""

    def __init__(self, doubt: Doubt) -> None:
        super().__init__("How unsure the model is about each image without a label, for the strategy 'uncertainty'")
        self._doubt = doubt

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        version, scores = self._doubt.version(), {}
        for image in open_images(request, datastore):
            try:
                found = self._doubt.known(image, datastore, version) or self._doubt.measure(image, datastore)
            except VolumeError as error:
                logger.warning("%s is passed over: %s", image, error)
                continue
            scores[image] = found["score"]
            logger.info("%s: %s", image, found["reason"])
        return {"scores": scores, "version": version}
