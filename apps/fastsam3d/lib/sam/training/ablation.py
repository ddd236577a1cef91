"""The ablation of FastSAM3D's paper at our size: how to distil, how deep a student, which layers, which attention.

Every arm makes a student of the same teacher with the same number of steps on the same patches, and is measured on the same
generated cases, which no arm sees. Seeds change the student's first weights, the order of the patches and the clicks.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..build import Sam3D, build_sam
from ..files import whole_file, write_text
from ..zoo import get_spec
from .distill import Distillation, DistillConfig
from .pool import PatchPool
from .pretrain import dice_per_click
from .report import Chart, picture

logger = logging.getLogger(__name__)

ROWS = "rows.json"
CLICKS = (1, 3, 5)
_STUDENTS = ("m1", "m3", "attention", "sparse")


@dataclass(frozen=True)
class Arm:
    """One way to make a student: a row of zoo.py and a mode of distill.py."""

    name: str
    spec: str
    mode: str
    about: str


ARMS = (
    Arm("progressive", "fastsam3d_small_m2", "progressive", "layer after layer (ours, m = 2)"),
    Arm("fitnets", "fastsam3d_small_m2", "fitnets", "all layers at once, as FitNets"),
    Arm("output", "fastsam3d_small_m2", "output", "the embedding alone, as MobileSAM"),
    Arm("m1", "fastsam3d_small_m1", "progressive", "12 layers, m = 1"),
    Arm("m3", "fastsam3d_small_m3", "progressive", "4 layers, m = 3"),
    Arm("attention", "fastsam3d_small_attention", "progressive", "6 attention layers"),
    Arm("sparse", "fastsam3d_small_sparse", "progressive", "sparse attention"),
)


def config_of(arm: Arm, seed: int, steps: int, marks: int) -> DistillConfig:
    """The distillation of an arm: `marks` measurements, warm-ups that fit short phases, and a rate that suits steps of one patch (at
    the published 8e-4, for batches, the phase of the neck undoes what the layers learned).
    """
    return DistillConfig(
        spec=arm.spec, mode=arm.mode, steps=steps, seed=seed, save_every=max(1, steps // marks),
        warmup_steps=max(1, steps // 100), objects=2, rounds=2, ema=0.95, learning_rate=3e-4,
    )  # fmt: skip


def run_arm(
    config: DistillConfig,
    folder: Path,
    teacher: Sam3D,
    patches: PatchPool,
    cases: Sequence[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
) -> list[dict]:
    """Makes the student, or goes on making it, and returns the rows of its run; a finished one is not made again."""
    torch.manual_seed(config.seed)
    student = build_sam(get_spec(config.spec))
    patches.seed = config.seed

    def measure(model: Sam3D) -> dict[str, float]:
        return dice_per_click(model, cases, CLICKS[-1], device)

    run = Distillation(config, folder, teacher, student, device, patches, measure)
    rows = run.run()
    write_text(folder / ROWS, json.dumps(rows, indent=1) + "\n")
    return rows


def finished(folder: Path, arms: Iterable[Arm], seeds: Iterable[int]) -> dict[str, dict[int, list[dict]]]:
    """Rows of the runs in `folder` that ended: arm -> seed -> rows."""
    found: dict[str, dict[int, list[dict]]] = {}
    seeds = list(seeds)
    for arm in arms:
        for seed in seeds:
            path = folder / f"{arm.name}_{seed}" / ROWS
            if path.exists():
                found.setdefault(arm.name, {})[seed] = json.loads(path.read_text())
    return found


def curve(runs: Mapping[int, Sequence[Mapping]], clicks: int) -> list[tuple[int, float]]:
    """(step, Dice after so many clicks), the mean over seeds."""
    steps = sorted(set.intersection(*({row["step"] for row in rows} for rows in runs.values())))
    values = {s: [row[f"dice_{clicks}"] for rows in runs.values() for row in rows if row["step"] == s] for s in steps}
    return [(s, statistics.mean(values[s])) for s in steps]


def table(
    found: Mapping[str, Mapping[int, Sequence[Mapping]]],
    per_epoch: int,
    teacher: Mapping[str, float],
    blind: Mapping[str, float],
) -> str:
    """The result in Markdown: Dice of the last row (mean and standard deviation over seeds), epochs to an equal Dice.

    Args:
        per_epoch: patches of an epoch. teacher: its Dice on the same cases. blind: that with other cases' images.

    If the teacher does as well without the right image, or the student before the first step, whose layers know nothing, does as
    well as the teacher, the layers do not matter to the teacher, and nothing else in the table means anything.

    The equal Dice is what the worst arm ends with after five clicks; the epochs are those of the first measurement at which the
    mean over the seeds has reached it.
    """
    curves = {name: curve(runs, CLICKS[-1]) for name, runs in found.items()}
    level = min(line[-1][1] for line in curves.values())
    head = [
        "student",
        "layers (M parameters)",
        *(f"{n} click{'s' * (n > 1)}" for n in CLICKS),
        f"epochs to {level:.3f}",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, scores in {"teacher": teacher, "teacher, shown another case's image": blind}.items():
        lines.append(f"| {name} | 12 | " + " | ".join(f"{scores[f'dice_{n}']:.3f}" for n in CLICKS) + " | |")
    first = [rows[0] for rows in next(iter(found.values())).values()]
    cells = [_spread([row[f"dice_{n}"] for row in first]) for n in CLICKS]
    lines.append("| student before the first step: the teacher without its layers | | " + " | ".join(cells) + " | |")
    for arm in ARMS:
        if arm.name not in found:
            continue
        ends = [rows[-1] for rows in found[arm.name].values()]
        cells = [_spread([row[f"dice_{n}"] for row in ends]) for n in CLICKS]
        reached = next(step for step, value in curves[arm.name] if value >= level)
        spec = get_spec(arm.spec)
        size = sum(p.numel() for p in build_sam(spec).image_encoder.parameters()) / 1e6
        cells = [arm.about, f"{spec.encoder.depth} ({size:.1f})", *cells, f"{reached / per_epoch:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def draw_curves(found: Mapping[str, Mapping[int, Sequence[Mapping]]], path: Path) -> None:
    """Writes a PNG: Dice after one and after five clicks by step, for ways to distil and for students."""
    groups = {"Ways to distil": ("progressive", "fitnets", "output"), "Students": ("progressive", *_STUDENTS)}
    charts = []
    for title, names in groups.items():
        for clicks in (1, 5):
            lines = {name: curve(found[name], clicks) for name in names if name in found}
            charts.append(Chart(f"{title}: Dice, {clicks} click{'s' * (clicks > 1)}", "step", lines))
    with whole_file(path) as file:
        picture(charts).save(file, "PNG")
