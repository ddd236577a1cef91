"""`python apps/fastsam3d pretrain`: train a default model from a recipe.

Several processes: `torchrun --nproc-per-node N apps/fastsam3d/__main__.py pretrain ...`; each draws its own patches.
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
    add_recipe(parser, "fastsam3d_compact")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; an existing run is resumed")
    add_scans(parser)
    parser.add_argument(
        "--init",
        help="what a new run begins with: the checkpoint of another run (its averaged weights), or weights by their "
        "name, as `weights list` shows it",
    )
    parser.add_argument(
        "--fresh",
        default="",
        help="with --init: parts that keep fresh values, such as image_encoder.blocks,image_encoder.neck",
    )
    parser.add_argument("--minutes", type=float, help="time budget instead of the recipe's")
    add_machine(parser, CPU_OR_CUDA, "CPU threads of the training process")


def main(args: argparse.Namespace) -> int:
    """Run it; prints the last validation as JSON."""
    from ..sam.training.pretrain import PretrainConfig, Pretraining

    begin(args.threads)
    config = read_recipe(PretrainConfig, args.recipe)
    if args.minutes:
        config = dataclasses.replace(config, minutes=args.minutes)
    device = join_processes(args.device)
    run = Pretraining(config, args.out, args.scans, args.split, device)
    if args.init and not run.checkpoint.exists():
        fresh = _begin(run, args.init, tuple(filter(None, args.fresh.split(","))))
        logging.info(
            "began with %s; %d parameters are fresh: %s", args.init, len(fresh), ", ".join(fresh[:5]) or "none"
        )
    result = run.run()
    emit(json.dumps(result))
    return 0


def _begin(run, init: str, fresh: tuple[str, ...]) -> list[str]:
    """Gives a new run the weights of a checkpoint, or those of that name; returns the names of fresh parameters."""
    from ..conf import DEFAULT_MODEL, MODEL_DIR
    from ..sam import weights

    if Path(init).suffix == ".pt":
        return run.warm_start(Path(init), fresh)
    found = weights.resolve(DEFAULT_MODEL, MODEL_DIR, configured=init)
    return run.begin_with(weights.load_sam(found).float().state_dict(), init, fresh)
