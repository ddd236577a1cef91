"""The settings of the fine-tunings, and reading them from what clients and command lines send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

Config = TypeVar("Config", bound="TuningConfig")


# What a setting may be, where some kind of model has it.
_RANGES = {
    "minutes": (0, 100_000), "epochs": (1, 100_000), "steps_per_epoch": (1, 100_000), "learning_rate": (0, 1),
    "batch": (1, 4096), "images": (1, 256), "objects": (1, 64), "keep": (0, 64), "cube_share": (0, 1),
    "small_share": (0, 1), "rehearsal": (0, 1), "rehearsal_cases": (0, 1000), "patches": (1, 1000), "slices": (1, 10_000),
    "ema": (0, 1), "patience": (1, 100_000), "guard_cases": (0, 1000), "gate_clicks": (1, 50), "gate_slices": (1, 100),
    "box_share": (0, 1), "other_axes": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class TuningConfig:
    """What every fine-tuning has.

    Attributes:
        minutes: time budget of all trainings of a run, the gate not counted; 0 for none.
        epochs, steps_per_epoch: at most so much; an epoch is a number of steps, as few cases make no epoch.
        learning_rate, weight_decay, warmup_steps, clip: AdamW; cosine to zero over epochs or budget, whichever goes faster.
        freeze_encoder: train prompt encoder and mask decoder only, as published.
        batch: passes a step, over all processes.
        objects: annotated objects an image, if it holds so many.
        rehearsal: share of what is trained on that is generated. rehearsal_cases: how many generated cases there are.
        ema: decay of the averaged weights, which are validated and published.
        patience: epochs without a better validation after which training ends.
        seed: of everything.
        half: bfloat16 where the device computes it natively. On a CPU such sums differ from run to run in the third digit;
            in float32 a run repeats exactly.
        structures: names to train; empty for all.
        guard_cases: generated cases of the gate.
    """

    minutes: float = 8.0
    epochs: int = 40
    steps_per_epoch: int = 20
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    warmup_steps: int = 15
    clip: float = 1.0
    freeze_encoder: bool = False
    batch: int = 1
    objects: int = 2
    rehearsal: float = 0.25
    rehearsal_cases: int = 8
    ema: float = 0.97
    patience: int = 12
    seed: int = 1
    half: bool = True
    structures: tuple[str, ...] = ()
    guard_cases: int = 6

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name, low)
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")
        rounds = getattr(self, "rounds", ((1, 1),))
        if not rounds or any(len(r) != 2 or not isinstance(r[0], (int, float)) for r in rounds):
            raise ValueError(f"rounds must be pairs of a share and a number of rounds, got {rounds!r}")

    @classmethod
    def of(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """From texts and numbers of a client or a command line; keys that are not ours are left out.

        Raises:
            ValueError: a value of the wrong kind or out of range.
        """
        chosen = {}
        for field in fields(cls):
            if values.get(field.name) is not None:
                chosen[field.name] = _as_kind(field.name, values[field.name], field.default)
        return cls(**chosen)


@dataclass(frozen=True)
class FinetuneConfig(TuningConfig):
    """How to fine-tune a 3D model. Losses (Dice with squared denominators and cross-entropy), AdamW and flips are those of
    the published recipe; what differs, and why, is in docs/training.md.

    Attributes:
        keep: old answers a patch, beside the annotated objects.
        rounds: (share, rounds) of the kinds of step. box_share, uniform_share, repeat_share: see PretrainConfig.
        cube_share, cube: share of steps on cubes of that edge, cut around an annotated object, instead of whole patches.
        patches: cut from each case.
        gate_clicks: clicks of the gate.
        routed: only clicks on what was annotated go to the trained network, see router.py; else it answers everything.
    """

    keep: int = 2
    rounds: tuple[tuple[float, int], ...] = ((0.5, 2), (0.4, 3), (0.1, 5))
    box_share: float = 0.2
    uniform_share: float = 0.3
    repeat_share: float = 0.35
    cube_share: float = 0.4
    cube: int = 96
    patches: int = 8
    rehearsal: float = 0.15
    gate_clicks: int = 5
    routed: bool = True


@dataclass(frozen=True)
class Finetune2dConfig(TuningConfig):
    """How to fine-tune a model for slices. Dice, cross-entropy, the IoU head's squared error, AdamW, boxes that are a little
    off and flips are RepMedSAM's; docs/training.md says what differs.

    Attributes:
        images: slices a pass. objects: of each slice.
        small_share: share of steps on images of half the size.
        rounds: (share, rounds) of the kinds of step; after the first prompt come clicks in the error.
        slices: kept of each case. other_axes: share of them across another axis than the scan's own stack.
        rehearsal_cases: generated volumes; as many pictures as slices come with them.
        gate_slices: of each structure of a held-out case.
    """

    minutes: float = 6.0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    images: int = 2
    objects: int = 3
    small_share: float = 0.5
    rounds: tuple[tuple[float, int], ...] = ((0.5, 1), (0.3, 2), (0.2, 3))
    slices: int = 32
    other_axes: float = 0.2
    rehearsal: float = 0.3
    rehearsal_cases: int = 4
    gate_slices: int = 3


def _as_kind(name: str, value: Any, default: Any) -> Any:
    """`value` as the kind of `default`; clients send numbers, texts, or a list of which the first entry counts."""
    if isinstance(value, (list, tuple)) and not isinstance(default, tuple):
        value = value[0] if value else default
    try:
        if isinstance(default, bool):
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).strip().lower()]
        if isinstance(default, tuple):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(
                tuple(item) if isinstance(item, (list, tuple)) else str(item).strip() for item in items if item
            )
        number = float(value)
        if isinstance(default, int) and not number.is_integer():
            raise ValueError
        return type(default)(number)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a {type(default).__name__} such as {default!r}, got {value!r}") from error


def config_text(config: TuningConfig) -> str:
    """The config as JSON."""
    return json.dumps(asdict(config))
