"""`python apps/fastsam3d pretrain`: train a default model from a recipe.

Several processes: `torchrun --nproc-per-node N apps/fastsam3d/__main__.py pretrain ...`; each draws its own patches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from pathlib import Path

from ..cli import emit

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--recipe", default="fastsam3d_compact", help="name in lib/recipes, or a JSON file")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; an existing run is resumed")
    parser.add_argument("--scans", type=Path, help="folder of real scans named in the split (none: generated only)")
    parser.add_argument("--split", type=Path, default=RECIPES / "split.json", help="which scans may train")
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
    parser.add_argument("--device", default=None, help="cpu or cuda (default: what is there)")
    parser.add_argument("--threads", type=int, help="CPU threads of the training process")


def main(args: argparse.Namespace) -> int:
    """Run it; prints the last validation as JSON."""
    import torch

    from ..sam.training.pretrain import PretrainConfig, Pretraining

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    recipe = Path(args.recipe)
    config = PretrainConfig.read(recipe if recipe.suffix == ".json" else RECIPES / f"{args.recipe}.json")
    if args.minutes:
        config = dataclasses.replace(config, minutes=args.minutes)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:  # started by torchrun
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
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
