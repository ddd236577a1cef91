"""The options of `evaluate` about the model `supervised`, and its training before the evaluation."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..cli import UserError, emit

NAME = "supervised"
_FOLDS, _MINUTES = 5, 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the training."""
    group = parser.add_argument_group("the model `supervised`: a network trained on label maps")
    group.add_argument(
        "--train",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="what trains it, as for --data, or two folders of images and label maps (default: the evaluated cases, "
        "cross-validated)",
    )
    group.add_argument("--folds", type=int, help=f"of the cross-validation (default: {_FOLDS})")
    group.add_argument("--train-minutes", type=float, help=f"for each network (default: {_MINUTES:g})")
    group.add_argument("--train-steps", type=int, help="at most so many steps, to repeat a training exactly")


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not fit.

    Raises:
        UserError: with what to put right.
    """
    given = [
        flag
        for flag, value in (
            ("--train", args.train),
            ("--folds", args.folds),
            ("--train-minutes", args.train_minutes),
            ("--train-steps", args.train_steps),
        )
        if value is not None
    ]
    if given and NAME not in [name.strip() for name in args.model.split(",")]:
        raise UserError(f"{', '.join(given)} goes with --model {NAME}, got --model {args.model}")
    if args.train is not None and (len(args.train) > 2 or not all(path.is_dir() for path in args.train)):
        raise UserError("--train takes one folder, or two of images and label maps")
    if args.train is not None and args.folds is not None:
        raise UserError("--folds is for cross-validation, which --train replaces")
    if args.folds is not None and args.folds < 2:
        raise UserError(f"--folds must be at least 2, got {args.folds}")
    if args.train_minutes is not None and not 0 < args.train_minutes <= 10080:
        raise UserError(f"--train-minutes must be more than 0 and at most a week, got {args.train_minutes}")
    if args.train_steps is not None and args.train_steps < 1:
        raise UserError(f"--train-steps must be at least 1, got {args.train_steps}")


def trained(args: argparse.Namespace, choices, cases, settings):
    """Trains the networks of the supervised reference, where it is chosen without networks of its own.

    Returns:
        The choices, with the reference's networks or without it; notes about its scans; {choice: why it is left out}.
    """
    from ..sam.device import choose_device
    from ..sam.evaluation.interface import ModelError
    from ..sam.evaluation.supervised import prepare
    from ..sam.evaluation.supervised_training import Recipe

    choice = next((c for c in choices if c.name == NAME and c.weights is None), None)
    if choice is None:
        return choices, [], {}
    others, notes = _training_cases(args.train)
    minutes = _MINUTES if args.train_minutes is None else args.train_minutes
    recipe = Recipe(minutes, args.train_steps or 0, seed=args.seed)
    folder = args.out / NAME
    try:
        device = choose_device(choice.device)
        notes += prepare(folder, cases, others, args.folds or _FOLDS, recipe, settings, device, emit)
    except ModelError as error:
        emit(f"left out: {error}")
        return [c for c in choices if c != choice], notes, {choice: str(error)}
    return [replace(c, weights=str(folder)) if c == choice else c for c in choices], notes, {}


def fact(versions) -> dict[str, str]:
    """What the reference saw, for the report; nothing where it is not among the models."""
    from ..sam.evaluation.supervised import what_it_saw

    choice = next((choice for choice in versions if choice.name == NAME), None)
    return {} if choice is None else {NAME: what_it_saw(Path(choice.weights))}


def _training_cases(folders: list[Path] | None):
    from ..sam.evaluation.cases import find_cases, pair_folders

    if folders is None:
        return None, []
    cases, problems = find_cases(*folders) if len(folders) == 1 else pair_folders(*folders)
    return cases, [replace(p, model=NAME, scored=True, reason=f"did not train: {p.reason}") for p in problems]
