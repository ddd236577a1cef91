"""Make or repair the project's virtual environment from requirements.txt; `make setup` runs this.

    python3 scripts/setup_env.py [--venv .venv] [--torch cpu|cuda] [--torch-index ADDRESS] [--dev]

Runs with any Python 3 and needs nothing installed. What it does, each step only where it is needed:

1. a virtual environment with a Python from 3.10 to 3.12; one that exists is kept and repaired;
2. torch, the CPU build unless asked otherwise (a build that is there already is kept);
3. `pip install --no-deps -r requirements.txt` (and requirements-dev.txt with --dev);
4. a `monailabel` command that starts this environment's Python whichever `python` comes first on PATH;
5. an import of everything that the server needs, in a process that sees no other package folder.

A stamp keyed to the requirement files makes the next run a matter of a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 11), (3, 12))
UV = "uv==0.13.9"  # knows where PyTorch keeps its CPU builds, so that no address need stand in this repository
STAMP = "fastsam3d-setup.json"

LAUNCHER = """#!/bin/sh
# Written by scripts/setup_env.py in place of the launcher in monailabel's wheel, which runs whatever `python` comes
# first on PATH and splits arguments at spaces. The folder on PATH holds itkimage2segimage, which the server looks up.
bin={bin}
PATH="$bin:$PATH"
export PATH
exec "$bin/python" -m monailabel.main "$@"
"""

# Asks the environment itself: its version, the installed packages that are not as pinned, the build of torch.
INSPECT = """
import importlib.metadata as md, json, sys
pins = json.loads(sys.stdin.read())
def version(name):
    try:
        return md.version(name)
    except md.PackageNotFoundError:
        return None
wrong = {name: version(name) for name, pin in pins.items() if (version(name) or "").split("+")[0] != pin}
print(json.dumps({"wrong": wrong, "torch": version("torch")}))
"""

VERIFY = """
import importlib, shutil, sys
for name in ("torch", "monai", "monailabel.main", "monailabel.interfaces.app", "monailabel.tasks.train.basic_train",
             "monailabel.transform.writer", "itk", "pydicom_seg", "SimpleITK", "nibabel", "nrrd", "skimage.measure",
             "scipy.ndimage", "safetensors.torch", "isal.igzip", "torch.utils.tensorboard"):
    importlib.import_module(name)
import torch
if not torch.equal(torch.ones(2, 2) @ torch.ones(2, 2), torch.full((2, 2), 2.0)):
    sys.exit("torch multiplies wrongly")
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA build: {torch.version.cuda or 'no'}")
"""


class SetupError(RuntimeError):
    """A step failed; the message says what to do."""


def say(text: str) -> None:
    """Write one progress line to standard output."""
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


def run(*command: str, quiet: bool = False) -> subprocess.CompletedProcess:
    """Run a command without standard input; with `quiet`, capture what it prints."""
    pipe = subprocess.PIPE if quiet else None
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, check=False)


def python_version(python: str) -> tuple[int, int] | None:
    """Return (major, minor) of an interpreter that starts, else None."""
    try:
        done = run(python, "-c", "import sys; print(sys.version_info[0], sys.version_info[1])", quiet=True)
        major, minor = done.stdout.split()
    except (OSError, ValueError):
        return None
    return int(major), int(minor)


def find_python() -> str:
    """Return an interpreter that this project supports: the running one, else one found on PATH."""
    names = [sys.executable, *(f"python{major}.{minor}" for major, minor in reversed(PYTHONS)), "python3", "python"]
    for name in names:
        if name and python_version(name) in PYTHONS:
            return name
    raise SetupError(
        f"Python 3.10, 3.11 or 3.12 is needed; this is {sys.version.split()[0]} and none of them is on PATH. "
        "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make setup PYTHON=/path/to/it"
    )


def ensure_venv(folder: Path) -> Path:
    """Make the virtual environment, or repair the one that is there, and return its python.

    Raises:
        SetupError: the environment has an unsupported Python, or cannot be made.
    """
    python = folder / "bin" / "python"
    version = python_version(str(python))
    if version and version not in PYTHONS:
        raise SetupError(
            f"{folder} holds Python {version[0]}.{version[1]}; 3.10, 3.11 or 3.12 is needed. Move it away and run again"
        )
    if not version:
        base = find_python()
        say(f"making {folder} with {base}")
        if run(base, "-m", "venv", *(["--clear"] if folder.exists() else []), str(folder)).returncode:
            raise SetupError(
                f"`{base} -m venv {folder}` failed: see above (Debian, Ubuntu: apt-get install python3-venv)"
            )
    if run(str(python), "-m", "pip", "--version", quiet=True).returncode:
        if run(str(python), "-m", "ensurepip", "--upgrade").returncode:
            raise SetupError(f"{folder} has no pip and ensurepip failed. Move it away and run again")
    return python


def read_pins(python: Path, files: list[Path]) -> dict[str, str]:
    """Return name -> version for the pins that apply to this interpreter, in the order of the files."""
    lines = [line.split("#")[0].strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    code = (
        "import json, sys\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "reqs = [Requirement(line) for line in json.load(sys.stdin)]\n"
        "print(json.dumps({r.name: next(iter(r.specifier)).version for r in reqs\n"
        "                  if r.marker is None or r.marker.evaluate()}))"
    )
    return json.loads(ask(python, code, [line for line in lines if line]))


def ask(python: Path, code: str, data: object) -> str:
    """Run a snippet in the environment with JSON on its standard input and return what it prints."""
    done = subprocess.run(
        [str(python), "-I", "-c", code], input=json.dumps(data), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError(f"{python} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def pip(python: Path, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess:
    """Run the environment's own pip."""
    return run(str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, quiet=quiet)


def install_torch(python: Path, version: str, kind: str, index: str) -> None:
    """Install one build of torch. On Linux the package index holds CUDA builds, so the CPU build is looked for first
    in the places that pip is configured with, then in PyTorch's own.

    Args:
        python: the environment's interpreter.
        version: release to install, without local part.
        kind: "cpu" or "cuda".
        index: address of a package index to take it from, or "".

    Raises:
        SetupError: it could not be installed.
    """
    wanted = f"torch=={version}"
    again = ["--force-reinstall"] if installed_torch(python) else []
    if kind == "cuda":
        say(f"installing {wanted}, CUDA build (several GB)")
        extra = ["--extra-index-url", index] if index else []
        constraints = ["-c", str(ROOT / "requirements.txt")]
        done = pip(python, "install", *again, *extra, *constraints, wanted)
    elif index:
        say(f"installing {wanted} from {index}")
        done = pip(python, "install", *again, "--no-deps", "--index-url", index, wanted)
    elif sys.platform != "linux" or pip_offers_cpu(python, wanted):
        say(f"installing {wanted}, CPU build")
        done = pip(python, "install", *again, "--no-deps", wanted)
    else:
        say(f"installing {wanted}, CPU build, from PyTorch's own index")
        done = uv_torch_cpu(python, wanted)
        if done.returncode:
            say("PyTorch's own index could not be read: falling back to the default build, which brings CUDA (several")
            say("GB) and runs on the CPU as well. To avoid that: make setup TORCH_INDEX=<address of a CPU index>")
            done = pip(python, "install", *again, "-c", str(ROOT / "requirements.txt"), wanted)
    if done.returncode:
        raise SetupError(f"torch {version} could not be installed: see above")


def installed_torch(python: Path) -> str | None:
    """Return the version of the installed torch, local part included, or None."""
    return json.loads(ask(python, INSPECT, {}))["torch"]


def pip_offers_cpu(python: Path, wanted: str) -> bool:
    """Tell whether pip, as configured on this machine, would choose a build of torch marked `+cpu`."""
    done = pip(python, "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report", "-", wanted,
               quiet=True)  # fmt: skip
    try:
        chosen = json.loads(done.stdout)["install"][0]["metadata"]["version"]
    except (ValueError, LookupError):
        return False
    return chosen.endswith("+cpu")


def uv_torch_cpu(python: Path, wanted: str) -> subprocess.CompletedProcess:
    """Install the CPU build with uv, which is itself installed into a temporary folder only."""
    with tempfile.TemporaryDirectory() as folder:
        got = pip(python, "install", "--quiet", "--no-deps", "--target", folder, UV)
        if got.returncode:
            return got
        uv = os.path.join(folder, "bin", "uv")
        return run(uv, "pip", "install", "--python", str(python), "--no-deps", "--torch-backend", "cpu", wanted)


def write_launcher(python: Path) -> None:
    """Put a `monailabel` command beside the environment's python (see LAUNCHER)."""
    path = python.parent / "monailabel"
    text = LAUNCHER.format(bin=shlex.quote(str(python.parent)))
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def verify(python: Path) -> str:
    """Import what the server imports and run the `monailabel` command from a bare shell; return a summary line.

    Raises:
        SetupError: something is missing.
    """
    done = run(str(python), "-I", "-c", VERIFY, quiet=True)
    if done.returncode:
        raise SetupError(f"the environment does not import what the server needs:\n{done.stderr.strip()[-3000:]}")
    shell = {"PATH": os.defpath, "HOME": os.environ.get("HOME", "/")}
    command = [str(python.parent / "monailabel"), "start_server", "--help"]
    started = subprocess.run(
        command, env=shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
    )
    if started.returncode or "--studies" not in started.stdout:
        raise SetupError(f"{command[0]} does not start:\n{(started.stderr or started.stdout).strip()[-3000:]}")
    if not shutil.which("itkimage2segimage", path=str(python.parent)):
        raise SetupError(
            "itkimage2segimage is missing although dcmqi is installed: pip install --force-reinstall dcmqi"
        )
    return done.stdout.strip()


def digest(files: list[Path]) -> str:
    """Return a hash of the requirement files and of this script, which decides what the environment holds."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, Path(__file__)])).hexdigest()


def torch_fits(installed: str | None, version: str, kind: str) -> bool:
    """Tell whether the installed torch is the pinned release in the wanted build ("" = any build)."""
    if not installed or installed.split("+")[0] != version:
        return False
    local = installed.partition("+")[2]
    if kind == "cpu" and sys.platform == "linux":
        return local == "cpu"
    return local != "cpu" if kind == "cuda" else True


def main() -> int:
    """Run the steps of the module's docstring."""
    parser = argparse.ArgumentParser(description="make or repair the project's virtual environment")
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="folder of the environment")
    parser.add_argument("--torch", choices=("", "cpu", "cuda"), default="", help="default: what is there, else cpu")
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    parser.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        python = ensure_venv(Path(options.venv).absolute())
        files = [ROOT / "requirements.txt"] + ([ROOT / "requirements-dev.txt"] if options.dev else [])
        digests = [digest(files[:count]) for count in range(len(files), 0, -1)]  # with --dev, also that without it
        pins = read_pins(python, files)
        state = json.loads(ask(python, INSPECT, pins))
        torch_ok = torch_fits(state["torch"], pins["torch"], options.torch)
        stamp = python.parent.parent / STAMP
        stamped = json.loads(stamp.read_text()) if stamp.exists() else {}
        launcher = (python.parent / "monailabel").exists()
        if torch_ok and launcher and not state["wrong"] and digests[0] in stamped.get("verified", []):
            say(f"{options.venv} is up to date")
            return 0
        if not torch_ok:
            install_torch(python, pins["torch"], options.torch or "cpu", options.torch_index)
            if options.torch == "cuda" and not torch_fits(installed_torch(python), pins["torch"], "cuda"):
                raise SetupError("pip chose a CPU build; name the index of the CUDA builds: TORCH_INDEX=<address>")
        missing = set(state["wrong"]) - {"torch"}
        if missing:
            say(f"installing {len(missing)} of {len(pins)} packages")
            requirements = [word for path in files for word in ("-r", str(path))]
            if pip(python, "install", "--quiet", "--no-deps", *requirements).returncode:
                raise SetupError("pip could not install the requirements: see above")
        write_launcher(python)
        say("checking by importing")
        say(verify(python))
        if json.loads(ask(python, INSPECT, pins))["wrong"]:
            raise SetupError(
                "the installed packages still differ from the pins. Move the environment away and run again"
            )
        stamp.write_text(json.dumps({"verified": digests}))
    except SetupError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    say(f"done in {time.monotonic() - began:.0f} s; start with: {python.parent}/monailabel start_server --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
