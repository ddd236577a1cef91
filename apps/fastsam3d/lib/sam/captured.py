"""A network's steps as CUDA graphs: hundreds of small kernels started with one call instead of one by one.

On a fast GPU the small kernels of a click take less time than a processor needs to start them. Before the first click a graph is
recorded for each step and each set of shapes, with inputs and outputs at fixed places in the device's memory; afterwards inputs are
copied there, the graph runs, and the outputs are copied away.

What a graph says is compared with what the step itself says before it is used. A step that cannot be recorded, or says something
else when it is replayed, runs without a graph from then on, and the log says so: slower, never wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Step = Callable[..., tuple[Tensor, ...]]
"""A function of tensors alone that returns tensors; their shapes, types and places must follow from those of the inputs."""

Record = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Callable[[], None], tuple[Tensor, ...]]]
"""Records work without arguments: returns what replays it, and the outputs that each replay fills anew."""

MOST = 32
"""So many graphs at most; each keeps memory for its inputs and outputs."""

_WARM_UP = 3  # libraries choose their kernels and take their memory before anything is recorded
_TOLERANCE = 0.02  # of the largest value: some steps of bfloat16, for sums that are added up in no fixed order


@dataclass
class _Graph:
    """A recorded step: the places of its inputs and outputs, and what runs it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for place, value in zip(self.inputs, inputs):
            place.copy_(value)
        self.replay()
        return tuple(x.clone() for x in self.outputs)


@dataclass
class CapturedSteps:
    """Runs steps by graphs where they can be had. To be used by one thread.

    Attributes:
        record: `cuda_recorder` of the device; None runs everything as it is.
    """

    record: Record | None
    _graphs: dict[Hashable, _Graph | None] = field(default_factory=dict)
    _recording: list[tuple[Hashable, Step, tuple[Tensor, ...]]] | None = None

    @classmethod
    def on(cls, device: torch.device) -> CapturedSteps:
        """For that device: graphs on CUDA, none elsewhere."""
        return cls(cuda_recorder(device) if device.type == "cuda" else None)

    def __call__(self, name: Hashable, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the step returns: by its graph for inputs of these shapes if there is one, else by the step itself.

        Args:
            name: of the step; one of that name is taken for the same.
        """
        if self._recording is not None:
            self._recording.append((name, step, inputs))
        elif self._graphs:
            graph = self._graphs.get(_key(name, inputs))
            if graph is not None:
                return graph(inputs)
        return step(*inputs)

    def record_all(self, work: Callable[[], object]) -> int:
        """Records every step that the work takes, for later calls with inputs of the same shapes.

        Returns:
            How many graphs there are now.
        """
        if self.record is None:
            return 0
        self._recording = []
        try:
            work()
            taken = {_key(name, inputs): (name, step, inputs) for name, step, inputs in self._recording}
        except RuntimeError as error:
            logger.warning("no CUDA graphs: %s", str(error).partition("\n")[0])
            return 0
        finally:
            self._recording = None
        for key, (name, step, inputs) in taken.items():
            if key not in self._graphs and len(self._graphs) < MOST:
                self._graphs[key] = self._recorded(name, step, inputs)
        return sum(graph is not None for graph in self._graphs.values())

    def _recorded(self, name: Hashable, step: Step, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """The step as a graph, None where that is not to be had."""
        expected = step(*inputs)
        try:
            places = tuple(x.clone() for x in inputs)
            replay, outputs = self.record(lambda: step(*places))
            graph = _Graph(places, outputs, replay)
            found = graph(inputs)
        except RuntimeError as error:
            logger.warning("no CUDA graph of %s: %s", name, str(error).partition("\n")[0])
            return None
        if not all(_agree(x, y) for x, y in zip(found, expected, strict=True)):
            logger.warning("no CUDA graph of %s: replayed, it says something else than the step itself", name)
            return None
        return graph


def cuda_recorder(device: torch.device) -> Record:
    """Records CUDA graphs on a device. They share their working memory: none runs beside another."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        with torch.cuda.device(device):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # others may copy meanwhile
                outputs = work()
        return graph.replay, outputs

    return record


def _key(name: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    """The step and the shapes, types and orders in memory of its inputs."""
    orders = (tuple(stride for stride, size in zip(x.stride(), x.shape) if size > 1) for x in inputs)
    return (name, *((x.shape, x.dtype, order) for x, order in zip(inputs, orders)))


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two answers are the same up to rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    found, expected = found.float(), expected.float()
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def flat(embedding: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `Sam3D.encode` returns, in one tuple."""
    return (embedding[0], *embedding[1])


def nested(tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same as it was."""
    return tensors[0], tuple(tensors[1:])
