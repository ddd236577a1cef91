"""`python apps/fastsam3d pretrain2d`: train a 2D model from a recipe, stage after stage.

Several processes: `torchrun --nproc-per-node N apps/fastsam3d/__main__.py pretrain2d ...`; each draws its own images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path

from ..cli import emit
from .training import CPU_OR_CUDA, add_machine, add_recipe, add_scans, begin, join_processes, read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_recipe(parser, "repmedsam_compact")
    parser.add_argument("--stage", required=True, choices=("teacher", "distill", "finetune"))
    parser.add_argument("--out", required=True, type=Path, help="folder of the recipe's stages; a stage is resumed")
    add_scans(parser)
    parser.add_argument("--data", type=Path, help="folder of your own labelled .npz or NIfTI images (the mix's `own`)")
    parser.add_argument(
        "--from-scratch", action="store_true", help="finetune: an encoder that was not distilled (for comparison)"
    )
    parser.add_argument(
        "--init", type=Path, help="checkpoint of another run whose averaged weights a new run of the stage begins with"
    )
    parser.add_argument("--seed", type=int, help="seed instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="time budget of the stage instead of the recipe's")
    add_machine(parser, CPU_OR_CUDA, "CPU threads of the training process")


def main(args: argparse.Namespace) -> int:
    """Run the stage; prints the last validation as JSON."""
    from ..sam.training.data import load_scans, read_split
    from ..sam.training.folders2d import OwnSlices
    from ..sam.training.pretrain2d import Training2d
    from ..sam.training.recipe2d import Recipe2d

    begin(args.threads)
    config = read_recipe(Recipe2d, args.recipe)
    if args.seed is not None:
        config = dataclasses.replace(config, seed=args.seed)
    if args.minutes:
        stage = dataclasses.replace(config.stages[args.stage], minutes=args.minutes)
        config = dataclasses.replace(config, stages=config.stages | {args.stage: stage})
    device = join_processes(args.device)
    run = Training2d(
        config,
        args.stage,
        args.out,
        device,
        load_scans(args.scans, read_split(args.split)) if args.scans else None,
        OwnSlices(args.data, config.seed) if args.data else None,
        args.from_scratch,
    )
    if args.init and not run.checkpoint.exists():
        logging.info("began with %s; new parameters: %s", args.init, ", ".join(run.warm_start(args.init)) or "none")
    emit(json.dumps(run.run()))
    return 0
