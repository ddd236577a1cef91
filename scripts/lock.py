"""Rewrite the lower, resolved half of requirements.txt and requirements-dev.txt from their upper halves.

    python scripts/lock.py          # needs `uv` on PATH (pip install uv) and the network

The upper half of each file is kept by hand: what the app asks for itself, and why. Everything that those packages
need in turn is written below the marker line, for every supported Python and platform at once. What is in LEFT_OUT
is a declared dependency of a direct requirement that the app never imports; it is why the files are installed with
`pip install --no-deps`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = "# --- resolved by scripts/lock.py: do not edit below this line ---"
OLDEST_PYTHON = "3.10"

LEFT_OUT = {
    "sam2": "another model's code, which pulls hydra, iopath and a CUDA build of torch",
    "mlflow": "tracking server; with it come pandas, pyarrow, flask, matplotlib. The app switches tracking off",
    "itk": "the full toolkit (1.5 GB); itk-core and itk-io hold all that is imported",
    "torchvision": "never imported at start; the package index has it for CUDA only, which breaks beside a CPU torch",
    "openslide-python": "whole-slide pathology",
    "openslide-bin": "whole-slide pathology",
    "numpymaxflow": "scribbles tasks, which the app does not offer",
    "scikit-learn": "declared, not imported",
    "lmdb": "MONAI's LMDB data sets",
    "gdown": "downloads from a file-sharing service",
    "fire": "MONAI's bundle command line",
    "ninja": "compiles C++ extensions at run time",
    "triton": "comes with a CUDA build of torch, which is installed with its own dependencies",
}


def upper_half(path: Path) -> str:
    """Return the hand-kept part of a requirements file, up to the marker line."""
    text = path.read_text(encoding="utf-8")
    return text.split(MARKER)[0].rstrip() + "\n"


def pinned_names(text: str) -> set[str]:
    """Return the normalised names of the packages pinned in a requirements text."""
    found = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def resolve(asked: str, constraints: str = "") -> list[str]:
    """Resolve the requirements text with uv and return the pin lines, markers included."""
    with tempfile.TemporaryDirectory() as folder:
        source, override, limit = (Path(folder, name) for name in ("asked.txt", "left-out.txt", "limits.txt"))
        source.write_text(asked, encoding="utf-8")
        override.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in LEFT_OUT), encoding="utf-8")
        limit.write_text(constraints, encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON]
        command += [
            "--no-header",
            "--no-annotate",
            "--override",
            str(override),
            "--constraint",
            str(limit),
            str(source),
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line and "sys_platform == 'never'" not in line]
    return [line for line in lines if not line.startswith(("nvidia-", "cuda-"))]


def rewrite(path: Path, base: Path | None = None) -> None:
    """Rewrite the resolved half of one file; packages pinned in its upper half or in `base` are not repeated."""
    head = upper_half(path)
    constraints = base.read_text(encoding="utf-8") if base else ""
    known = pinned_names(head) | pinned_names(constraints)
    pins = [line for line in resolve(head, constraints) if not pinned_names(line) & known]
    path.write_text(head + "\n" + MARKER + "\n" + "\n".join(pins) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path.name}: {len(pins)} resolved pins\n")


if __name__ == "__main__":
    rewrite(ROOT / "requirements.txt")
    rewrite(ROOT / "requirements-dev.txt", base=ROOT / "requirements.txt")
