"""`python apps/fastsam3d ablate2d`: RepMedSAM's ablation, from scratch against distilled, same budget, several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cli import emit
from .training import CPU_OR_CUDA, add_machine, add_recipe, add_scans, begin, read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_recipe(parser, "repmedsam_compact")
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint.pt of `pretrain2d --stage teacher`")
    parser.add_argument("--out", required=True, type=Path, help="folder of all runs; what is finished is kept")
    parser.add_argument("--minutes", type=float, default=20.0, help="budget of each arm and seed (default: 20)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add_scans(parser)
    add_machine(parser, CPU_OR_CUDA)


def main(args: argparse.Namespace) -> int:
    """Runs it; prints the table."""
    from ..sam.device import choose_device
    from ..sam.training.ablation2d import ablation, table
    from ..sam.training.data import load_scans, read_split
    from ..sam.training.recipe2d import Recipe2d

    begin(args.threads)
    config = read_recipe(Recipe2d, args.recipe)
    scans = load_scans(args.scans, read_split(args.split)) if args.scans else None
    device = choose_device(args.device)
    found = ablation(config, args.teacher, args.out, args.minutes, args.seeds, device, scans)
    emit(table(found, args.seeds))
    return 0
