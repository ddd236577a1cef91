"""From prompts on a resident scan, or on an image, to a mask, by a network for images.

A slice is encoded once; its embedding stays in the session and serves every box and click on that slice. A stack is
segmented slice by slice (propagation.py), the slices in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .build import Sam2D
from .geometry import Grid
from .intensity import AUTO, grey_range, is_ct, looks_like_lung, to_8bit
from .lungs import box_means_lung, lung_clicks
from .prompts import PromptError, Prompts
from .propagation import SliceMask, StackPlan, follow
from .segmenter import Segmentation
from .session import ImageSession
from .slice_network import SliceNetwork, SlicePrompt
from .slice_prompts import model_box, plan_prompts, plane_axis
from .slice_source import Memory, SliceSource
from .slices import SliceFrame, plane_axes, slice_image
from .timing import stage

CACHE_BYTES = 512 * 2**20
"""Embeddings kept of a stack that is no session's."""

_AROUND = 2  # voxels to every side of a click that tell what was clicked on
_LUNG_IN_BOX, _LUNG_AT_CLICK = 0.2, 0.5
"""So much of it must look like lung. In nine of ten boxes on CT slices of the lungs of the samples the share is above 0.1, in half
above 0.4; in nine of ten of any other organ, bowel with its gas included, below 0.18."""


@dataclass(frozen=True)
class SliceOptions:
    """How a scan is looked at.

    Attributes:
        single: one slice, rather than a stack.
        window: see intensity.grey_range. "auto" shows a CT in the lung window where box or first click point at lung.
        extent: see slice_prompts.plan_prompts.
        axis: across the slices; None where the prompts tell (slice_prompts.plane_axis).
        notes: what the user should know of how the prompts were read; they come with the answer.
    """

    single: bool = False
    window: str = AUTO
    extent: int = 0
    axis: int | None = None
    notes: tuple[str, ...] = ()


class SliceSegmenter:
    """A promptable network for images over resident scans.

    Args:
        model: built and loaded network, in its trained form.
        weights_name, weights_version: reported with every answer, and part of every cache key.
        device: where the network runs.
        fused, half: see SliceNetwork.
    """

    def __init__(
        self,
        model: Sam2D,
        weights_name: str,
        weights_version: str,
        device: torch.device | str = "cpu",
        fused: bool = True,
        half: bool | None = None,
    ) -> None:
        self.network = SliceNetwork(model, device, fused, half)
        self.spec = model.spec
        self.weights_name, self.weights_version = weights_name, weights_version

    def segment(
        self,
        session: ImageSession,
        prompts: Prompts,
        options: SliceOptions = SliceOptions(),  # noqa: B008 (frozen)
    ) -> Segmentation:
        """Answers prompts on an open session.

        Raises:
            PromptError: prompts that this scan or one slice of it cannot be asked.
        """
        volume, timings = session.volume, {}
        prompts.validate(volume.grid)
        if prompts.box is None and not prompts.labels.any():
            raise PromptError("a segmentation needs at least one click on the object or a box, got neither")
        axis = plane_axis(volume.grid, prompts, options.single) if options.axis is None else options.axis
        frame = _frame(volume.grid, axis, self.spec.image_size)
        plan, warnings = plan_prompts(volume.grid, prompts, axis, frame, options.single, options.extent)
        limits, around_lung = self._looked_at(session, prompts, options.window, axis, timings)
        source = self._source(session, axis, frame, limits, timings)

        def predict(asked: Sequence[tuple[int, SlicePrompt]], coming: Sequence[int]) -> list[SliceMask]:
            if around_lung:
                asked = [(n, _with_lung(slice_image(volume.array, axis, n), prompt, frame)) for n, prompt in asked]
            return source.predict(asked, coming)

        masks = follow([plan], predict, frame, self.spec.margin)[0]
        with stage(timings, "paste"):
            mask_box, corner = assemble(masks, axis)
        if not mask_box.size:
            warnings.append("the model found nothing at these prompts; click in the middle of the structure")
        iou = float(np.clip(np.mean([masks[index].iou for index in plan.anchors]), 0, 1))
        return Segmentation(
            mask_box, corner, volume.grid, iou, timings, (*volume.warnings, *options.notes, *warnings), self.weights_name,
            self.weights_version,
        )  # fmt: skip

    def segment_image(
        self,
        image: np.ndarray,
        boxes_xy: np.ndarray,
        clicks_xy: Sequence[tuple[int, int, bool]] = (),
        cache: Memory | None = None,
    ) -> list[SliceMask]:
        """Answers boxes on one image, which is encoded once; or one object by clicks, with a box or without.

        Args:
            image: (H, W) or (H, W, 3) uint8.
            boxes_xy: (N, 4) x0, y0, x1, y1 in its pixels, within it.
            clicks_xy: column, row and whether it lies on the object; only with at most one box.
            cache: of this image and this segmenter, for further questions; None for none.

        Raises:
            PromptError: clicks with several boxes, or neither a box nor a click on the object.
        """
        frame = SliceFrame(image.shape[:2], self.spec.image_size)
        source = SliceSource(self.network, lambda index: image, frame, cache or Memory(CACHE_BYTES))
        prompts = [SlicePrompt(model_box(box, frame)) for box in boxes_xy]
        if clicks_xy:
            if len(prompts) > 1:
                raise PromptError(f"clicks refine one object, got them with {len(prompts)} boxes; give one box")
            if not prompts and not any(sign for *_, sign in clicks_xy):
                raise PromptError("a segmentation needs at least one click on the object or a box, got neither")
            points = frame.points_to_model(np.array([place for *place, _ in clicks_xy])).tolist()
            clicks = tuple((x, y, int(sign)) for (x, y), (*_, sign) in zip(points, clicks_xy))
            prompts = [SlicePrompt(prompts[0].box if prompts else None, clicks)]
        return source.predict([(0, prompt) for prompt in prompts])

    def segment_stack(self, stack: np.ndarray, boxes: Sequence[np.ndarray]) -> list[dict[int, SliceMask]]:
        """Answers boxes in a stack, each slice of which is encoded once.

        Args:
            stack: (D, H, W) uint8.
            boxes: (6,) each: x0, y0, z0, x1, y1, z1 in pixels and slices, within the stack, the last ones included.

        Returns:
            For each box the answers by slice.
        """
        frame = SliceFrame(stack.shape[1:], self.spec.image_size)
        source = SliceSource(self.network, lambda index: stack[index], frame, Memory(CACHE_BYTES))
        return follow([stack_plan(box, frame) for box in boxes], source.predict, frame, self.spec.margin)

    @classmethod
    def limits(cls, session: ImageSession, prompts: Prompts, window: str = AUTO) -> tuple[float, float]:
        """The intensities that become black and white; the first prompt decides, so that later clicks see the same slices."""
        axis = plane_axis(session.volume.grid, prompts, single=True)
        return cls._looked_at(session, prompts, window, axis, {})[0]

    @staticmethod
    def _looked_at(
        session: ImageSession, prompts: Prompts, window: str, axis: int, timings: dict[str, float]
    ) -> tuple[tuple[float, float], bool]:
        """The limits of `limits`, and whether a box was drawn around lung."""
        array = session.volume.array

        def limits(window: str) -> tuple[float, float]:
            found = session.get(("grey_range", window))
            if found is None:
                with stage(timings, "crop"):
                    found = grey_range(array, window)
                session.put(("grey_range", window), found)
            return found

        if window != AUTO or not is_ct(limits(AUTO)):
            return limits(window), False
        around_lung = _around_lung(array, prompts, axis)
        share = _LUNG_AT_CLICK if prompts.box is None else _LUNG_IN_BOX
        lung = around_lung or looks_like_lung(array[_first_asked(prompts)], share)
        return limits("lung" if lung else AUTO), around_lung

    def _source(
        self,
        session: ImageSession,
        axis: int,
        frame: SliceFrame,
        low_high: tuple[float, float],
        timings: dict[str, float],
    ) -> SliceSource:
        array = session.volume.array
        key = ("slice", self.weights_version, self.network.half, low_high, axis)
        return SliceSource(
            self.network,
            lambda index: to_8bit(slice_image(array, axis, index), *low_high),
            frame,
            session,
            key,
            timings,
        )


def _first_asked(prompts: Prompts) -> tuple[slice, ...]:
    """The box, or a few voxels around the first click on the object."""
    if prompts.box is not None:
        return tuple(slice(low, high + 1) for low, high in zip(prompts.box.low_ijk, prompts.box.high_ijk))
    first = next(click.ijk for click in prompts.clicks if click.positive)
    return tuple(slice(max(0, c - _AROUND), c + _AROUND + 1) for c in first)


def _around_lung(array: np.ndarray, prompts: Prompts, axis: int) -> bool:
    """Whether a box in one slice was drawn around lung. The faces of a box through several tell less: lung lies at those of a rib."""
    if prompts.box is None or prompts.box.low_ijk[axis] != prompts.box.high_ijk[axis]:
        return False
    x, y = plane_axes(axis)
    low, high = prompts.box.low_ijk, prompts.box.high_ijk
    plane = slice_image(array, axis, low[axis])
    clicks = [
        (click.ijk[x], click.ijk[y]) for click in prompts.clicks if click.positive and click.ijk[axis] == low[axis]
    ]
    return box_means_lung(plane, (low[x], low[y], high[x], high[y]), clicks)


def _with_lung(plane: np.ndarray, prompt: SlicePrompt, frame: SliceFrame) -> SlicePrompt:
    """A prompt with clicks, before the user's, that tell lung from what else its box holds."""
    if prompt.box is None:
        return prompt
    edges = np.array(prompt.box) / frame.scale
    x0, y0 = np.floor(edges[:2]).astype(int)
    x1, y1 = np.minimum(np.ceil(edges[2:]).astype(int), np.array(plane.shape[::-1]) - 1)
    found = lung_clicks(plane, (x0, y0, x1, y1))
    places = frame.points_to_model(np.array([place for *place, _ in found]).reshape(-1, 2)).tolist()
    told = tuple((x, y, int(on_lung)) for (x, y), (*_, on_lung) in zip(places, found))
    return SlicePrompt(prompt.box, (*told, *prompt.clicks))


def stack_plan(box: np.ndarray, frame: SliceFrame) -> StackPlan:
    """The plan of a box (6,) x0, y0, z0, x1, y1, z1 in a stack: from its middle slice outward, as published."""
    x0, y0, z0, x1, y1, z1 = (int(v) for v in box)
    roi = model_box(np.array([x0, y0, x1, y1]), frame)
    return StackPlan(anchors={(z0 + z1) // 2: SlicePrompt(roi)}, reach=(z0, z1), roi=roi)


def assemble(masks: dict[int, SliceMask], axis: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """One part of the scan from the masks of its slices.

    Returns:
        (i, j, k) uint8 part that holds every positive voxel, and the scan's voxel at its low corner; of size 0 where
        there is none.
    """
    filled = {index: found for index, found in masks.items() if found.mask.size}
    if not filled:
        return np.zeros((0, 0, 0), dtype=np.uint8), (0, 0, 0)
    boxes = np.array([found.box_xy for found in filled.values()])
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    first = min(filled)
    part = np.zeros((max(filled) - first + 1, y1 - y0 + 1, x1 - x0 + 1), dtype=np.uint8)
    for index, found in filled.items():
        (y, x), (h, w) = found.corner, found.mask.shape
        part[index - first, y - y0 : y - y0 + h, x - x0 : x - x0 + w] = found.mask
    order, corner = [0, 0, 0], [0, 0, 0]
    for place, at, own in zip((axis, *plane_axes(axis)), (first, x0, y0), (0, 2, 1)):
        order[place], corner[place] = own, int(at)
    return part.transpose(order), tuple(corner)


def _frame(grid: Grid, axis: int, size: int) -> SliceFrame:
    x, y = plane_axes(axis)
    return SliceFrame((grid.shape[y], grid.shape[x]), size)
