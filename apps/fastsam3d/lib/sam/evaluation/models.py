"""From the names that a user writes to models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import weights
from ..device import choose_device
from ..segmenter import VolumeSegmenter
from ..segmenters import load_segmenter
from ..spec import SamSpec
from .interface import Model, ModelError
from .random_walker import RandomWalker
from .remote import RemoteModel
from .slice_model import SliceModel
from .supervised import NAME as SUPERVISED
from .supervised import Supervised, networks_version
from .transformers_sam import NAMES, TransformersSam, sam_version
from .volume_model import VolumeModel

_VALUES: dict[str, tuple[str, Callable[..., bool]]] = {
    "spacing_mm": ("0.05 to 50", lambda v: 0.05 <= v <= 50),
    "intensity": ('"znorm_positive" or "percentile_rank"', lambda v: v in ("znorm_positive", "percentile_rank")),
    "lattice": ('"corner" or "click"', lambda v: v in ("corner", "click")),
    "replay": ('"last" or "all"', lambda v: v in ("last", "all")),
    "first_passes": ("1 to 20", lambda v: 1 <= v <= 20),
    "background_passes": ("1 to 20", lambda v: 1 <= v <= 20),
    "steady": ("0 to 1", lambda v: 0 <= v <= 1),
}
"""What the fields of a `SamSpec` may be, beyond their types."""


@dataclass(frozen=True)
class ModelChoice:
    """A model as the user asked for it; can be sent to another process.

    Attributes:
        name: a model of the app, `random_walker`, `supervised`, `http://host:port#model`, `sam_vit_b` or `medsam`.
        weights: a file, a folder or a registry name; None for the model's own (`supervised` needs a folder).
        changes: `field=value` changes of its spec.
        device: auto, cpu, cuda or cuda:N.
        model_dir: the app's folder of weights.
    """

    name: str
    model_dir: Path
    weights: str | None = None
    changes: tuple[str, ...] = ()
    device: str = "auto"


def load_model(choice: ModelChoice) -> Model:
    """The model, ready to be asked.

    Raises:
        ModelError: there is no such model, its weights are missing, or its server does not answer.
    """
    if choice.name == RandomWalker.name:
        return RandomWalker()
    if choice.name.startswith(("http://", "https://")):
        return RemoteModel(choice.name)
    if choice.name == SUPERVISED:
        return Supervised(Path(choice.weights or ""), choose_device(choice.device))
    if choice.name in NAMES:
        return TransformersSam(choice.name, Path(choice.weights or ""), choose_device(choice.device))
    try:
        resolved = weights.resolve(choice.name, choice.model_dir, configured=choice.weights)
        if isinstance(resolved.spec, SamSpec):
            resolved = dataclasses.replace(resolved, spec=changed_spec(resolved.spec, choice.changes))
        segmenter = load_segmenter(resolved, choose_device(choice.device))
    except (weights.WeightsError, KeyError) as error:
        raise ModelError(f"{choice.name}: {error}") from error
    kind = VolumeModel if isinstance(segmenter, VolumeSegmenter) else SliceModel
    return kind(choice.name, segmenter)


def model_version(choice: ModelChoice) -> str:
    """What the model is made of, without loading it.

    Raises:
        ModelError: it cannot be had.
    """
    if choice.name == RandomWalker.name:
        return RandomWalker.version
    if choice.name.startswith(("http://", "https://")):
        return RemoteModel(choice.name).version
    if choice.name == SUPERVISED:
        return networks_version(Path(choice.weights or ""))
    if choice.name in NAMES:
        return sam_version(choice.name, Path(choice.weights) if choice.weights else None)
    try:
        resolved = weights.resolve(choice.name, choice.model_dir, configured=choice.weights)
    except (weights.WeightsError, KeyError) as error:
        raise ModelError(f"{choice.name}: {error}") from error
    return f"{resolved.name} {resolved.version}"


def changed_spec(spec: SamSpec, changes: tuple[str, ...] | list[str]) -> SamSpec:
    """The spec with `field=value` changes, values as in JSON (`zoom=false`, `replay="last"`).

    Raises:
        ValueError: an unknown field, or a value that is not of the field's type or that no network can work with.
    """
    for change in changes:
        name, _, text = change.partition("=")
        known = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        plain = {k: v for k, v in known.items() if isinstance(v, (bool, int, float, str)) and k != "name"}
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if type(value) is int and type(plain.get(name)) is float:
            value = float(value)
        if name not in plain or type(value) is not type(plain[name]):
            raise ValueError(f"--set takes FIELD=VALUE with one of {', '.join(plain)} and a JSON value, got {change!r}")
        allowed, fits = _VALUES.get(name, ("", lambda _: True))
        if not fits(value):
            raise ValueError(f"--set {name} must be {allowed}, got {text}")
        spec = dataclasses.replace(spec, **{name: value})
    return spec
