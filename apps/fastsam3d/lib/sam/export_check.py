"""Whether exported files say what the network says: the same patch and prompts through both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from .export_graphs import Graph
from .metrics import dice
from .networks.prompt_maps import BOX_HIGH, BOX_LOW, NEGATIVE, PADDING, POSITIVE
from .spec import Sam2dSpec, SamSpec

TOLERANCE = 1e-3
"""Largest difference of an output, relative to its largest value."""

LEAST_DICE = 0.999
"""Of the masks of both sides."""


class RunError(ValueError):
    """The runtime refuses a file."""


Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Disagreement:
    """How far both sides are apart in one step of the check.

    Attributes:
        step: "encoder", or the prompts. difference: by output, relative to the largest value. dice: of the masks, or None
            for the encoder. positive: share of the network's own mask.
    """

    step: str
    difference: dict[str, float]
    dice: float | None = None
    positive: float | None = None

    @property
    def fault(self) -> str | None:
        """What is beyond tolerance, or None."""
        name, worst = max(self.difference.items(), key=lambda item: np.inf if np.isnan(item[1]) else item[1])
        if not worst <= TOLERANCE:
            return f"{self.step}: {name} differs by {worst:.2g} of its largest value (at most {TOLERANCE:g})"
        if self.dice is not None and not self.dice >= LEAST_DICE:
            return f"{self.step}: the masks overlap with a Dice of {self.dice:.5f} (at least {LEAST_DICE:g})"
        return None


def onnx_runner(path: Path, threads: int = 0) -> Runner:
    """Runs an ONNX file by ONNX Runtime on the CPU.

    Args:
        threads: 0 for the runtime's own choice.

    Raises:
        RunError: the file is not valid, or, when it is called, cannot be run.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    kinds = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except kinds as error:
        raise RunError(f"ONNX Runtime cannot load {path.name}: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, session.run(names, dict(inputs))))
        except kinds as error:
            raise RunError(f"ONNX Runtime cannot run {path.name}: {error}") from error

    return run


def openvino_runner(path: Path) -> Runner:
    """Runs an OpenVINO model (.xml) on the CPU in float32, which is not its default on CPUs with bfloat16.

    Raises:
        RunError: the file is not valid, or, when it is called, cannot be run.
    """
    import openvino

    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise RunError(f"OpenVINO cannot load {path.name}: {error}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = compiled(dict(inputs))
        except RuntimeError as error:
            raise RunError(f"OpenVINO cannot run {path.name}: {error}") from error
        return {output.get_any_name(): found[output] for output in compiled.outputs}

    return run


def torch_runner(graph: Graph) -> Runner:
    """The network itself, in the graph's form."""

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = (torch.from_numpy(inputs[port.name]) for port in graph.inputs)
        return {port.name: found.numpy() for port, found in zip(graph.outputs, graph.module(*given))}

    return run


def sample_patch(spec: SamSpec | Sam2dSpec, seed: int = 0) -> np.ndarray:
    """A generated encoder input (1, channels, ...): soft noise, a brighter ball of half its edge in the middle."""
    draw = torch.Generator().manual_seed(seed)
    flat = isinstance(spec, Sam2dSpec)
    dims, edge, channels = (2, spec.image_size, 3) if flat else (3, spec.patch_size, spec.encoder.channels)
    coarse = torch.rand(1, channels, *(8,) * dims, generator=draw)
    soft = F.interpolate(coarse, size=edge, mode="bilinear" if flat else "trilinear", align_corners=False)
    places = torch.meshgrid(*(torch.linspace(-1, 1, edge),) * dims, indexing="ij")
    ball = (sum(axis.square() for axis in places) < 0.25).float()
    noise = torch.rand(1, channels, *(edge,) * dims, generator=draw)
    patch = (0.3 * soft + 0.1 * noise + 0.5 * ball).clamp(0, 1)
    return (patch if flat else 2 * patch - 1).numpy()


def sample_prompts(spec: SamSpec | Sam2dSpec) -> dict[str, list[tuple[list[tuple[int, ...]], list[int]]]]:
    """Name -> passes, each the points and labels that the decoder gets; a pass after the first also gets the logits before."""
    flat = isinstance(spec, Sam2dSpec)
    dims, s = (2, spec.image_size) if flat else (3, spec.patch_size)
    middle, beside, corner = (tuple(int(s * part) for part in at[:dims]) for at in _PLACES)
    low, high = (int(s * 0.22),) * dims, (int(s * 0.78),) * dims
    end = ([(0,) * dims], [PADDING]) if flat else ([], [])  # an image's list without a box ends with a padding point

    def clicks(*given: tuple[tuple[int, ...], int]) -> tuple[list[tuple[int, ...]], list[int]]:
        return [point for point, _ in given] + end[0], [label for _, label in given] + end[1]

    first = clicks((middle, POSITIVE))
    three = clicks((middle, POSITIVE), (corner, NEGATIVE), (beside, POSITIVE))
    found = {"1 click": [first], "3 clicks": [first, three]}
    if flat or spec.decoder.boxes:
        box = ([low, high], [BOX_LOW, BOX_HIGH])
        found["box"] = [box]
        found["box and click"] = [box, ([*box[0], corner], [*box[1], NEGATIVE])]
    return found


_PLACES = ((0.5, 0.48, 0.52), (0.6, 0.42, 0.55), (0.12, 0.85, 0.2))


def compare(
    spec: SamSpec | Sam2dSpec, ours: tuple[Runner, Runner], theirs: tuple[Runner, Runner]
) -> list[Disagreement]:
    """Both sides, encoder and decoder, over a generated patch and several prompts.

    Every side works on its own results: its embedding, and its logits of the pass before.
    """
    patch = {"image" if isinstance(spec, Sam2dSpec) else "patch": sample_patch(spec)}
    features = [side[0](patch) for side in (ours, theirs)]
    steps = [Disagreement("encoder", _differences(*features))]
    dims = 2 if isinstance(spec, Sam2dSpec) else 3
    for name, passes in sample_prompts(spec).items():
        before = [np.zeros((1, 1, *(spec.mask_size,) * dims), np.float32)] * 2
        for points, labels in passes:
            given = {"points": np.array([points], np.float32), "labels": np.array([labels], np.float32)}
            answers = [
                side[1]({**given, "previous": logits, **own})
                for side, own, logits in zip((ours, theirs), features, before)
            ]
            before = [answer["logits"] for answer in answers]
        masks = [answer["mask_logits"] > 0 for answer in answers]
        steps.append(Disagreement(name, _differences(*answers), dice(*masks), float(masks[0].mean())))
    return steps


def _differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        name: float(np.abs(theirs[name] - value).max() / max(float(np.abs(value).max()), 1e-12))
        for name, value in ours.items()
    }
