"""Measure objects of every size with and without zoom: the table of docs/models.md.

    .venv/bin/python scripts/size_table.py --out build/sizes [--small FOLDER] [--weights FILE]

Makes three phantoms, labels each body and each pair of lungs as one object, and runs `evaluate` on them and on the structures
under 2 ml of FOLDER (x_image.* beside x_label.*, or another layout that `evaluate --data` knows; of these the largest part
alone), with the patch that follows the object and with the published one. Prints the table, and leaves the reports in OUT.
What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "fastsam3d"
CASES, SEED, CLICKS = 3, 500, 5
SHOWN = (1, 3, 5)
SMALL_ML = 2.0
NOT_ALL = 3
VARIANTS = {"with": (), "without": ("--set", "zoom=false")}


def call(*command: str | Path, accepted: Sequence[int] = (0,)) -> None:
    """Runs a Python program of the repository.

    Raises:
        RuntimeError: it ended with another status.
    """
    status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=False).returncode
    if status not in accepted:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {status}")


def say_unscored(out: Path) -> None:
    """Prints to stderr what an evaluation did not score, which its table lacks."""
    for problem in json.loads((out / "problems.json").read_text(encoding="utf-8")):
        if not problem["scored"]:
            where = [problem["case"], problem["model"], "" if problem["label"] is None else f"label {problem['label']}"]
            print(f"not scored: {', '.join(filter(None, where))}: {problem['reason']}", file=sys.stderr)


def measure(data: Sequence[str | Path], out: Path, more: Sequence[str]) -> list[dict[str, str]]:
    """One evaluation; the lines of its metrics.csv joined with the rows of its metrics.json."""
    given = ["--model", "fastsam3d", "--clicks", str(CLICKS), "--out", out]
    call(APP, "evaluate", *data, *given, *more, accepted=(0, NOT_ALL))
    say_unscored(out)
    rows = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    head, *lines = (out / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = head.split(",").index("patch_ceiling") - len(head.split(","))  # from the end: names may hold commas
    return [row | {"ceiling": float(line.split(",")[column])} for row, line in zip(rows, lines, strict=True)]


def means(rows: Sequence[dict]) -> str:
    """Mean Dice after 1, 3 and 5 clicks and of a box."""
    boxes = [row["box"]["dice"] for row in rows if row["box"]]
    shown = [f"{fmean(row['dice'][n - 1] for row in rows):.2f}" for n in SHOWN]
    return " / ".join([*shown, f"{fmean(boxes):.2f}" if boxes else "-"])


def line(name: str, data: Sequence[str | Path], out: Path, more: Sequence[str], most_ml: float | None = None) -> str:
    """One line of the table."""
    found = {}
    for variant, change in VARIANTS.items():
        rows = measure(data, out / f"{name.replace(' ', '_')}_{variant}", (*more, *change))
        found[variant] = [row for row in rows if most_ml is None or row["volume_ml"] < most_ml]
    rows = found["with"]
    if not rows:
        return f"| {name}, 0 | | | |"
    ceiling = fmean(row["ceiling"] for row in rows)
    return f"| {name}, {len(rows)} | {ceiling:.2f} | {means(rows)} | {means(found['without'])} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the table of objects of every size")
    parser.add_argument("--out", type=Path, required=True, help="folder for the phantoms and the reports")
    parser.add_argument(
        "--small", type=Path, help=f"labelled scans whose structures under {SMALL_ML:g} ml are measured"
    )
    parser.add_argument("--cases", type=int, default=CASES, help="phantoms (default: %(default)s)")
    parser.add_argument("--weights", help="as for evaluate (default: the weights that ship)")
    args = parser.parse_args(argv)
    phantoms, large = args.out.resolve() / "phantoms", args.out.resolve() / "large"
    more = ("--weights", args.weights) if args.weights else ()
    whole, part = ("--parts", "all", *more), ("--parts", "largest", *more)  # a pair of lungs has two parts
    call("sample-data/make.py", "--out", phantoms, "--cases", str(args.cases), "--seed", str(SEED))
    call("sample-data/large_objects.py", phantoms / "studies", "--out", large)
    lines = [
        line(name, ("--images", phantoms / "studies", "--labels", large / folder), args.out.resolve(), whole)
        for name, folder in (("body as one label", "body"), ("both lungs as one label", "lungs"))
    ]
    if args.small:
        data = ("--data", args.small.resolve())
        lines.append(line(f"structures under {SMALL_ML:g} ml", data, args.out.resolve(), part, SMALL_ML))
    shown = " / ".join(f"{n} click{'s' * (n > 1)}" for n in SHOWN) + " / box"
    print(f"| object | ceiling | with: {shown} | without: {shown} |\n|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
