"""`distill`: a student of fewer layers from a teacher, layer by layer or by one of the baselines.

The teacher is trained by `pretrain` with a recipe whose spec is fastsam3d_compact_teacher, or is any checkpoint or weights
file of a network with the student's width.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..cli import UserError, emit
from .training import add_machine, begin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint.pt of a training run")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; an existing run is resumed")
    parser.add_argument(
        "--spec", default="fastsam3d_compact", help="row of zoo.py of the student (default: %(default)s)"
    )
    parser.add_argument("--mode", default="progressive", help="progressive, fitnets or output (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of all phases together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data (default: %(default)s)")
    add_machine(parser)


def main(args: argparse.Namespace) -> int:
    """Distils; prints the rows of losses as JSON.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    import torch

    from ..sam.build import build_sam
    from ..sam.device import choose_device
    from ..sam.training.distill import Distillation, DistillConfig
    from ..sam.zoo import SPECS, get_spec

    begin(args.threads)
    if args.spec not in SPECS:
        raise UserError(f"--spec takes {', '.join(SPECS)}, got {args.spec!r}")
    config = DistillConfig(spec=args.spec, mode=args.mode, steps=args.steps, seed=args.seed)
    torch.manual_seed(args.seed)
    student = build_sam(get_spec(args.spec))
    run = Distillation(config, args.out, read_teacher(args.teacher), student, choose_device(args.device))
    rows = run.run()
    emit(json.dumps({"checkpoint": str(run.checkpoint), "rows": rows}, indent=2))
    return 0


def read_teacher(path: Path):
    """The network with a run's averaged weights."""
    from ..sam.build import build_sam
    from ..sam.checkpoint_files import read_contents
    from ..sam.zoo import get_spec

    content = read_contents(path).value
    try:
        spec, weights = json.loads(content["config"])["spec"], content["average"]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f'{path} is no checkpoint of a training run: it needs "config" and "average"') from error
    teacher = build_sam(get_spec(spec))
    teacher.load_state_dict(weights)
    return teacher
