"""`python apps/fastsam3d evaluate`: Dice per structure and click on labelled scans."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
from pathlib import Path

from ..cli import UserError, emit
from ..sam.spec import SamSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", default="fastsam3d", help="name of the model (default: %(default)s)")
    parser.add_argument("--weights", help="a weights file, a folder or a registry name (default: the model's own)")
    parser.add_argument("--images", type=Path, required=True, help="folder of scans, or one scan")
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps of the same names, or one")
    parser.add_argument("--names", type=Path, help="JSON {value: name} of the label maps")
    parser.add_argument("--only", help="label values to evaluate, separated by commas (default: all)")
    parser.add_argument("--clicks", type=int, default=5, help="clicks a structure (default: %(default)s)")
    parser.add_argument(
        "--rule", default="centre", choices=("centre", "ritm", "random"), help="where the next click goes"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a field of the model's spec"
    )
    parser.add_argument("--min-ml", type=float, default=0.0, help="skip smaller structures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, help="folder for metrics.json and metrics.csv")


def main(args: argparse.Namespace) -> int:
    """Evaluate and report."""
    from ..conf import MODEL_DIR, AppConf
    from ..sam import weights
    from ..sam.device import choose_device
    from ..sam.evaluate import evaluate, find_pairs
    from ..sam.segmenter import VolumeSegmenter
    from ..sam.session import SessionStore

    if args.clicks < 1:
        raise UserError(f"--clicks must be at least 1, got {args.clicks}")
    for path in (args.images, args.labels):
        if not path.exists():
            raise UserError(f"{path} is not there")
    if args.images.is_file():
        pairs = [(args.images.name.split(".")[0], args.images, args.labels)]
    else:
        pairs = find_pairs(args.images, args.labels)
    names = {int(k): v for k, v in json.loads(args.names.read_text()).items()} if args.names else {}
    only = {int(v) for v in args.only.split(",")} if args.only else None
    device = choose_device(args.device)
    resolved = weights.resolve(args.model, MODEL_DIR, configured=args.weights)
    network = weights.load_sam(resolved, device)
    segmenter = VolumeSegmenter(network, changed_spec(resolved.spec, args.set), resolved.name, resolved.version, device)
    store = SessionStore(AppConf().cache_bytes)
    curves = []
    shown = sorted({1, min(3, args.clicks), min(5, args.clicks), args.clicks})
    emit(f"{resolved.name} ({resolved.version}); Dice after " + ", ".join(str(n) for n in shown) + " clicks; box")
    for curve in evaluate(
        segmenter, store, pairs, args.model,
        max_clicks=args.clicks, rule=args.rule, names=names, min_ml=args.min_ml, only=only,
    ):  # fmt: skip
        curves.append(curve)
        scores = "  ".join(f"{curve.dice[n - 1]:.3f}" for n in shown)
        box = "-" if curve.box_dice is None else f"{curve.box_dice:.3f}"
        emit(f"{curve.case:24s} {curve.name:28s} {curve.volume_ml:9.1f} ml  {scores}   {box}")
    if curves:
        means = "  ".join(f"{sum(c.dice[n - 1] for c in curves) / len(curves):.3f}" for n in shown)
        emit(f"{'mean of ' + str(len(curves)):66s} {means}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        _write(args.out / "metrics.json", json.dumps([c.as_dict() for c in curves], indent=1))
        with open(args.out / "metrics.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(
                [
                    "case",
                    "label",
                    "name",
                    "volume_ml",
                    "model",
                    *(f"dice_{n}" for n in range(1, args.clicks + 1)),
                    "dice_box",
                ]
            )
            for c in curves:
                table.writerow([c.case, c.label, c.name, c.volume_ml, c.model, *c.dice, c.box_dice])
    return 0


def changed_spec(spec: SamSpec, changes: list[str]) -> SamSpec:
    """The spec with `field=value` changes, values as in JSON (`zoom=false`, `replay="last"`).

    Raises:
        UserError: an unknown field, or a value that is not of the field's type.
    """
    for change in changes:
        name, _, text = change.partition("=")
        known = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        plain = {k: v for k, v in known.items() if isinstance(v, (bool, int, float, str)) and k != "name"}
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if name not in plain or type(value) is not type(plain[name]):
            raise UserError(f"--set takes FIELD=VALUE with one of {', '.join(plain)} and a JSON value, got {change!r}")
        spec = dataclasses.replace(spec, **{name: value})
    return spec


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
