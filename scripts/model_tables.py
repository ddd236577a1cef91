"""Measure the models that ship on the phantom and on real scans, and write the tables of docs/models.md.

    .venv/bin/python scripts/model_tables.py --data FOLDER --out build/tables [--only phantom,ct] [--write] [--workers 2]

FOLDER holds the evaluation sets by the names of SETS. Prints each table as it is done; `--write` also puts them where
docs/models.md has `<!-- table NAME -->`. What is in OUT already and still holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean

from size_table import APP, NOT_ALL, ROOT, SEED, call, say_unscored

DOCUMENT = ROOT / "docs" / "models.md"
PHANTOMS = 3
SHOWN = (1, 3, 5, 10)
CLICKS = max(SHOWN)
MIN_ML, MIN_ML_SLICES = 1.0, 30.0
SCANS = {"ct": "CT", "mr_t1": "MR T1", "pet": "PET"}
SARCOMAS = ("sts_001", "sts_002", "sts_006")
SINGLE = {
    "brain tumour MR": ("mr_brain_tumour_pyradiomics", "image"),
    "multiple sclerosis FLAIR": ("mr_brain_ms_openms", "image_flair"),
    "cervical cord MR T2": ("mr_spinal_cord_sct_t2", "image"),
}
HIPPOCAMPI = "mr_hippocampus_msd"


def link(folder: Path, name: str, image: Path, label: Path) -> None:
    """A scan and its label map under one name in folder/images and folder/labels."""
    for kind, file in (("images", image), ("labels", label)):
        place = folder / kind / f"{name}.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(file.resolve())


def evaluate(out: Path, *more: str | Path, protocol: Sequence[str] = ("--clicks", str(CLICKS))) -> list[dict]:
    """The rows of one evaluation."""
    call(APP, "evaluate", *more, "--parts", "largest", *protocol, "--out", out, accepted=(0, NOT_ALL))
    say_unscored(out)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def named(rows: Iterable[dict], case: Callable[[str], str]) -> list[dict]:
    """The same rows with a scan's name for readers."""
    return [row | {"case": case(row["case"])} for row in rows]


def phantom(args: argparse.Namespace) -> list[dict]:
    """Three phantoms."""
    studies = phantoms(args.out)
    data = ("--images", studies, "--labels", studies / "labels" / "final")
    return evaluate(args.out / "phantom", *data, *args.more)


def phantoms(out: Path) -> Path:
    """The studies of the phantoms, made if need be."""
    call("sample-data/make.py", "--out", out / "phantoms", "--cases", str(PHANTOMS), "--seed", str(SEED))
    return out / "phantoms" / "studies"


def abdomen(args: argparse.Namespace) -> tuple[str | Path, ...]:
    """The CT of an abdomen, as arguments of `evaluate`."""
    folder = args.data / "ct_abdomen_totalseg"
    names = ("--names", folder / "labels.json")
    return ("--images", folder / "image.nii.gz", "--labels", folder / "label.nii.gz", *names)


def ct(args: argparse.Namespace) -> list[dict]:
    """Every structure of a CT."""
    rows = evaluate(args.out / "ct", *abdomen(args), "--min-ml", str(MIN_ML), *args.more)
    return named(rows, lambda _: "CT")


def sarcomas(args: argparse.Namespace) -> tuple[str | Path, ...]:
    """The sarcomas in CT, MR and PET, as arguments of `evaluate`."""
    folder = args.out / "linked" / "sarcomas"
    for case in SARCOMAS:
        for kind, shown in SCANS.items():
            files = (args.data / case / f"{kind}_{part}.nii.gz" for part in ("image", "label"))
            link(folder, f"{case} {shown}", *files)
    return ("--images", folder / "images", "--labels", folder / "labels")


def others(args: argparse.Namespace) -> list[dict]:
    """Sarcomas, and what there is in MR."""
    rows = [row | {"name": "sarcoma"} for row in evaluate(args.out / "sarcomas", *sarcomas(args), *args.more)]
    for shown, (folder, image) in SINGLE.items():
        place, source = args.out / "linked" / folder, args.data / folder
        link(place, shown, source / f"{image}.nii.gz", source / "label.nii.gz")
        data = ("--images", place / "images", "--labels", place / "labels", "--names", source / "labels.json")
        rows += evaluate(args.out / folder, *data, *args.more)
    found = evaluate(args.out / HIPPOCAMPI, "--data", args.data / HIPPOCAMPI, *args.more)
    return rows + named(found, lambda case: f"{case.removesuffix('_image')} MR")


def slices(args: argparse.Namespace) -> list[dict]:
    """The model for images, a box in every slice of phantoms, CT and sarcomas."""
    studies, box = phantoms(args.out), ("--protocol", "box2d")
    data = ("--images", studies, "--labels", studies / "labels" / "final")
    more = ("--model", "repmedsam", *args.more)
    rows = evaluate(args.out / "slices_phantom", *data, *more, protocol=box)
    found = evaluate(args.out / "slices_ct", *abdomen(args), "--min-ml", str(MIN_ML_SLICES), *more, protocol=box)
    rows += named(found, lambda _: "CT")
    found = evaluate(args.out / "slices_sarcomas", *sarcomas(args), *more, protocol=box)
    return rows + [row | {"name": "sarcoma"} for row in found]


SETS = {"phantom": phantom, "ct": ct, "others": others, "slices": slices}


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line for each structure, and their mean; a dash where nothing was measured."""
    clicked = any(row["clicks"] for row in rows)
    shown = [f"{n} click{'s' * (n > 1)}" for n in SHOWN] if clicked else []
    columns = ["scan", "structure", "ml", *shown, "box"]

    def scores(row: dict) -> list[float]:
        box = [row["box"]["dice"] if row["box"] else float("nan")]
        found = dict(zip(row["clicks"], row["dice"]))
        return [found.get(n, float("nan")) for n in SHOWN] + box if clicked else box

    lines = [[row["case"], row["name"].replace("_", " "), f"{row['volume_ml']:.1f}", *scores(row)] for row in rows]
    means = [mean(column) for column in zip(*map(scores, rows))] or [float("nan")]
    lines.append([f"**mean of {len(rows)}**", "", "", *means])
    cells = [[c if isinstance(c, str) else "-" if isnan(c) else f"{c:.2f}" for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])


def mean(values: Iterable[float]) -> float:
    """The mean of those that are numbers, NaN where none is."""
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else float("nan")


def put(document: Path, name: str, text: str) -> None:
    """Replaces the table of that name in a document.

    Raises:
        ValueError: the document has no place for it.
    """
    begin, end = f"<!-- table {name} -->\n", "\n<!-- end of table -->"
    before = document.read_text(encoding="utf-8")
    after, found = re.subn(f"({re.escape(begin)}).*?({end})", lambda m: m[1] + text + m[2], before, flags=re.DOTALL)
    if not found:
        raise ValueError(f"{document} has no place for the table {name!r}: {begin.strip()} ... {end.strip()}")
    document.write_text(after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the tables of docs/models.md")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for phantoms and reports")
    parser.add_argument("--only", default=",".join(SETS), help="tables, separated by commas (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put them into docs/models.md")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    args.data, args.out, args.more = args.data.resolve(), args.out.resolve(), ("--workers", str(args.workers))
    wanted = args.only.split(",")
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        parser.error(f"tables are {', '.join(SETS)}, got {', '.join(unknown)}")
    for name in wanted:
        rows = SETS[name](args)
        made = table(rows)
        print(f"{name}\n\n{made}\n", flush=True)
        if args.write and rows:
            put(DOCUMENT, name, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
