"""`python apps/fastsam3d pretrain2d`: train a 2D model from a recipe, stage after stage.

Several processes: `torchrun --nproc-per-node N apps/fastsam3d/__main__.py pretrain2d ...`; each draws its own images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from pathlib import Path

from ..cli import emit
from .pretrain import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--recipe", default="repmedsam_compact", help="name in lib/recipes, or a JSON file")
    parser.add_argument("--stage", required=True, choices=("teacher", "distill", "finetune"))
    parser.add_argument("--out", required=True, type=Path, help="folder of the recipe's stages; a stage is resumed")
    parser.add_argument("--scans", type=Path, help="folder of real scans named in the split (none: generated only)")
    parser.add_argument("--split", type=Path, default=RECIPES / "split.json", help="which scans may train")
    parser.add_argument("--data", type=Path, help="folder of your own labelled .npz or NIfTI images (the mix's `own`)")
    parser.add_argument(
        "--from-scratch", action="store_true", help="finetune: an encoder that was not distilled (for comparison)"
    )
    parser.add_argument(
        "--init", type=Path, help="checkpoint of another run whose averaged weights a new run of the stage begins with"
    )
    parser.add_argument("--seed", type=int, help="seed instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="time budget of the stage instead of the recipe's")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: what is there)")
    parser.add_argument("--threads", type=int, help="CPU threads of the training process")


def main(args: argparse.Namespace) -> int:
    """Run the stage; prints the last validation as JSON."""
    import torch

    from ..sam.training.data import load_scans, read_split
    from ..sam.training.folders2d import OwnSlices
    from ..sam.training.pretrain2d import Training2d
    from ..sam.training.recipe2d import Recipe2d

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    recipe = Path(args.recipe)
    config = Recipe2d.read(recipe if recipe.suffix == ".json" else RECIPES / f"{args.recipe}.json")
    if args.seed is not None:
        config = dataclasses.replace(config, seed=args.seed)
    if args.minutes:
        stage = dataclasses.replace(config.stages[args.stage], minutes=args.minutes)
        config = dataclasses.replace(config, stages=config.stages | {args.stage: stage})
    if args.threads:
        torch.set_num_threads(args.threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    run = Training2d(
        config,
        args.stage,
        args.out,
        args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        load_scans(args.scans, read_split(args.split)) if args.scans else None,
        OwnSlices(args.data, config.seed) if args.data else None,
        args.from_scratch,
    )
    if args.init and not run.checkpoint.exists():
        logging.info("began with %s; new parameters: %s", args.init, ", ".join(run.warm_start(args.init)) or "none")
    emit(json.dumps(run.run()))
    return 0
