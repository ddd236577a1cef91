"""What a run needs of a kind of model: what it trains on, its training, and its comparison with the served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from ..router import Router
from ..segmenters import Segmenter
from ..spec import AnySpec, Sam2dSpec
from . import annotated2d, gate, gate2d, patches
from .cases import LabelledCase
from .finetune import Finetuning
from .finetune2d import Finetuning2d
from .finetune_config import Finetune2dConfig, FinetuneConfig, TuningConfig
from .gate import Pair
from .patches import PatchSet
from .report import SLICES, VOLUMES, Words
from .routing import fit_router
from .tuning import Tuning

_MASKS_KEPT = 4
Say = Callable[[str], None]


class Learner(Protocol):
    """A kind of model, with its settings.

    Attributes:
        tuning: the training. words: what the gate measures.
    """

    tuning: ClassVar[type[Tuning]]
    words: ClassVar[Words]

    def prepare(
        self, cases: Sequence[LabelledCase], structures: Sequence[str], folder: Path, served: Segmenter, say: Say
    ) -> PatchSet:
        """What is trained on, written into `folder` unless it is there.

        Raises:
            VolumeError: a file cannot be used. ValueError: nothing to train on.
        """
        ...

    def router(
        self, cases: Sequence[LabelledCase], structures: Sequence[str], folder: Path, served: Segmenter, say: Say
    ) -> Router | None:
        """What sends clicks on the structures to the network that was trained on them; None where it answers all clicks.

        Raises:
            VolumeError: a file cannot be used.
        """
        ...

    def compare(
        self,
        served: Segmenter,
        candidate: Segmenter,
        cases: Sequence[LabelledCase],
        structures: Sequence[str],
        say: Say,
    ) -> list[Pair]:
        """Both models on annotated cases."""
        ...

    def compare_generated(self, served: Segmenter, candidate: Segmenter) -> list[Pair]:
        """Both models on what is generated."""
        ...


@dataclass(frozen=True)
class VolumeLearner:
    """Of 3D models."""

    config: FinetuneConfig
    tuning: ClassVar[type[Tuning]] = Finetuning
    words: ClassVar[Words] = VOLUMES

    def prepare(self, cases, structures, folder, served, say) -> PatchSet:
        """See Learner."""
        c = self.config
        rehearsal, keep = c.rehearsal_cases if c.rehearsal else 0, _MASKS_KEPT if c.keep else 0
        return patches.build(cases, structures, folder, served, c.patches, rehearsal, keep, c.seed, say)

    def router(self, cases, structures, folder, served, say) -> Router | None:
        """See Learner."""
        return fit_router(cases, structures, served, folder, self.config.seed, say) if self.config.routed else None

    def compare(self, served, candidate, cases, structures, say) -> list[Pair]:
        """See Learner."""
        return gate.compare(served, candidate, cases, structures, self.config.gate_clicks, say)

    def compare_generated(self, served, candidate) -> list[Pair]:
        """See Learner."""
        return gate.compare_generated(served, candidate, self.config.guard_cases, self.config.gate_clicks)


@dataclass(frozen=True)
class SliceLearner:
    """Of models for slices."""

    config: Finetune2dConfig
    tuning: ClassVar[type[Tuning]] = Finetuning2d
    words: ClassVar[Words] = SLICES

    def prepare(self, cases, structures, folder, served, say) -> PatchSet:
        """See Learner."""
        c, size = self.config, served.spec.image_size
        rehearsal = c.rehearsal_cases if c.rehearsal else 0
        return annotated2d.build(cases, structures, folder, size, c.slices, c.other_axes, rehearsal, c.seed, say)

    def router(self, cases, structures, folder, served, say) -> Router | None:
        """See Learner."""
        return None

    def compare(self, served, candidate, cases, structures, say) -> list[Pair]:
        """See Learner."""
        return gate2d.compare(served, candidate, cases, structures, self.config.gate_slices, say)

    def compare_generated(self, served, candidate) -> list[Pair]:
        """See Learner."""
        return gate2d.compare_generated(served, candidate, self.config.guard_cases)


def config_type(spec: AnySpec) -> type[FinetuneConfig] | type[Finetune2dConfig]:
    """The settings of a fine-tuning of that kind of model."""
    return Finetune2dConfig if isinstance(spec, Sam2dSpec) else FinetuneConfig


def learner_of(spec: AnySpec, config: TuningConfig) -> Learner:
    """The learner of that kind of model.

    Raises:
        TypeError: the settings are those of another kind.
    """
    if not isinstance(config, config_type(spec)):
        raise TypeError(f"{spec.name} is fine-tuned with a {config_type(spec).__name__}, got a {type(config).__name__}")
    return SliceLearner(config) if isinstance(config, Finetune2dConfig) else VolumeLearner(config)
