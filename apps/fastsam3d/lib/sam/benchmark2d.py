"""The published run-time table of RepMedSAM: whole cases by the baseline's way of working and by ours, in one run.

Four sides, in turn: LiteMedSAM as its authors run it (every slice encoded again for every box, one after another, in
float32), RepMedSAM run that way before and after re-parameterisation, and RepMedSAM as served here (SliceSegmenter). The
first three cost the same for every box on every slice, so only some of these pairs are run, and the case's time is their
median times the number of pairs; ours always runs whole. Times do not depend on the weights' values, so those may be random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from .build import Sam2D, build_sam2d
from .networks.fuse import fuse
from .propagation import SliceMask, follow
from .slice_network import SliceNetwork, SlicePrompt
from .slice_prompts import model_box
from .slice_segmenter import SliceSegmenter, stack_plan
from .slices import SliceFrame, preprocess_image
from .timing import seconds_of
from .zoo import get_spec2d

BASELINE, OURS = "litemedsam", "repmedsam"
SIDES = ("baseline", "unfused", "fused", "ours")
FORMS = (("trained, float32", False, False), ("fused, float32", True, False), ("fused, bfloat16", True, True))
BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what it stands for.
        shape: (D, H, W) of a stack, or (H, W, 3).
        boxes: x0, y0, z0, x1, y1, z1 in a stack, x0, y0, x1, y1 in an image; fixed, so that rows can be compared.
    """

    name: str
    shape: tuple[int, int, int]
    boxes: tuple[tuple[int, ...], ...]

    @property
    def is_stack(self) -> bool:
        """Whether the boxes are those of a stack."""
        return len(self.boxes[0]) == 6

    @property
    def pairs(self) -> int:
        """Boxes times the slices of each."""
        return sum(box[5] - box[2] + 1 for box in self.boxes) if self.is_stack else len(self.boxes)

    @property
    def slices(self) -> int:
        """Slices that a box touches."""
        return len({z for box in self.boxes for z in range(box[2], box[5] + 1)}) if self.is_stack else 1

    def smaller(self, factor: int) -> Case:
        """The same at a fraction of its size, with at most 6 boxes."""
        cut = 3 if self.is_stack else 2
        shape = tuple(max(8, n // factor) for n in self.shape[:cut]) + self.shape[cut:]
        limits = (self.shape[::-1] if self.is_stack else self.shape[1::-1]) * 2
        sizes = (shape[::-1] if self.is_stack else shape[1::-1]) * 2
        boxes = tuple(tuple(v * s // n for v, s, n in zip(box, sizes, limits)) for box in self.boxes[:6])
        return replace(self, shape=shape, boxes=boxes)


def _cells(count: int, columns: int, step: int, edge: int) -> tuple[tuple[int, ...], ...]:
    places = ((20 + step * (n % columns), 20 + step * (n // columns)) for n in range(count))
    return tuple((x, y, x + edge, y + edge) for x, y in places)


CASES = (
    # Of the six boxes of each stack three share their depth and three have depths of their own.
    Case(
        "CT stack, 6 objects",
        (237, 512, 512),
        (
            (60, 140, 90, 290, 360, 170),
            (130, 280, 95, 215, 380, 165),
            (350, 180, 100, 450, 330, 160),
            (210, 300, 5, 300, 380, 50),
            (200, 150, 55, 320, 260, 85),
            (180, 200, 180, 340, 340, 232),
        ),
    ),
    Case(
        "MR stack, 6 objects",
        (64, 290, 320),
        (
            (40, 80, 20, 150, 200, 44),
            (170, 90, 22, 230, 160, 42),
            (235, 100, 24, 290, 190, 40),
            (100, 150, 1, 160, 220, 8),
            (120, 60, 10, 190, 130, 18),
            (110, 120, 47, 210, 200, 62),
        ),
    ),
    Case("photograph, 1 object", (3024, 4032, 3), ((900, 700, 2900, 2300),)),
    Case("microscopy, 241 objects", (1920, 2560, 3), _cells(241, 20, 120, 90)),
)


@dataclass(frozen=True)
class Measured:
    """One row of results; times are seconds for the whole case.

    Attributes:
        case, shape, objects, slices, pairs: see Case.
        seconds: by side. extrapolated: sides whose time was taken from some pairs.
        pairs_run: pairs timed on each of those sides; rounds: whole runs of ours.
        ratio: of the baseline's time by the side's.
        dice: of our masks against those of the unfused side in float32, on the pairs that were compared.
        dice_pairs: how many pairs that were.
        spec, weights, threads, dtype, device: of ours.
    """

    case: str
    shape: tuple[int, ...]
    objects: int
    slices: int
    pairs: int
    seconds: dict[str, float]
    extrapolated: tuple[str, ...]
    pairs_run: int
    rounds: int
    ratio: dict[str, float]
    dice: float
    dice_pairs: int
    spec: str
    weights: str
    threads: int
    dtype: str
    device: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class PlainPath:
    """A network run as the baseline's authors do: for every box on every slice the slice is prepared and encoded again.

    Args:
        model: in float32, on its device. fused: with the re-parameterised encoder.
    """

    def __init__(self, model: Sam2D, fused: bool = False) -> None:
        self.model, self.encoder = model, fuse(model.image_encoder) if fused else model.image_encoder
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(self, image: np.ndarray, prompt: SlicePrompt) -> SliceMask:
        """One box on one 8-bit image."""
        frame = SliceFrame(image.shape[:2], self.model.spec.image_size)
        pixels = torch.from_numpy(preprocess_image(image, frame.size))[None].to(self.device)
        embedding = self.model.enlarge(self.encoder(pixels))
        logits, iou = self.model.decode(embedding, boxes=torch.tensor([prompt.box], device=self.device))
        mask = (frame.logits_to_source(logits)[0, 0] > 0).cpu().numpy()
        return SliceMask(mask, (0, 0), float(iou)) if mask.any() else SliceMask(mask[:0, :0], (0, 0), float(iou))

    def segment_stack(self, stack: np.ndarray, boxes: Sequence[Sequence[int]]) -> list[dict[int, SliceMask]]:
        """Boxes in a stack, by the same propagation as served."""
        frame = SliceFrame(stack.shape[1:], self.model.spec.image_size)

        def predict(asked, coming):
            return [_cropped(self.predict(stack[index], prompt)) for index, prompt in asked]

        return follow([stack_plan(np.array(box), frame) for box in boxes], predict, frame, self.model.spec.margin)


def phantom(case: Case, seed: int = 0) -> np.ndarray:
    """A noisy uint8 image or stack with a bright ellipse or ellipsoid in every box."""
    rng = np.random.default_rng(seed)
    image = rng.integers(50, 80, case.shape, dtype=np.uint8)
    for box in case.boxes:
        if case.is_stack:
            low, high = np.array(box[2::-1]), np.array(box[:2:-1])
        else:
            low, high = np.array(box[1::-1]), np.array(box[:1:-1])
        axes = np.ogrid[tuple(slice(a, b + 1) for a, b in zip(low, high))]
        inside = sum(((x - (a + b) / 2) / max(1, (b - a) / 2)) ** 2 for x, a, b in zip(axes, low, high)) <= 1
        image[tuple(slice(a, b + 1) for a, b in zip(low, high))][inside] += 90
    return image


def measure_case(
    case: Case,
    segmenter: SliceSegmenter,
    plain: dict[str, PlainPath],
    rounds: int,
    samples: int,
    threads: int,
    device: torch.device | str = "cpu",
) -> Measured:
    """Times the four sides of one case in turn.

    Args:
        segmenter: ours. plain: the other three sides, by name.
        rounds: whole runs of ours, and turns of the others. samples: pairs in each of those turns.
    """
    image, boxes = phantom(case), np.array(case.boxes)
    whole: Callable[[], Any] = (
        (lambda: segmenter.segment_stack(image, boxes)) if case.is_stack else (lambda: segmenter.segment_image(image, boxes))
    )  # fmt: skip
    asked = _some_pairs(case, image, samples * rounds, segmenter.spec.image_size)
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in plain.values():
        side.predict(*asked[0])  # the first run of a network is slower
    for n in range(rounds):
        for slice_, prompt in asked[n * samples : (n + 1) * samples]:
            for name, side in plain.items():
                taken[name].append(seconds_of(lambda side=side, s=slice_, p=prompt: side.predict(s, p)))
        taken["ours"].append(seconds_of(whole))
    seconds = {name: median(times) * (1 if name == "ours" else case.pairs) for name, times in taken.items()}
    dice, compared = _agreement(case, image, segmenter, plain["unfused"], samples)
    return Measured(
        case=case.name,
        shape=case.shape,
        objects=len(case.boxes),
        slices=case.slices,
        pairs=case.pairs,
        seconds={name: round(value, 4) for name, value in seconds.items()},
        extrapolated=tuple(name for name in plain if len(asked) < case.pairs),
        pairs_run=len(asked),
        rounds=rounds,
        ratio={name: round(seconds["baseline"] / value, 2) for name, value in seconds.items()},
        dice=round(dice, 4),
        dice_pairs=compared,
        spec=segmenter.spec.name,
        weights=segmenter.weights_name,
        threads=threads,
        dtype="bfloat16" if segmenter.network.half else "float32",
        device=str(device),
    )


@dataclass(frozen=True)
class Variant:
    """One way of running the network: milliseconds of processor time (of all threads) a slice and a box; the least of some.

    Attributes:
        name: form and precision. batch: slices at once, each with one box.
        encode_ms, decode_ms: a slice; a box on it. dice: of its masks with those of the trained form in float32.
    """

    name: str
    batch: int
    encode_ms: float
    decode_ms: float
    dice: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_variants(model: Sam2D, rounds: int, device: torch.device | str = "cpu") -> list[Variant]:
    """Forms, precisions and batch sizes of one network, on random images; processor time hardly depends on other work."""
    images = np.random.default_rng(0).random((max(BATCHES), 3, *(model.spec.image_size,) * 2)).astype(np.float32)
    prompts = [SlicePrompt((10.0, 20.0, 100.0 + 5 * n, 180.0)) for n in range(max(BATCHES))]
    rows, reference = [], None
    for name, fused, half in FORMS:
        network = SliceNetwork(model, device, fused, half)
        mask = network.decode(list(network.encode(images[:8])), prompts[:8])[0] > 0
        reference = mask if reference is None else reference
        dice = 2 * (mask & reference).sum() / max(1, mask.sum() + reference.sum())
        for batch in BATCHES:
            found = list(network.encode(images[:batch]))
            encode = min(_processor_ms(partial(network.encode, images[:batch], batch)) for _ in range(rounds))
            decode = min(_processor_ms(partial(network.decode, found, prompts[:batch], batch)) for _ in range(rounds))
            rows.append(Variant(name, batch, round(encode / batch, 2), round(decode / batch, 2), round(float(dice), 4)))
    return rows


def random_models(spec: str = OURS, device: torch.device | str = "cpu") -> tuple[Sam2D, Sam2D]:
    """Ours and the baseline with random weights, in evaluation mode."""
    torch.manual_seed(0)
    ours, baseline = (
        build_sam2d(get_spec2d(name)).to(device).eval().requires_grad_(False) for name in (spec, BASELINE)
    )
    return ours, baseline


def _some_pairs(case: Case, image: np.ndarray, count: int, size: int) -> list[tuple[np.ndarray, SlicePrompt]]:
    """Boxes on slices, spread over all of the case's pairs; as many as asked for, or all."""
    if case.is_stack:
        pairs = [(image[z], box[:2] + box[3:5]) for box in case.boxes for z in range(box[2], box[5] + 1)]
    else:
        pairs = [(image, box) for box in case.boxes]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int))
    frame = SliceFrame(pairs[0][0].shape[:2], size)
    found = [(slice_, SlicePrompt(model_box(np.array(box), frame))) for slice_, box in (pairs[n] for n in chosen)]
    return [found[n % len(found)] for n in range(count)]


def _agreement(
    case: Case, image: np.ndarray, ours: SliceSegmenter, plain: PlainPath, samples: int
) -> tuple[float, int]:
    """Dice of our masks with those of the unoptimised path: of every box, a stack's box cut to `samples` slices."""
    if case.is_stack:
        boxes = []
        for x0, y0, z0, x1, y1, z1 in case.boxes:
            middle = (z0 + z1) // 2
            first = max(z0, middle - (samples - 1) // 2)
            boxes.append((x0, y0, first, x1, y1, min(z1, first + samples - 1)))
        mine, theirs = ours.segment_stack(image, np.array(boxes)), plain.segment_stack(image, boxes)
        found = [(a[z], b[z]) for a, b in zip(mine, theirs) for z in b]
    else:
        frame = SliceFrame(image.shape[:2], ours.spec.image_size)
        boxes = np.array(case.boxes[:samples])
        prompts = [SlicePrompt(model_box(box, frame)) for box in boxes]
        found = list(zip(ours.segment_image(image, boxes), (plain.predict(image, prompt) for prompt in prompts)))
    common, total = 0, 0
    for a, b in found:
        masks = [np.zeros(image.shape[1:] if case.is_stack else image.shape[:2], bool) for _ in range(2)]
        for mask, answer in zip(masks, (a, b)):
            (y, x), (h, w) = answer.corner, answer.mask.shape
            mask[y : y + h, x : x + w] = answer.mask
        common += int((masks[0] & masks[1]).sum())
        total += int(masks[0].sum() + masks[1].sum())
    return (2 * common / total if total else 1.0), len(found)


def _cropped(answer: SliceMask) -> SliceMask:
    """The mask cut to its positive pixels."""
    if not answer.mask.size:
        return answer
    rows, columns = np.flatnonzero(answer.mask.any(axis=1)), np.flatnonzero(answer.mask.any(axis=0))
    part = answer.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return replace(answer, mask=part, corner=(int(rows[0]), int(columns[0])))


def _processor_ms(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)
