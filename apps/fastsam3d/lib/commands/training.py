"""What the commands that train share: options, and what they do before they train."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..cli import UserError

if TYPE_CHECKING:
    import torch

    from ..sam.training.pretrain import PretrainConfig
    from ..sam.training.recipe2d import Recipe2d

    Recipe = TypeVar("Recipe", PretrainConfig, Recipe2d)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CPU_OR_CUDA = "cpu or cuda (default: what is there)"


def add_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    """Declares --recipe, for `read_recipe`."""
    parser.add_argument("--recipe", default=default, help="name in lib/recipes, or a JSON file")


def add_scans(parser: argparse.ArgumentParser) -> None:
    """Declares --scans and --split."""
    parser.add_argument("--scans", type=Path, help="folder of real scans named in the split (none: generated only)")
    parser.add_argument("--split", type=Path, default=RECIPES / "split.json", help="which scans may train")


def add_machine(
    parser: argparse.ArgumentParser,
    device: str = "auto, cpu, cuda or cuda:N (default: %(default)s)",
    threads: str = "CPU threads",
) -> None:
    """Declares --device, for `choose_device`, and --threads, for `begin`; with these help texts."""
    parser.add_argument("--device", default="auto", help=device)
    parser.add_argument("--threads", type=int, help=threads)


def begin(threads: int | None) -> None:
    """Logs with the time of day, and computes with that many CPU threads; None leaves that to torch."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    if threads:
        torch.set_num_threads(threads)


def read_recipe(kind: type[Recipe], text: str) -> Recipe:
    """The recipe that --recipe names.

    Raises:
        OSError: there is no such file. ValueError: it is no recipe of that kind.
    """
    path = Path(text)
    return kind.read(path if path.suffix == ".json" else RECIPES / f"{text}.json")


def join_processes(asked: str) -> torch.device:
    """The device that --device asks for; where torchrun started several processes, each gets its own GPU and joins the others.

    Raises:
        UserError: --device names one GPU for several processes.
        ValueError: there is no such device.
    """
    import torch

    from ..sam.device import choose_device

    device = choose_device(asked)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return device
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device {asked} is one GPU for {count} processes; --device cuda gives each its own")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device
