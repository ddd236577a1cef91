"""The checks of `doctor`: what works on this machine, and how to mend what does not.

Every check is a function that returns one or more `Check` values and never raises for a broken environment: packages are
imported inside the checks, so that the command still runs where one of them is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "fail"
APP_DIR = Path(__file__).resolve().parent.parent
PYTHON_RANGE = ((3, 10), (3, 13))  # from, below
SETUP = "make setup (by hand: the two pip lines at the top of requirements.txt)"
STOCK_LAUNCHER_MARK = "MONAILABEL_PYEXE"  # a variable that only the launcher in monailabel's wheel reads
LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at, such as "pydicom" or "port".
        status: "ok", "warn" (works, with a limit) or "fail" (does not work).
        detail: what was found.
        remedy: what to do about it; "" only for "ok".
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Pin:
    """A package whose version matters: `low` <= version < `below` ("" = no bound), and what goes wrong outside."""

    package: str
    module: str
    low: str = ""
    below: str = ""
    why: str = ""
    status: str = FAIL


PINS = (
    Pin("torch", "torch", "2.10", "", "older releases have published security holes in torch.load"),
    Pin("monai", "monai", "1.5.2", "1.6", "1.6 breaks monailabel 0.8.5, older ones unpack archives unsafely"),
    Pin("monailabel", "monailabel", "0.8.5", "0.9", "the app is written for 0.8.5"),
    Pin("numpy", "numpy", "1.26", "2", "numpy 2 was not tested with this monailabel", WARN),
    Pin("pydicom", "pydicom", "2.4", "3", "pydicom-seg cannot be imported beside pydicom 3: the server does not start"),
    Pin("pynetdicom", "pynetdicom", "2.1", "3", "pynetdicom 3 needs pydicom 3"),
    Pin("pytorch-ignite", "ignite", "0.4.11", "0.6", "training was tested with these", WARN),
    Pin("pydicom-seg", "pydicom_seg"),
    Pin("itk-core", "itk"),
    Pin("SimpleITK", "SimpleITK"),
    Pin("nibabel", "nibabel"),
    Pin("pynrrd", "nrrd"),
    Pin("scipy", "scipy"),
    Pin("scikit-image", "skimage"),
    Pin("safetensors", "safetensors"),
    Pin("isal", "isal", why="without it .nii.gz files are read and written several times as slowly", status=WARN),
)


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def check_python() -> Check:
    """Python's version against the range that the pinned packages support."""
    found = f"{platform.python_version()} ({sys.executable})"
    low, below = PYTHON_RANGE
    if low <= sys.version_info[:2] < below:
        return Check("python", OK, found)
    return Check("python", FAIL, f"{found}; 3.10, 3.11 or 3.12 is needed", "make setup PYTHON=/path/to/python3.11")


def check_package(pin: Pin) -> Check:
    """One package: is it there, is its version in range, can it be imported."""
    try:
        version = importlib.metadata.version(pin.package)
    except importlib.metadata.PackageNotFoundError:
        return Check(pin.package, pin.status, "not installed" + (f": {pin.why}" if pin.why else ""), SETUP)
    low, below = version_tuple(pin.low), version_tuple(pin.below)
    if version_tuple(version) < low or (below and version_tuple(version) >= below):
        wanted = f">= {pin.low}" + (f" and < {pin.below}" if pin.below else "")
        return Check(pin.package, pin.status, f"{version}, wanted {wanted}: {pin.why}", SETUP)
    try:
        importlib.import_module(pin.module)
    except Exception as error:  # a broken package may raise anything at all; the finding names it
        return Check(pin.package, pin.status, f"{version} cannot be imported: {type(error).__name__}: {error}", SETUP)
    return Check(pin.package, OK, version)


def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def check_cpu() -> Check:
    """The processor's vector units and the number of threads that torch uses."""
    import torch

    flags = cpu_flags()
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if unit in flags]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    threads = torch.get_num_threads()
    detail = f"{usable} usable cores, torch uses {threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    detail += f", {' '.join(units)}" if units else ""
    if threads > usable:
        return Check("cpu", WARN, detail, f"more threads than cores is slow: --conf threads {usable}")
    if "fpu" in flags and "avx2" not in flags:
        return Check("cpu", WARN, f"{detail}: no AVX2", "expect several seconds a click; any PC since 2015 has AVX2")
    return Check("cpu", OK, detail)


def check_device() -> Check:
    """CUDA where torch can use it, shown by a small computation; otherwise the CPU."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        try:
            torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).cpu()
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            return Check(
                "device", FAIL, f"{name} cannot compute: {first}", "update its driver, or use --conf device cpu"
            )
        return Check("device", OK, f"cuda: {name}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi"):
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no usable driver"
        return Check("device", WARN, f"cpu, although nvidia-smi is there: {why}", "make setup TORCH=cuda; nvidia-smi")
    return Check("device", OK, "cpu")


def check_attention() -> Check:
    """The attention kernels: torch's own everywhere; flash-attn, where it is installed, for half-precision CUDA runs."""
    import torch

    query = torch.ones(1, 1, 4, 8)
    if not torch.allclose(torch.nn.functional.scaled_dot_product_attention(query, query, query), query):
        return Check("attention", FAIL, "scaled_dot_product_attention gives wrong values", SETUP)
    detail = f"scaled_dot_product_attention of torch {torch.__version__}"
    if importlib.util.find_spec("flash_attn") is None:
        return Check("attention", OK, f"{detail}; flash-attn (optional) is not installed")
    try:
        version = importlib.import_module("flash_attn").__version__
    except Exception as error:  # a compiled extension built for another torch may raise anything
        what = f"{detail}; flash-attn cannot be imported: {error}"
        return Check("attention", WARN, what, "build it again for this torch, or: pip uninstall flash-attn")
    return Check("attention", OK, f"{detail}; flash-attn {version} (found; used for half-precision CUDA runs only)")


def check_weights(model_dir: Path) -> Iterable[Check]:
    """The weights that each model would load at start, verified; only the default model's must be there."""
    from .conf import DEFAULT_MODEL, WEIGHTS_MODELS
    from .sam import weights

    for model in WEIGHTS_MODELS:
        name = f"weights of {model}"
        try:
            found = weights.resolve(model, model_dir)
        except (weights.WeightsError, OSError) as error:
            status = FAIL if model == DEFAULT_MODEL else WARN
            yield Check(
                name,
                status,
                str(error),
                f"python {os.path.relpath(APP_DIR)} weights list, then weights fetch or import",
            )
        else:
            yield Check(name, OK, f"{found.name} {found.version} ({found.origin})")


def check_monailabel_command() -> Check:
    """The `monailabel` command of this environment, and whether it starts this environment's Python."""
    here = Path(sys.executable).parent
    command = shutil.which("monailabel", path=str(here)) or shutil.which("monailabel")
    if not command:
        remedy = f"{SETUP}; until then: python -m monailabel.main start_server"
        return Check("monailabel command", FAIL, "not found (some installers leave it out)", remedy)
    if STOCK_LAUNCHER_MARK in Path(command).read_text(encoding="utf-8", errors="replace"):
        python = shutil.which("python")
        if not python or Path(python).parent != here:
            what = f"{command} runs the first `python` on PATH, which is {python or 'missing'}"
            return Check("monailabel command", WARN, what, f"activate the environment: . {here}/activate; or {SETUP}")
    return Check("monailabel command", OK, command)


def check_dicom_tools() -> Check:
    """The program with which MONAI Label writes DICOM SEG; it would download it when it starts on a DICOMweb store."""
    tool = "itkimage2segimage"
    for place in (None, str(Path(sys.executable).parent), str(APP_DIR / "bin")):
        found = shutil.which(tool, path=place)
        if found:
            return Check("dicom tools", OK, found)
    remedy = f"{SETUP}; it is in the package dcmqi"
    return Check("dicom tools", WARN, f"{tool} is not on PATH: a DICOMweb store makes the server download it", remedy)


def check_folder(name: str, folder: Path) -> Check:
    """A folder (or the nearest one above it that exists) takes new files and has room."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        return Check(
            name, FAIL, f"{folder} cannot be written: {error.strerror}", f"chown or chmod {place}, or take another"
        )
    free = shutil.disk_usage(place).free
    detail = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < LOW_DISK_BYTES:
        return Check(name, WARN, detail, "make room: volumes, labels and checkpoints are written there")
    return Check(name, OK, detail)


def check_studies(studies: str) -> Check:
    """The folder or the DICOMweb address that the server is to be started with."""
    if not studies.startswith(("http://", "https://")):
        return check_folder("studies", Path(studies).absolute())
    address = f"{studies.rstrip('/')}/studies?limit=1"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return Check("studies", OK, f"{studies} answers ({answer.status})")
    except (urllib.error.URLError, OSError, ValueError) as error:
        remedy = f"is the store running? try: curl '{address}' (an Orthanc needs its DICOMweb plugin)"
        return Check("studies", FAIL, f"{studies} does not answer: {error}", remedy)


def check_port(port: int, host: str = "127.0.0.1") -> Check:
    """The port that the server would listen on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            remedy = f"stop what uses it, or start the server with --port {8001 if port == 8000 else 8000}"
            return Check("port", WARN, f"{host}:{port} cannot be used: {error}", remedy)
    return Check("port", OK, f"{host}:{port} is free")
