"""Make the sample studies: `python sample-data/make.py --out sample-data/out --cases 4 --seed 0 --dicom`.

    out/studies/case1.nii.gz                  int16 HU
    out/studies/labels/final/case1.nii.gz     uint8, values as in out/labels.json
    out/labels.json                           value -> name
    out/dicom/case1/0001.dcm ...              with --dicom: the same scan as a CT series
    out/dicom/case1.nii.gz, case1.json        its labels in the voxel order of the loaded series; its UIDs

A second run with the same arguments changes nothing. Cases that an earlier run made and this one was not asked for are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
from dicom_series import to_patient_order, write_series
from phantom import LABELS, PhantomSpec, fingerprint, make_phantom

# How the cases of a run differ in lattice; a fifth case is like the first, with another patient.
LATTICES = (
    {"shape": (240, 200, 120), "spacing": (1.5, 1.5, 2.0), "orientation": "RAS"},
    {"shape": (224, 188, 96), "spacing": (1.6, 1.6, 2.5), "orientation": "LPS"},
    {"shape": (200, 176, 136), "spacing": (1.8, 1.8, 1.8), "orientation": "LPS", "tilt": (7.0, -5.0, 9.0)},
    {"shape": (256, 212, 80), "spacing": (1.4, 1.4, 3.0), "orientation": "RAS"},
)
RECORD = ".made.json"  # what this script made in the folder, with fingerprints


def plan(cases, seed, shape=None, spacing=None):
    """Specs of a run: {case name: PhantomSpec}. `shape` and `spacing` replace those of LATTICES."""
    specs = {}
    for number in range(1, cases + 1):
        lattice = dict(LATTICES[(number - 1) % len(LATTICES)])
        lattice.update({k: v for k, v in (("shape", shape), ("spacing", spacing)) if v})
        specs[f"case{number}"] = PhantomSpec(seed=seed, patient=number, **lattice)
    return specs


def make_case(out, case, spec, nifti=True, dicom=False):
    """Generate and write one case under the folder `out`; returns seconds taken."""
    start = time.perf_counter()
    phantom = make_phantom(spec)
    if nifti:
        write_nifti(out / "studies" / f"{case}.nii.gz", phantom.image, phantom.affine)
        write_nifti(out / "studies" / "labels" / "final" / f"{case}.nii.gz", phantom.labels, phantom.affine)
    if dicom:
        _write_dicom(out / "dicom", case, phantom)
    return time.perf_counter() - start


def write_nifti(path, array, affine):
    """Write atomically: (I, J, K) array, (4, 4) affine ijk -> RAS mm, in both of NIfTI's forms."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    _replace(path, lambda part: nib.save(image, part), ".nii.gz")


def write_json(path, content):
    """Write atomically."""
    _replace(path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n"), ".json")


def _replace(path, write, suffix):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_dicom(folder, case, phantom):
    part = folder / f".{case}.{os.getpid()}"
    part.mkdir(parents=True)
    try:
        uids = write_series(part, phantom.image, phantom.affine, case, fingerprint(phantom.spec))
        shutil.rmtree(folder / case, ignore_errors=True)
        os.replace(part, folder / case)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    labels, affine = to_patient_order(phantom.labels, phantom.affine)
    write_nifti(folder / f"{case}.nii.gz", labels, affine)
    content = {f"{name}_uid": uid for name, uid in uids.items()}
    content |= {
        "series": case,
        "labels": f"{case}.nii.gz",
        "label_names": names(),
        "shape_ijk": list(labels.shape),
        "affine_ras_mm": affine.tolist(),
    }
    write_json(folder / f"{case}.json", content)


def names():
    """Label names by value, as JSON wants them: {"1": "liver", ...}."""
    return {str(value): name for name, value in LABELS.items()}


def _products(case, spec, dicom):
    """What a case consists of: {product: (fingerprint, files relative to the folder)}."""
    made = {case: (fingerprint(spec), [f"studies/{case}.nii.gz", f"studies/labels/final/{case}.nii.gz"])}
    if dicom:
        made[f"{case} dicom"] = (
            fingerprint(spec, ["dicom"]),
            [f"dicom/{case}", f"dicom/{case}.nii.gz", f"dicom/{case}.json"],
        )
    return made


def make(out, specs, dicom_cases=0, jobs=1, say=print):
    """Bring the folder `out` up to date.

    Args:
        out: Path. specs: {case: PhantomSpec}. dicom_cases: for how many of the cases, from the first, to write a DICOM series.
        jobs: processes. say: takes one line of progress.

    Returns:
        list of the cases that had to be generated.
    """
    record_path = out / RECORD
    record = json.loads(record_path.read_text()) if record_path.exists() else {}
    wanted, stale = {}, {}
    for number, (case, spec) in enumerate(specs.items()):
        wanted |= _products(case, spec, dicom=number < dicom_cases)
        valid_dicom = _products(case, spec, dicom=True)[f"{case} dicom"]
        if record.get(f"{case} dicom", [None])[0] == valid_dicom[0]:
            wanted[f"{case} dicom"] = valid_dicom  # not asked for this time, but true: keep it
    for product in sorted(set(record) - set(wanted)):
        for name in record.pop(product)[1]:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for product, (mark, files) in wanted.items():
        if record.get(product, [None])[0] != mark or not all((out / f).exists() for f in files):
            stale.setdefault(product.split()[0], []).append(product)
    write_json(out / "labels.json", names())
    write_json(record_path, record)
    with ProcessPoolExecutor(max(1, min(jobs, len(stale)))) as pool:
        running = {
            case: pool.submit(
                make_case, out, case, specs[case], nifti=case in products, dicom=f"{case} dicom" in products
            )
            for case, products in stale.items()
        }
        for case, future in running.items():
            say(f"{case}: {', '.join(stale[case])} made in {future.result():.1f} s")
            record |= {product: wanted[product] for product in stale[case]}
            write_json(record_path, record)
    if not stale:
        say(f"{out}: up to date ({len(specs)} cases)")
    return list(stale)


def _numbers(kind):
    def parse(text):
        try:
            values = tuple(kind(v) for v in text.split(","))
        except ValueError:
            values = ()
        if len(values) != 3:
            raise argparse.ArgumentTypeError(
                f"three numbers with commas between are needed, got {text!r}; for example 1.5,1.5,2"
            )
        return values

    return parse


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Generated data for demonstration and tests."
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "out", help="folder (default: sample-data/out)"
    )
    parser.add_argument("--cases", type=int, default=4, help="number of patients (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients (default 0)")
    parser.add_argument("--shape", type=_numbers(int), help="voxels I,J,K of every case (default: by case)")
    parser.add_argument("--spacing", type=_numbers(float), help="mm along I,J,K of every case (default: by case)")
    parser.add_argument(
        "--dicom",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="also write the first N cases as DICOM (alone: 1)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="processes, about 0.8 GB each (default: CPUs, at most 4)",
    )
    args = parser.parse_args(argv)
    if args.cases < 1 or args.seed < 0 or args.dicom < 0:
        parser.error(
            f"--cases must be at least 1, --seed and --dicom at least 0; got {args.cases}, {args.seed}, {args.dicom}"
        )
    try:
        specs = plan(args.cases, args.seed, args.shape, args.spacing)
    except ValueError as error:
        parser.error(str(error))
    make(args.out, specs, args.dicom, args.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
