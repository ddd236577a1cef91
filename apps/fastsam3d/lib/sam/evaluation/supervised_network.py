"""MONAI's SegResNet as an ordinary supervised network: which scans it saw, its grid, its file, and a scan's label map."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint_files import WeightsError, read_contents, read_header
from ..geometry import Lattice
from ..intensity import padding_floor
from ..preprocess import network_input
from ..volume_io import Volume
from ..weights_files import write_safetensors
from .interface import ModelError

_KEY = "supervised"
_INTENSITY, _CHANNELS = "percentile_rank", 2
_OVERLAP = 0.5


@dataclass(frozen=True)
class NetworkPlan:
    """What a network is and what it saw.

    Attributes:
        values: the label map's value of every output channel but the first, which is the background.
        taught: those of the values that its training scans hold.
        spacing_mm: of the cubic voxels that it works on.
        edge: voxels of a patch along each axis, multiples of 8.
        filters: SegResNet's first width.
        cases: names of the scans that trained it.
        digests: SHA-256 of their image files and label maps.
        steps, minutes: how long it was trained.
        made_with: what decided its training, for `supervised.prepare`.
    """

    values: tuple[int, ...]
    taught: tuple[int, ...]
    spacing_mm: float
    edge: tuple[int, int, int]
    filters: int
    cases: tuple[str, ...]
    digests: tuple[str, ...]
    steps: int = 0
    minutes: float = 0.0
    made_with: str = ""


def new_network(plan: NetworkPlan) -> nn.Module:
    """The network with fresh weights: (N, 2, X, Y, Z) float32 -> logits (N, 1 + len(values), X, Y, Z)."""
    from monai.networks.nets import SegResNet  # takes seconds to import

    return SegResNet(
        spatial_dims=3, init_filters=plan.filters, in_channels=_CHANNELS, out_channels=1 + len(plan.values)
    )


def write_network(path: Path, plan: NetworkPlan, state: Mapping[str, Tensor]) -> None:
    """Writes weights and plan into one file (atomic).

    Raises:
        OSError: it cannot be written.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    write_safetensors(tensors, path, {_KEY: json.dumps(asdict(plan))})


def read_plan(path: Path) -> NetworkPlan:
    """The plan in a network's file.

    Raises:
        ModelError: no such file, or another kind of file.
    """
    try:
        content = json.loads(read_header(path)[1][_KEY])
        lists = ("values", "taught", "edge", "cases", "digests")
        return NetworkPlan(**{key: tuple(value) if key in lists else value for key, value in content.items()})
    except (WeightsError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path} must be a network that `evaluate --model supervised` trained: {error}") from error


def load_network(path: Path, plan: NetworkPlan, device: torch.device) -> nn.Module:
    """The trained network, ready to be asked.

    Raises:
        ModelError: the file's tensors are not the plan's.
    """
    network = new_network(plan)
    try:
        network.load_state_dict(read_contents(path).value)
    except (WeightsError, RuntimeError) as error:
        raise ModelError(f"{path} does not hold the network that its plan describes: {error}") from error
    return network.eval().to(device)


def scan_input(volume: Volume, spacing_mm: float) -> tuple[Lattice, np.ndarray]:
    """The whole scan as the network sees it.

    Returns:
        The lattice over the scan, its axes nearest to RAS; and (2, X, Y, Z) float32, normalised as for the models that
        take clicks.
    """
    lattice = Lattice.resampled(volume.grid, spacing_mm).canonical()
    return lattice, network_input(volume.array, lattice, padding_floor(volume.array), _INTENSITY)


@torch.inference_mode()
def segment(network: nn.Module, plan: NetworkPlan, volume: Volume, device: torch.device) -> np.ndarray:
    """The scan's label map: windows with half an overlap, logits interpolated to the scan's own voxels.

    Returns:
        (I, J, K) int32 of the plan's values and 0.
    """
    from monai.inferers import sliding_window_inference

    lattice, image = scan_input(volume, plan.spacing_mm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about MONAI's own way of indexing
        logits = sliding_window_inference(
            torch.from_numpy(image)[None].to(device),
            plan.edge,
            1,
            network,
            _OVERLAP,
            mode="gaussian",
            padding_mode="replicate",
        )[0]
    logits = (logits - logits[:1]).cpu().numpy()
    found = np.zeros(volume.grid.shape, dtype=np.int32)
    best = np.zeros(volume.grid.shape, dtype=np.float32)
    for channel in np.unique(logits.argmax(axis=0)).tolist():
        if channel == 0:
            continue
        values, corner = lattice.paste_values(logits[channel])
        place = tuple(slice(c, c + n) for c, n in zip(corner, values.shape))
        better = values > best[place]
        best[place][better] = values[better]
        found[place][better] = plan.values[channel - 1]
    return found
