"""`python apps/fastsam3d evaluate`: how good models are on labelled scans; and two such evaluations compared."""

from __future__ import annotations

import argparse
import json
import platform
import time
from math import inf
from pathlib import Path

from ..cli import UserError, emit
from . import evaluate_reference as reference

NOT_ALL = 3
_CHALLENGE_CLICKS, _CLICKS = 5, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from ..sam.evaluation.protocols import PROTOCOLS
    from ..sam.evaluation.score import PARTS

    data = parser.add_argument_group("data")
    data.add_argument("--images", type=Path, help="folder of scans, or one scan")
    data.add_argument("--labels", type=Path, help="folder of label maps of the same names, or one")
    data.add_argument(
        "--data",
        type=Path,
        help="instead: MONAI Label studies (labels/final), nnU-Net's imagesTr and labelsTr, .npz archives with imgs and gts, "
        "or x_image.* beside x_label.*",
    )
    data.add_argument(
        "--names", type=Path, help="JSON {value: name} (default: labels.json or dataset.json near the data)"
    )
    data.add_argument("--only", help="label values to evaluate, separated by commas (default: all)")
    data.add_argument("--min-ml", type=float, default=0.0, help="pass over smaller structures")
    data.add_argument(
        "--parts",
        choices=PARTS,
        default="all",
        help="all of a structure or its largest part alone (default: %(default)s)",
    )
    data.add_argument("--modality", help="CT, MR, PET, ... of all cases, or a JSON file {case: modality}")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        default="fastsam3d",
        help="one or several, with commas: a model of this app, random_walker, supervised, http://host:port#model, "
        "sam_vit_b or medsam (default: %(default)s)",
    )
    models.add_argument(
        "--weights", help="a weights file, a folder or a registry name; MODEL=... for one of several models"
    )
    models.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a field of the models' spec"
    )
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    reference.add_arguments(parser)
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--protocol", choices=PROTOCOLS, default="points", help="(default: %(default)s)")
    asked.add_argument(
        "--clicks", type=int, help=f"clicks a structure (default: {_CLICKS}, {_CHALLENGE_CLICKS} with cvpr25)"
    )
    asked.add_argument(
        "--rule", choices=("centre", "ritm", "random"), default="centre", help="where the next click of `points` goes"
    )
    asked.add_argument("--seed", type=int, default=0, help="for rules that draw at random")
    asked.add_argument("--tolerance", type=float, default=2.0, help="of the NSD, in mm (default: %(default)s)")
    asked.add_argument(
        "--goal", type=float, default=0.9, help="the Dice whose clicks are counted (default: %(default)s)"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, help="folder for metrics.json, metrics.csv and report.html; resumed if it is there"
    )
    out.add_argument("--save-masks", action="store_true", help="every mask as .nii.gz in OUT/masks")
    out.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    out.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="compare two metrics.json instead (B with A)"
    )


def main(args: argparse.Namespace) -> int:
    """Evaluates, or compares; 0 when all was scored, 3 when not.

    Raises:
        UserError, ValueError, OSError: with what to put right.
    """
    if args.compare:
        return _compare(*args.compare)
    _check(args)
    from ..sam.evaluation import run as running
    from ..sam.evaluation.cases import Case, Problem, label_names

    cases, problems = _cases(args)
    names, unnamed = label_names(cases, args.names, args.data or args.images)
    problems += unnamed
    if args.modality:
        modalities = _modalities(args.modality, cases)
        cases = [Case(c.name, c.image, c.labels, modalities.get(c.name, c.modality)) for c in cases]
    settings = _settings(args)
    choices, notes, untrained = reference.trained(args, _choices(args), cases, settings)
    problems += notes
    versions, missing = _versions(choices)
    missing |= untrained
    problems += [Problem("", reason, model=choice.name) for choice, reason in missing.items()]
    usable = [choice for choice in choices if choice in versions]
    if not usable:
        raise UserError("; ".join(missing.values()))
    for folder in (args.out, settings.masks, settings.pictures):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    tasks, faults = running.plan(cases, settings, names, usable)
    if not tasks and not faults:
        raise UserError("no structure is left by --only and --min-ml")
    from ..conf import AppConf

    results = dict(
        running.run(tasks, versions, settings, running.Kept(args.out), args.workers, AppConf().cache_bytes, notice=emit)
    )
    problems += faults
    problems += [p for task in tasks for p in results[task].problems]
    problems = list(dict.fromkeys(problems))
    scored = [results[task] for task in tasks if results[task].row is not None]
    _write(args, [r.row for r in scored], [r.extra for r in scored], problems, settings, versions, len(cases))
    return 0 if all(p.scored for p in problems) else NOT_ALL


def _check(args: argparse.Namespace) -> None:
    if args.out is None:
        raise UserError("--out names the folder for the results, and is needed")
    if (args.data is None) == (args.images is None and args.labels is None):
        raise UserError("give --images and --labels, or --data")
    if args.data is None and (args.images is None or args.labels is None):
        raise UserError("--images and --labels are needed together")
    for path in (args.images, args.labels, args.data, args.names):
        if path is not None and not path.exists():
            raise UserError(f"{path} is not there")
    if args.data is not None and not args.data.is_dir():
        raise UserError(f"--data must be a folder, got {args.data}")
    if args.data is None and args.images.is_file() != args.labels.is_file():
        raise UserError("--images and --labels must be two folders or two files")
    if not 0 < args.goal <= 1:
        raise UserError(f"--goal must be a Dice, more than 0 and at most 1, got {args.goal}")
    if not 0 <= args.min_ml < inf:
        raise UserError(f"--min-ml must be a number of ml, at least 0, got {args.min_ml}")
    if args.clicks is not None and not 1 <= args.clicks <= 200:
        raise UserError(f"--clicks must be 1 to 200, got {args.clicks}")
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    reference.check(args)
    if not 0 <= args.tolerance < 1000:
        raise UserError(f"--tolerance must be a number of mm, at least 0, got {args.tolerance}")
    _check_device(args.device)


def _check_device(name: str) -> None:
    import torch

    from ..sam.device import choose_device

    device = choose_device(name)
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise UserError(f"--device {name} does not work here; use cpu or auto: {error}") from error


def _cases(args: argparse.Namespace):
    from ..sam.evaluation.cases import find_cases, pair_folders, unique

    cases, problems = find_cases(args.data) if args.data is not None else pair_folders(args.images, args.labels)
    cases, again = unique(cases)
    return cases, problems + again


def _settings(args: argparse.Namespace):
    from ..sam.evaluation.score import Settings

    challenge = args.protocol == "cvpr25"
    try:
        only = tuple(sorted(int(v) for v in args.only.split(","))) if args.only else ()
    except ValueError as error:
        raise UserError(f"--only takes label values separated by commas, got {args.only!r}") from error
    return Settings(
        protocol=args.protocol,
        clicks=args.clicks or (_CHALLENGE_CLICKS if challenge else _CLICKS),
        rule="cvpr25" if challenge else args.rule,
        seed=args.seed,
        tolerance_mm=args.tolerance,
        parts=args.parts,
        min_ml=args.min_ml,
        only=only,
        masks=args.out / "masks" if args.save_masks else None,
        pictures=args.out / "pictures",
    )


def _choices(args: argparse.Namespace):
    from ..conf import MODEL_DIR
    from ..sam.evaluation.models import ModelChoice, changed_spec
    from ..sam.zoo import get_spec

    changed_spec(get_spec("fastsam3d_compact"), args.set)  # says now what is wrong with a change
    names = list(dict.fromkeys(name.strip() for name in args.model.split(",") if name.strip()))
    if not names:
        raise UserError("--model needs at least one name")
    chosen: dict[str, str] = {}
    for part in filter(None, (args.weights or "").split(",")):
        model, equals, where = part.partition("=")
        if equals and model in names:
            chosen[model] = where
        elif equals and "/" not in model and not Path(part).exists():
            raise UserError(f"--weights names {model}, which --model does not")
        else:  # a path, which may hold a = too
            chosen[names[0]] = part
    return [ModelChoice(name, MODEL_DIR, chosen.get(name), tuple(args.set), args.device) for name in names]


def _versions(choices):
    """{choice: version} of the models that can be had, {choice: reason} of the others."""
    from ..sam.evaluation.interface import ModelError
    from ..sam.evaluation.models import model_version

    versions, missing = {}, {}
    for choice in choices:
        try:
            versions[choice] = model_version(choice)
        except ModelError as error:
            missing[choice] = str(error)
            emit(f"left out: {error}")
    return versions, missing


def _modalities(text: str, cases) -> dict[str, str]:
    from ..sam.evaluation.cases import modality_name

    if not text.lower().endswith(".json"):
        return {case.name: modality_name(text) for case in cases}
    try:
        return {str(case): modality_name(str(name)) for case, name in json.loads(Path(text).read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"--modality {text} must hold an object {{case: modality}}: {error}") from error


def _write(args, rows, extras, problems, settings, versions, cases: int) -> None:
    from dataclasses import asdict

    from ..sam.evaluation.report import html_report
    from ..sam.evaluation.summary import as_csv
    from ..sam.files import write_text

    facts = {
        "models": "; ".join(f"{choice.name} ({version})" for choice, version in versions.items()),
        "protocol": settings.protocol,
        "clicks": f"{settings.clicks}, {settings.rule}",
        "NSD tolerance": f"{settings.tolerance_mm:g} mm",
        "structures": f"{len(rows)} results of {cases} cases, {settings.parts} parts",
        "changes": ", ".join(args.set) or "none",
        **reference.fact(versions),
        "made": f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {platform.system()}",
    }
    write_text(args.out / "metrics.json", json.dumps(rows, indent=1))
    write_text(args.out / "metrics.csv", as_csv(rows, extras, args.goal))
    write_text(args.out / "problems.json", json.dumps([asdict(p) for p in problems], indent=1))
    write_text(args.out / "report.html", html_report(rows, extras, problems, facts, args.goal, settings.pictures))
    for line in _lines(rows, args.goal):
        emit(line)
    for problem in problems:
        if not problem.scored:
            label = "" if problem.label is None else f", label {problem.label}"
            emit(f"not scored: {problem.case or problem.model}{label}: {problem.reason}")
    emit(f"{args.out}: metrics.json, metrics.csv, problems.json, report.html")


def _lines(rows, goal: float) -> list[str]:
    """The results as a table for a terminal."""
    from ..sam.evaluation.summary import averages, challenge_metrics, grouped, shown_clicks

    lines = []
    for model, chosen in grouped(rows, lambda row: row["model"]).items():
        shown = shown_clicks(chosen)
        lines.append(
            f"{model}: Dice after {', '.join(map(str, shown))} clicks; box" if shown else f"{model}: Dice of boxes"
        )
        for row in chosen:
            scores = "  ".join(f"{row['dice'][n - 1]:.3f}" for n in shown)
            box = f"{row['box']['dice']:.3f}" if row["box"] else "-"
            lines.append(f"{row['case']:24s} {row['name']:28s} {row['volume_ml']:9.1f} ml  {scores}   {box}")
        a = averages(chosen, goal)
        means = "  ".join(f"{a['dice'][n]:.3f}" for n in shown)
        box = "-" if a["box_dice"] is None else f"{a['box_dice']:.3f}"
        lines.append(f"{'mean of ' + str(len(chosen)):66s} {means}   {box}")
        challenge = challenge_metrics(chosen)
        if challenge:
            lines.append("  ".join(f"{name} {value:.4f}" for name, value in challenge.items()))
    return lines


def _compare(first: Path, second: Path) -> int:
    from ..sam.evaluation import compare

    found, notes = compare.pairs(compare.read_rows(first), compare.read_rows(second))
    emit(f"A {first}\nB {second}\n{len(found)} results in both; B - A with 95 % bootstrap intervals over cases")
    for model, chosen in compare.by_model(found).items():
        emit(f"{model}: {len(chosen)} structures")
        for d in compare.differences(chosen):
            mark = "" if not d.clear else " better" if d.mean > 0 else " worse"
            emit(f"{d.metric:26s} A {d.first:.4f}  B {d.second:.4f}  {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]{mark}")
    fallen = compare.regressions(found)
    emit(f"{len(fallen)} regressions of more than {compare.REGRESSION:g}")
    for r in fallen:
        emit(f"  {r.case}, {r.name} ({r.label}), {r.model}, {r.metric}: {r.first:.3f} -> {r.second:.3f}")
    for note in notes:
        emit(note)
    return 0
