"""`finetune`: what the Train button does, over folders instead of a server.

Several processes: `torchrun --nproc-per-node N apps/fastsam3d/__main__.py finetune ... --set batch=N`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import UserError, emit
from ..conf import MODEL_DIR
from .training import add_machine, begin, join_processes

if TYPE_CHECKING:
    from ..sam.training.finetune_config import TuningConfig

_CASE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
_CHANNEL = "_0000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--images", type=Path, help="folder of scans; an nnU-Net dataset has imagesTr")
    parser.add_argument("--labels", type=Path, help="folder of label maps of the same names")
    parser.add_argument("--dataset", type=Path, help="instead of both: a folder with imagesTr, labelsTr, dataset.json")
    parser.add_argument("--names", type=Path, help='JSON of names, {"1": "liver"} or nnU-Net\'s {"liver": 1}')
    parser.add_argument(
        "--model",
        default="fastsam3d",
        help="whose served weights to start from: fastsam3d or repmedsam (default: %(default)s)",
    )
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR, help="folder of weights (default: the app's)")
    parser.add_argument("--init", help="weights to start from: a name, file or folder (default: those that serve)")
    parser.add_argument("--minutes", type=float, help="time budget of the training (0: none)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, see lib/sam/training/finetune_config.py",
    )
    parser.add_argument("--fresh", action="store_true", help="do not go on with an unfinished run")
    add_machine(parser, threads="CPU threads of each process")


def main(args: argparse.Namespace) -> int:
    """Trains; prints the verdict as JSON. Status 0 if published, 1 if the served model was kept.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    import torch

    from ..sam import weights
    from ..sam.training import loop
    from ..sam.training.learners import config_type
    from ..sam.training.runs import BusyError, Run

    begin(args.threads)
    device = join_processes(args.device)
    processes = loop.processes()[1]
    base = weights.resolve(args.model, args.model_dir, configured=args.init)
    settings = config_type(base.spec)
    config = settings.of({"batch": processes} | _settings(args, settings))
    try:
        outcome = Run(find_cases(args), base, args.model_dir, config, device, resume=not args.fresh)()
    except BusyError as error:
        raise UserError(str(error)) from error
    finally:
        if processes > 1:
            torch.distributed.destroy_process_group()
    if outcome is None:
        return 0
    verdict = outcome.verdict
    answer = {"published": outcome.published, "reason": verdict.reason, "report": str(outcome.report)}
    emit(json.dumps(answer | verdict.metrics(), indent=2))
    return 0 if verdict.accepted else 1


def _settings(args: argparse.Namespace, settings: type[TuningConfig]) -> dict[str, str]:
    chosen = {} if args.minutes is None else {"minutes": args.minutes}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or key not in settings.__dataclass_fields__:
            known = ", ".join(settings.__dataclass_fields__)
            raise UserError(f"--set takes KEY=VALUE with a key of {known}; got {text!r}")
        chosen[key] = value
    return chosen


def find_cases(args: argparse.Namespace) -> list:
    """The cases of two folders with equal names, or of an nnU-Net dataset (first channel).

    Raises:
        UserError: missing folders, or no pair.
    """
    from ..sam.training.cases import LabelledCase

    images, labels, names = args.images, args.labels, args.names
    if args.dataset:
        images, labels = args.dataset / "imagesTr", args.dataset / "labelsTr"
        names = names or args.dataset / "dataset.json"
    if not (images and labels and images.is_dir() and labels.is_dir()):
        raise UserError(f"give --images and --labels, or --dataset; got the folders {images} and {labels}")
    numbered = read_names(names) if names and names.is_file() else {}
    cases = []
    for image in sorted(images.iterdir()):
        end = next((end for end in _CASE_ENDINGS if image.name.endswith(end)), None)
        if end is None:
            continue
        name = image.name[: -len(end)].removesuffix(_CHANNEL)
        found = [labels / (name + other) for other in (end, *_CASE_ENDINGS) if (labels / (name + other)).is_file()]
        if found:
            cases.append(LabelledCase(name, image, found[0], numbered))
    if not cases:
        raise UserError(f"no image in {images} has a label map of its name in {labels}")
    return cases


def read_names(path: Path) -> dict[int, str]:
    """value -> name of a JSON file in either direction, or of nnU-Net's dataset.json.

    Raises:
        UserError: it is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("labels", content)
        if all(str(key).isdecimal() for key in content):
            return {int(key): str(value) for key, value in content.items()}
        return {int(value): str(key) for key, value in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{path} must map numbers to names, such as {{"1": "liver"}}: {error}') from error
