"""`python apps/fastsam3d ablate2d`: RepMedSAM's ablation, from scratch against distilled, same budget, several seeds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..cli import emit
from .pretrain import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--recipe", default="repmedsam_compact", help="name in lib/recipes, or a JSON file")
    parser.add_argument("--teacher", required=True, type=Path, help="checkpoint.pt of `pretrain2d --stage teacher`")
    parser.add_argument("--out", required=True, type=Path, help="folder of all runs; what is finished is kept")
    parser.add_argument("--minutes", type=float, default=20.0, help="budget of each arm and seed (default: 20)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--scans", type=Path, help="folder of real scans named in the split (none: generated only)")
    parser.add_argument("--split", type=Path, default=RECIPES / "split.json", help="which scans may train")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: what is there)")
    parser.add_argument("--threads", type=int, help="CPU threads")


def main(args: argparse.Namespace) -> int:
    """Runs it; prints the table."""
    import torch

    from ..sam.training.ablation2d import ablation, table
    from ..sam.training.data import load_scans, read_split
    from ..sam.training.recipe2d import Recipe2d

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    recipe = Path(args.recipe)
    config = Recipe2d.read(recipe if recipe.suffix == ".json" else RECIPES / f"{args.recipe}.json")
    if args.threads:
        torch.set_num_threads(args.threads)
    scans = load_scans(args.scans, read_split(args.split)) if args.scans else None
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = ablation(config, args.teacher, args.out, args.minutes, args.seeds, device, scans)
    emit(table(found, args.seeds))
    return 0
