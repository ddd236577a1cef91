"""`python apps/fastsam3d ablate`: ways to distil, depths, layers and attention of a student, compared at equal budgets.

Several processes may share a folder, each with other arms or seeds, once the first has written the patches.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from ..cli import UserError, emit
from .distill import read_teacher
from .training import add_machine, begin

_PATCH_SEED = 31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint.pt of a training run")
    parser.add_argument("--out", required=True, type=Path, help="folder of all runs; what is finished is kept")
    parser.add_argument("--arms", nargs="+", help="only these (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: 1 2 3)")
    parser.add_argument("--steps", type=int, default=200, help="of each run (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=50, help="of an epoch, 3 MB each (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=10, help="that are measured on (default: %(default)s)")
    parser.add_argument("--marks", type=int, default=5, help="measurements during a run (default: %(default)s)")
    add_machine(parser)


def main(args: argparse.Namespace) -> int:
    """Runs what is not finished; prints the table of all that is, and writes it with the curves.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    from ..sam.checkpoint_files import file_sha256
    from ..sam.device import choose_device
    from ..sam.training import ablation
    from ..sam.training.data import TrainingPatches
    from ..sam.training.pool import PatchPool
    from ..sam.training.pretrain import dice_per_click, validation_cases, with_others_images

    begin(args.threads)
    known = {arm.name: arm for arm in ablation.ARMS}
    unknown = [name for name in args.arms or () if name not in known]
    if unknown:
        raise UserError(f"--arms takes {', '.join(known)}; got {', '.join(unknown)}")
    if min(args.steps, args.patches, args.cases, args.marks) < 1 or args.steps < args.marks:
        raise UserError("--steps, --patches, --cases and --marks take whole numbers of at least 1, and steps >= marks")
    device = choose_device(args.device)
    teacher = read_teacher(args.teacher)
    spec = teacher.spec
    source = TrainingPatches.of(spec, _PATCH_SEED, 4)
    origin = f"teacher {file_sha256(args.teacher)}, {args.patches} patches of seed {_PATCH_SEED}"
    patches = PatchPool.fill(args.out / "patches", args.patches, source, teacher, origin, device)
    cases = validation_cases(spec, args.cases)
    teacher = teacher.to(device).eval()
    top, blind = (
        dice_per_click(teacher, shown, ablation.CLICKS[-1], device) for shown in (cases, with_others_images(cases))
    )
    for seed in args.seeds:
        for name in args.arms or known:
            logging.info("%s, seed %d", name, seed)
            config = ablation.config_of(known[name], seed, args.steps, args.marks)
            ablation.run_arm(config, args.out / f"{name}_{seed}", teacher, patches, cases, device)
    found = ablation.finished(args.out, ablation.ARMS, args.seeds)
    text = ablation.table(found, args.patches, top, blind)
    (args.out / "ablation.md").write_text(text + "\n")
    (args.out / "ablation.json").write_text(
        json.dumps({"teacher": top, "blind": blind, "runs": found}, indent=1) + "\n"
    )
    ablation.draw_curves(found, args.out / "curves.png")
    emit(text)
    return 0
