"""Recipes of the 2D models: what each of the three stages does, with the published values as defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ..spec import Sam2dSpec
from ..zoo import get_spec2d
from .data2d import Mix
from .loop import config_from, read_json
from .prompting2d import Prompting

STAGES = ("teacher", "distill", "finetune")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe. The defaults are those of RepMedSAM's fine-tuning; see PUBLISHED for its distillation.

    Attributes:
        minutes: time budget over all resumed runs; None: so many `epochs`.
        epochs, epoch_images: length without a time budget; `epoch_images` None: the user's files times `visits`.
        visits: of each of the user's files an epoch, each with another slice.
        learning_rate, weight_decay, warmup_steps, clip: AdamW, cosine to zero; clip None: gradients are not clipped.
        sizes: (until this share of the stage, edge of the images): small images first, because most of what is to be
            learnt is learnt there too, at a quarter of the cost; () for the spec's size throughout.
        images, passes: images a pass (batch norms see one pass), and passes a step in each process.
        objects: targets an image, all from one embedding.
        ema: decay of the averaged weights, which are what is published.
        loss_weights: of Dice, BCE and the IoU head's squared error. balance: see losses.mask_loss.
        half: bfloat16 (autocast).
        validate_minutes: between validations when there is a time budget; otherwise after each epoch.
    """

    minutes: float | None = None
    epochs: int = 30
    epoch_images: int | None = None
    visits: int = 4
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup_steps: int = 0
    clip: float | None = None
    sizes: tuple[tuple[float, int], ...] = ()
    images: int = 4
    passes: int = 1
    objects: int = 1
    ema: float = 0.999
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    balance: float = 1.0
    half: bool = True
    validate_minutes: float = 8.0
    prompting: Prompting = field(default_factory=Prompting)
    mix: Mix = field(default_factory=Mix)


PUBLISHED: dict[str, Stage] = {
    "teacher": Stage(),
    "distill": Stage(epochs=10, learning_rate=1e-4),
    "finetune": Stage(),
}
"""Values of RepMedSAM's paper; it takes its teacher as given, so that stage has the values of fine-tuning."""


@dataclass(frozen=True)
class Recipe2d:
    """Specs (rows of zoo.SPECS_2D), seed and stages; see recipes/repmedsam*.json."""

    student: str = "repmedsam"
    teacher: str = "litemedsam"
    seed: int = 1
    stages: dict[str, Stage] = field(default_factory=lambda: dict(PUBLISHED))

    @classmethod
    def read(cls, path: Path) -> Recipe2d:
        """From a JSON file: {"student", "teacher", "seed", "stages": {stage: what differs from PUBLISHED}}.

        Raises:
            ValueError: unknown keys or stages; the message lists the known ones.
        """
        raw = read_json(path)
        stages = dict(PUBLISHED)
        for name, changes in raw.pop("stages", {}).items():
            if name not in STAGES:
                raise ValueError(f"unknown stage {name!r} in {path}; known: {', '.join(STAGES)}")
            source = f"stage {name} of {path}"
            parts = {"prompting": Prompting, "mix": Mix}
            parts = {k: config_from(kind, changes.pop(k), source) for k, kind in parts.items() if k in changes}
            checked = config_from(Stage, changes, source)
            given = {key: getattr(checked, key) for key in changes}
            stages[name] = dataclasses.replace(PUBLISHED[name], **given, **parts)
        return dataclasses.replace(config_from(cls, raw, str(path)), stages=stages)

    def spec_of(self, stage: str) -> Sam2dSpec:
        """The network that a stage trains."""
        return get_spec2d(self.teacher if stage == "teacher" else self.student)
