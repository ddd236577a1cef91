"""From prompts on a resident scan to a mask on the scan's own grid.

Frame, cached embedding, one decoder pass for each new prompt, and back: a refinement click reads no file and runs no
encoder as long as the patch need not move. The answer depends on scan and prompts alone, never on what was asked before:
the frame is a function of the prompts (and of the model's first look at the first of them), and the prompts are replayed
in their order, as the network was trained. What was replayed before is remembered by prefix: a new click at the end of
the list costs one decoder pass; one in the middle (clients send positive clicks first) costs those behind it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import on_device
from .build import Sam3D
from .captured import CapturedSteps, flat, nested
from .compute import compute, computed
from .device import has_bfloat16
from .geometry import Grid, PatchFrame
from .half import halved
from .intensity import padding_floor
from .looks import described, expected_dice
from .lungs import FAR_BETTER, FAR_SURE, click_in_lung, far_inside
from .networks.layers import trilinear
from .networks.prompt_maps import BOX_HIGH, BOX_LOW, NEGATIVE, POSITIVE
from .placement import (
    BETTER,
    SURE,
    SURER,
    first_prompt,
    follow,
    holds,
    is_wide,
    leaves,
    look_again,
    look_closer,
    look_farther,
    place_patch,
)  # fmt: skip
from .postprocess import connected_to_clicks, steadied
from .preprocess import network_input
from .prompts import Box, PromptError, Prompts
from .session import ImageSession
from .spec import SamSpec
from .timing import stage

if TYPE_CHECKING:
    from .uncertainty import UncertaintyMap

SINGLE_CLICKS = 16
"""So many clicks are replayed one at a time; later ones in blocks of this size, so that many stay affordable."""

RECORDED_PROMPTS = 6
"""CUDA graphs are recorded for the decoder with up to so many prompts; with more it runs kernel by kernel."""

_MANY = 8  # so many cells of a mask hold a voxel of the scan for sure


@dataclass(frozen=True)
class Segmentation:
    """An answer.

    Attributes:
        mask_box: (i, j, k) uint8 part of the scan that holds every positive voxel; the rest of the scan is 0.
        corner_ijk: the scan's voxel at the low corner of mask_box.
        grid: the scan's grid.
        iou: the network's own estimate of the mask's intersection over union, in [0, 1].
        timings_ms: milliseconds by stage: crop, encode, decode, paste.
        warnings: what the user should know.
        weights, version: which weights answered.
        unsure: how sure the mask is, where that was asked for.
        values: name -> value in the mask, of an answer with several structures.
        taught: whether the network that was taught answered, of weights that have two (router.py).
    """

    mask_box: np.ndarray
    corner_ijk: tuple[int, int, int]
    grid: Grid
    iou: float
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]
    weights: str
    version: str
    unsure: UncertaintyMap | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    taught: bool | None = None

    def full_mask(self) -> np.ndarray:
        """(I, J, K) uint8 mask of the whole scan."""
        mask = np.zeros(self.grid.shape, dtype=np.uint8, order="F")
        window = tuple(slice(c, c + n) for c, n in zip(self.corner_ijk, self.mask_box.shape))
        mask[window] = self.mask_box
        return mask


@dataclass(frozen=True)
class _State:
    """What the decoder knows after some prompts: low-resolution logits (1, 1, m, m, m) and the predicted IoU."""

    logits: Tensor
    iou: float


@dataclass(frozen=True)
class View:
    """What the network said in its patch.

    Attributes:
        frame: the patch.
        embedding: of the patch, see `Sam3D.encode`.
        rounds: the prompts in the order of replay, each a tuple of (patch voxel, label).
        outside: how many clicks lie outside the patch.
        logits: (1, 1, m, m, m) low-resolution logits. iou: the network's own estimate.
    """

    frame: PatchFrame
    embedding: tuple[Tensor, tuple[Tensor, ...]]
    rounds: list[tuple[tuple[tuple[int, ...], int], ...]]
    outside: int
    logits: Tensor
    iou: float


class VolumeSegmenter:
    """A promptable 3D network over resident scans.

    Args:
        model: built and loaded network.
        spec: its description.
        weights_name, weights_version: reported with every answer, and part of every cache key.
        device: where the network runs.
    """

    def __init__(
        self, model: Sam3D, spec: SamSpec, weights_name: str, weights_version: str, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.device = spec, torch.device(device)
        self.half = spec.half and has_bfloat16(self.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        if self.half:
            self.model = halved(self.model).to(memory_format=torch.channels_last_3d)
        self.model.prompt_encoder.keep_position(torch.bfloat16 if self.half else torch.float32)
        self.weights_name, self.weights_version = weights_name, weights_version
        self._steps = CapturedSteps.on(self.device)

    @computed
    def record_graphs(self) -> int:
        """Records what first clicks need as CUDA graphs (captured.py), on a device that has them.

        Returns:
            How many there are.
        """
        return self._steps.record_all(self._usual_steps)

    def _usual_steps(self) -> None:
        """Every step with the shapes of few prompts."""
        spec = self.spec
        shape = (1, spec.encoder.channels, *(spec.patch_size,) * 3)
        embedding = self.encode(torch.linspace(-1, 1, math.prod(shape)).reshape(shape))
        for count in range(1, RECORDED_PROMPTS + 1):
            for passes in {1, spec.background_passes, max(1, spec.first_passes - 1)}:
                points = self._points([((spec.patch_size // 2,) * 3, POSITIVE)] * count)
                logits, _ = self.decode(embedding, points, passes=passes)
        self.sharpen(embedding, logits)

    def answering(
        self, session: ImageSession, prompts: Prompts, timings: dict[str, float] | None = None
    ) -> VolumeSegmenter:
        """The segmenter that answers these prompts: this one, where there is but one."""
        return self

    @computed
    def encode(self, patch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`Sam3D.encode` on the segmenter's device, in half precision where the spec says so."""
        # As it is: the first convolution turns it to the weights' order in half precision.
        patch = patch.to(self.device)

        def step(patch: Tensor) -> tuple[Tensor, ...]:
            with self._precision():
                return flat(self.model.encode(patch))

        return nested(self._steps("encode", step, patch))

    @computed
    def decode(
        self, embedding, points: tuple[Tensor, Tensor], previous: Tensor | None = None, passes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """`Sam3D.decode` likewise, of zeros where there are no logits yet; logits and IoU in float32."""
        if previous is None:
            previous = torch.zeros(len(points[0]), 1, *(self.spec.mask_size,) * 3, device=self.device)

        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            *features, coords, labels, before = tensors
            with self._precision():
                logits, iou = self.model.decode(nested(features), (coords, labels), before, passes=passes)
            return logits.float(), iou.float()

        return self._steps(("decode", passes), step, *flat(embedding), *points, previous)

    @computed
    def sharpen(self, embedding, logits: Tensor) -> Tensor:
        """`Sam3D.sharpen` likewise, in float32."""

        def step(*tensors: Tensor) -> tuple[Tensor, ...]:
            *features, logits = tensors
            with self._precision():
                return (self.model.sharpen(nested(features), logits).float(),)

        return self._steps("sharpen", step, *flat(embedding), logits)[0]

    def _precision(self) -> torch.autocast:
        # Weights are cast already; and what a CUDA graph takes from autocast's cache would be gone when it runs again.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half, cache_enabled=False)

    def segment(self, session: ImageSession, prompts: Prompts) -> Segmentation:
        """Answers prompts on an open session.

        Raises:
            PromptError: prompts that this scan or this model cannot be asked.
        """
        volume, timings = session.volume, {}
        view = self.look(session, prompts, timings)
        warnings = list(volume.warnings)
        if view.outside:
            warnings.append(f"{view.outside} clicks lie outside the region that the model sees and were not used")
        if prompts.box is not None and not holds(view.frame, _corners(prompts.box)):
            warnings.append("the box is larger than the region that the model sees and was cut to it")
        mask_box, corner = self.mask_of(view, timings)
        if not mask_box.any():
            warnings.append("the model found nothing at these prompts; click in the middle of the structure")
        iou = float(np.clip(view.iou, 0.0, 1.0))
        return Segmentation(
            mask_box, corner, volume.grid, iou, timings, tuple(warnings), self.weights_name, self.weights_version
        )

    def look(self, session: ImageSession, prompts: Prompts, timings: dict[str, float] | None = None) -> View:
        """What the network says to prompts, in its patch.

        Args:
            timings: milliseconds by stage are added to it.

        Raises:
            PromptError: prompts that this scan or this model cannot be asked.
        """
        timings = {} if timings is None else timings
        prompts.validate(session.volume.grid)
        if prompts.box is not None and not self.spec.decoder.boxes:
            raise PromptError(f"{self.spec.name} was not trained with boxes; give clicks, or use another model")
        return self.view(session, self._place(session, prompts, timings), prompts, timings)

    def glance(self, session: ImageSession, first: Prompts, timings: dict[str, float]) -> View:
        """The answer to a first prompt in the patch around it, after one decoder pass."""
        return self.view(session, place_patch(session.volume.grid, first, self.spec), first, timings, glance=True)

    def view(
        self,
        session: ImageSession,
        frame: PatchFrame,
        prompts: Prompts,
        timings: dict[str, float],
        glance: bool = False,
    ) -> View:
        """The answer to prompts in a given patch; a glance is the answer to the first of them after one decoder pass."""
        embedding = self._embedding(session, frame, timings)
        with stage(timings, "decode"):
            rounds, outside = self._rounds(frame, prompts)
            if glance:
                state = self._first_pass(session, frame, embedding, rounds[0])
            else:
                state = self._replay(session, frame, embedding, rounds)
        return View(frame, embedding, rounds, outside, state.logits, state.iou)

    def mask_of(self, view: View, timings: dict[str, float] | None = None) -> tuple[np.ndarray, tuple[int, int, int]]:
        """The mask of a view on the scan's grid: (i, j, k) uint8 box, and the scan's voxel at its low corner."""
        timings = {} if timings is None else timings
        with stage(timings, "decode"):
            cube = self._cube(view)
        with stage(timings, "paste"):
            return _paste(view.frame, cube)

    def describe(self, view: View) -> np.ndarray | None:
        """What tells how well the mask fits (looks.py), (D,); None of an empty mask, and of networks that do not see the
        intensities at the cells of the mask."""
        mask = self.cells(view)
        if not self.spec.decoder.appearance or not mask.any():
            return None
        intensities = view.embedding[1][2][0].float().cpu().numpy()
        logits = view.logits[0, 0].float().cpu().numpy()
        return described(logits, mask, view.iou, self.spec.cell * view.frame.spacing_mm, intensities)

    @computed
    def _cube(self, view: View) -> Tensor:
        """The logits (S, S, S) of the patch, as sharp as the model makes them."""
        sharp = self._shown(self.sharpen(view.embedding, view.logits), view.rounds)
        return trilinear(sharp[0, 0], self.spec.patch_size)

    def _shown(self, logits: Tensor, rounds) -> Tensor:
        """The logits (1, 1, n, n, n) of which the mask is made."""
        if not self.spec.connected:
            return logits.float()
        cell = self.spec.patch_size // logits.shape[-1]
        clicked = [p for r in rounds for p, label in r if label == POSITIVE]
        cells = np.array(clicked, dtype=int).reshape(-1, 3) // cell
        shown = connected_to_clicks(logits[0, 0].float().cpu().numpy(), cells)
        return torch.from_numpy(shown)[None, None].to(logits.device)

    def _place(self, session: ImageSession, prompts: Prompts, timings: dict[str, float]) -> PatchFrame:
        """The patch. Where the spec zooms it follows the prompts one by one, from a first look at the first of them."""
        grid = session.volume.grid
        if not self.spec.zoom:
            return place_patch(grid, prompts, self.spec)
        first = first_prompt(prompts)
        begin = 0 if first.box is not None else prompts.clicks.index(first.clicks[0]) + 1
        frame, done = None, begin
        for n in range(len(prompts.clicks), begin - 1, -1):
            frame = session.get(self._place_key(prompts, n))
            if frame is not None:
                done = n
                break
        if frame is None:
            frame = self._first_frame(session, first, timings)
            session.put(self._place_key(prompts, begin), frame)
        for n in range(done + 1, len(prompts.clicks) + 1):
            frame = self._next_frame(session, frame, prompts.until(n), timings)
            session.put(self._place_key(prompts, n), frame)
        return frame

    def _place_key(self, prompts: Prompts, n: int) -> tuple:
        return ("place", self.weights_version, prompts.box, prompts.clicks[:n])

    def _first_frame(self, session: ImageSession, first: Prompts, timings: dict[str, float]) -> PatchFrame:
        """The patch after a first look at the first prompt.

        What a click means depends on how near one looks: an object that fills the patch may be a row of objects, and a
        small one a vessel of a large one. The network's own estimate of its masks decides between the looks. Where it is not
        sure, what else the masks tell may choose a finer one (looks.py), and a large mask is looked at from farther away;
        not so in lung.
        """
        grid = session.volume.grid
        seen = self.glance(session, first, timings)
        wide = seen.frame
        again = look_again(wide, self.cells(seen), self.spec)
        frame = wide if again is None else place_patch(grid, first, self.spec, again)
        if first.box is not None or not self.spec.looks:
            return frame
        second = best = self.view(session, frame, first, timings)
        in_lung = self.spec.far_clicks > 0 and click_in_lung(session.volume, first.clicks_ijk[0])
        larger = frame.spacing_mm < wide.spacing_mm and (in_lung or leaves(frame, self.cells(second)))
        if best.iou >= SURE and not larger:
            return frame
        views = [second]
        if again is not None:
            views.append(self.view(session, wide, first, timings))
            best = views[1] if views[1].iou > best.iou + (-BETTER if larger else BETTER) else best
        found = self._shows(best)
        closer = look_closer(grid, first, self.spec, found) if best.iou < SURE or not found else None
        if closer is not None and closer.spacing_mm <= 0.95 * best.frame.spacing_mm:
            view = self.view(session, closer, first, timings)
            views.append(view)
            better = view.iou > best.iou + BETTER if found else self._shows(view)  # anything is better than nothing
            best = view if better and not leaves(closer, self.cells(view)) else best
        if not found or second.iou >= SURE or in_lung:
            return best.frame
        best = self._most_expected(views, best)
        if best.iou < SURE and is_wide(best.frame, self.cells(best), self.spec):
            view = self.view(session, look_farther(grid, first, self.spec), first, timings)
            best = view if view.iou >= max(SURE, best.iou + SURER) else best
        return best.frame

    def _most_expected(self, views: list[View], chosen: View) -> View:
        """The view whose mask is expected to fit best: the chosen one, or a finer one that does not leave its patch. Never a
        coarser one: its mask is often better after one click, and worse after five.
        """
        finer = [
            v for v in views if v.frame.spacing_mm < chosen.frame.spacing_mm and not leaves(v.frame, self.cells(v))
        ]
        return max([chosen, *finer], key=self._expected) if finer else chosen

    def _expected(self, view: View) -> float:
        """The Dice that its mask is expected to have, see looks.py."""
        description = self.describe(view)
        return -math.inf if description is None else expected_dice(description)

    def _shows(self, view: View) -> bool:
        """Whether a mask holds any voxel of the scan; a few cells may hold none."""
        return self.cells(view).sum() >= _MANY or bool(self.mask_of(view)[0].any())

    def cells(self, view: View) -> np.ndarray:
        """The cells (m, m, m) bool of the mask."""
        return self._shown(view.logits, view.rounds)[0, 0].cpu().numpy() > 0

    def _next_frame(
        self, session: ImageSession, frame: PatchFrame, prompts: Prompts, timings: dict[str, float]
    ) -> PatchFrame:
        """The patch for one more click; only clicks on the object move it, late ones only where they lie outside."""
        newest = prompts.clicks_ijk[-1:]
        if not prompts.clicks[-1].positive or (len(prompts.clicks) > SINGLE_CLICKS and holds(frame, newest)):
            return frame
        before = prompts.until(len(prompts.clicks) - 1)
        view = self.view(session, frame, before, timings)
        return follow(frame, self.cells(view), prompts, self.spec)

    def _embedding(self, session: ImageSession, frame: PatchFrame, timings: dict[str, float]):
        """Embedding and skip features of the patch, from the session or computed."""
        key = ("embedding", self.weights_version, _frame_key(frame))
        cached = session.get(key)
        if cached is not None:
            return cached
        with stage(timings, "crop"):
            floor = session.get("padding_floor")
            if floor is None:
                floor = (padding_floor(session.volume.array),)
                session.put("padding_floor", floor)
            voxels = self._resident(session)
            if voxels is None:
                patch = torch.from_numpy(network_input(session.volume.array, frame, floor[0], self.spec.intensity))
            else:
                patch = compute(on_device.network_input, voxels, frame, floor[0], self.spec.intensity)
        with stage(timings, "encode"):
            embedding = self.encode(patch[None])
        session.put(key, embedding)
        return embedding

    def _resident(self, session: ImageSession) -> Tensor | None:
        """The scan on the GPU, where there is one and the scan has room there."""
        if self.device.type != "cuda":
            return None
        key = ("voxels", str(self.device))
        voxels = session.get(key)
        if voxels is None:
            voxels = compute(on_device.resident, session.volume.array, self.device)
            if voxels is not None:
                session.put(key, voxels)
        return voxels

    def _rounds(self, frame: PatchFrame, prompts: Prompts) -> tuple[list[tuple[tuple[tuple[int, ...], int], ...]], int]:
        """Prompts in the order of replay: a list of rounds, each a tuple of (patch voxel, label); and how many clicks
        lie outside the patch."""
        size = self.spec.patch_size
        rounds = []
        if prompts.box is not None:
            corners = frame.to_patch(_corners(prompts.box))
            corners = np.sort(corners, axis=0).round().clip(0, size - 1).astype(int)
            rounds.append(tuple((tuple(c), label) for c, label in zip(corners.tolist(), (BOX_LOW, BOX_HIGH))))
        points = np.floor(frame.to_patch(prompts.clicks_ijk) + 0.5).astype(int)
        used = ((points >= 0) & (points < size)).all(axis=1)
        clicks = [
            (tuple(p), POSITIVE if label else NEGATIVE)
            for p, label, use in zip(points.tolist(), prompts.labels.tolist(), used)
            if use
        ]
        singles = clicks[:SINGLE_CLICKS]
        rounds += [(c,) for c in singles]
        rest = clicks[SINGLE_CLICKS:]
        rounds += [tuple(rest[i : i + SINGLE_CLICKS]) for i in range(0, len(rest), SINGLE_CLICKS)]
        return rounds, int((~used).sum())

    def _replay(self, session: ImageSession, frame: PatchFrame, embedding, rounds) -> _State:
        """Runs the decoder for every round that was not replayed before."""
        base = ("logits", self.weights_version, _frame_key(frame))
        state, done = None, 0
        for n in range(len(rounds), 0, -1):
            state = session.get((*base, tuple(rounds[:n])))
            if state is not None:
                done = n
                break
        if state is None:
            state, done = self._first_answer(session, frame, embedding, rounds[0]), 1
            session.put((*base, tuple(rounds[:1])), state)
        for n in range(done, len(rounds)):
            state = self._next_round(embedding, rounds[: n + 1], state)
            session.put((*base, tuple(rounds[: n + 1])), state)
        return state

    @computed
    def _next_round(self, embedding, rounds, before: _State) -> _State:
        """The decoder passes over the last of some rounds."""
        newest = rounds[-1]
        given = newest if self.spec.replay == "last" else [p for r in rounds for p in r]
        background = all(label == NEGATIVE for _, label in newest)
        passes = self.spec.background_passes if background else 1
        after = self._state(embedding, given, before, passes)
        if not self.spec.steady:
            return after
        places = torch.tensor([p for p, _ in newest], dtype=torch.float32)
        return _State(steadied(before.logits, after.logits, places, background, self.spec), after.iou)

    def _first_answer(self, session: ImageSession, frame: PatchFrame, embedding, first) -> _State:
        """The answer to the first round; that to a click in lung with clicks far off in its own mask (lungs.py)."""
        state = self._first_round(session, frame, embedding, first)
        (place, label), *others = first
        if not self.spec.far_clicks or others or label != POSITIVE or state.iou >= FAR_SURE:
            return state
        if not click_in_lung(session.volume, frame.to_source(np.array([place], dtype=np.float64))[0]):
            return state
        return self._with_far_clicks(embedding, place, state)

    def _with_far_clicks(self, embedding, place: tuple[int, ...], state: _State) -> _State:
        """The best answer, by the network's own estimate, with up to so many more clicks on the object."""
        given, best, newest = ((place, POSITIVE),), state, state
        for _ in range(self.spec.far_clicks):
            mask = self._shown(newest.logits, [given])[0, 0].cpu().numpy() > 0
            far = far_inside(mask, np.array([p for p, _ in given]) / self.spec.cell)
            if far is None:
                break
            given += ((tuple(self.spec.cell * c + self.spec.cell // 2 for c in far), POSITIVE),)
            newest = self._state(embedding, given, newest)
            if newest.iou > max(best.iou, state.iou + FAR_BETTER):
                best = newest
        return best

    def _first_round(self, session: ImageSession, frame: PatchFrame, embedding, first) -> _State:
        """All decoder passes over the first round."""
        state = self._first_pass(session, frame, embedding, first)
        if self.spec.first_passes == 1:
            return state
        return self._state(embedding, first, state, self.spec.first_passes - 1)

    def _first_pass(self, session: ImageSession, frame: PatchFrame, embedding, first) -> _State:
        """One decoder pass over the first round."""
        key = ("first pass", self.weights_version, _frame_key(frame), first)
        state = session.get(key)
        if state is None:
            state = self._state(embedding, first)
            session.put(key, state)
        return state

    def _state(self, embedding, given, before: _State | None = None, passes: int = 1) -> _State:
        """What the decoder says to prompts, with its answer before as prompt where there is one."""
        previous = None if before is None else before.logits
        logits, iou = self.decode(embedding, self._points(given), previous, passes)
        return _State(logits, float(iou[0, 0]))

    def _points(self, given) -> tuple[Tensor, Tensor]:
        """Prompts ((patch voxel, label), ...) as the network takes them: (1, N, 3) and (1, N)."""
        points = torch.tensor([[p for p, _ in given]], dtype=torch.float32, device=self.device)
        return points, torch.tensor([[label for _, label in given]], device=self.device)


def _paste(frame: PatchFrame, cube: Tensor) -> tuple[np.ndarray, tuple[int, int, int]]:
    """`PatchFrame.paste`, where the logits (S, S, S) lie."""
    if cube.device.type == "cpu":
        return frame.paste(cube.numpy())
    return compute(on_device.paste, frame, cube)


def _corners(box: Box) -> np.ndarray:
    return np.array([box.low_ijk, box.high_ijk], dtype=np.float64)


def _frame_key(frame: PatchFrame) -> tuple:
    return (frame.axes, frame.step, frame.anchor_node, frame.anchor_ijk, frame.shape)
