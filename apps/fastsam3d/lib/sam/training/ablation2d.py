"""The ablation of RepMedSAM's paper: an encoder distilled first against one trained from scratch, at equal budgets."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

import torch

from .data import LabelledScan
from .folders2d import OwnSlices
from .pretrain2d import Training2d
from .recipe2d import Recipe2d

DISTILL_SHARE = 0.25
"""Of the budget, in the arm that distils; the rest of it fine-tunes."""


def arm_recipe(recipe: Recipe2d, seed: int, minutes: dict[str, float]) -> Recipe2d:
    """The recipe with another seed, and time budgets of its stages."""
    stages = {name: dataclasses.replace(stage, minutes=minutes.get(name)) for name, stage in recipe.stages.items()}
    return dataclasses.replace(recipe, seed=seed, stages=stages)


def ablation(
    recipe: Recipe2d,
    teacher: Path,
    folder: Path,
    minutes: float,
    seeds: list[int],
    device: torch.device | str = "cpu",
    scans: list[LabelledScan] | None = None,
    own: OwnSlices | None = None,
) -> dict[str, list[float]]:
    """Trains both arms for every seed, `minutes` each; what is finished in `folder` is not done again.

    Args:
        teacher: checkpoint of the teacher, of which both arms have prompt encoder and decoder.

    Returns:
        {"scratch", "distilled"}: Dice of a tight box on the fixed validation images, one a seed; also written to
        `folder / ablation.json`.
    """
    found: dict[str, list[float]] = {"scratch": [], "distilled": []}
    for seed in seeds:
        whole = arm_recipe(recipe, seed, {"finetune": minutes})
        share = {"distill": DISTILL_SHARE * minutes, "finetune": (1 - DISTILL_SHARE) * minutes}
        parts = arm_recipe(recipe, seed, share)
        for arm, plan, stages in (("scratch", whole, ["finetune"]), ("distilled", parts, ["distill", "finetune"])):
            for stage in stages:
                run = Training2d(
                    plan, stage, folder / f"{arm}_{seed}", device, scans, own, arm == "scratch", Path(teacher)
                )
                run.run()
            found[arm].append(run.validate(batches=25)["score"])
    (folder / "ablation.json").write_text(json.dumps({"minutes": minutes, "seeds": seeds, **found}, indent=2) + "\n")
    return found


def table(found: dict[str, list[float]], seeds: list[int]) -> str:
    """The result as a table in Markdown."""
    lines = ["| encoder | " + " | ".join(f"seed {s}" for s in seeds) + " | mean |", "|---" * (len(seeds) + 2) + "|"]
    for arm, values in found.items():
        lines.append(f"| {arm} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {statistics.mean(values):.3f} |")
    return "\n".join(lines)
