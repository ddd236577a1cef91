"""The weights that have a name: published files, those that ship with the app, and those imported here.

The published rows are the table below. Shipped and imported rows are data beside the files: `registry.json` in the
folder of weights, and in its `imported` folder. Such a file is

    {"defaults": {model: name}, "weights": [{"name", "model", "files", "sha256", "bytes", "licence", "spec", ...}]}

with the fields of `WeightEntry`; a row replaces a published one of the same name. Publishing other weights with the
app means writing their files and this one (see weights_files.export_run).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .checkpoint_files import WeightsError
from .zoo import ALL_SPECS

REGISTRY_FILE = "registry.json"
IMPORTED = "imported"
UNPINNED = "unpinned"
_PREFIXES = ("sam_med3d", "repmedsam", "litemedsam")  # rows of the zoo that begin so are of that model
_HEX = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class WeightEntry:
    """One row.

    Attributes:
        name: what --conf weights, `weights fetch` and answers call it.
        model: the model that these weights are for, see `model_of`.
        files: names in the row's folder: one file, or encoder and decoder.
        sha256: hex digest of each file, or "unpinned".
        url: where the (single) file is published, or None.
        bytes: size of each file, or () if it is not known.
        licence: of the weights.
        spec: row of zoo.py.
        decoder: for an encoder alone: the row whose prompt encoder and mask decoder complete it.
        note: one line for people.
    """

    name: str
    model: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    licence: str
    spec: str
    url: str | None = None
    bytes: tuple[int, ...] = ()
    decoder: str | None = None
    note: str = ""

    @property
    def pinned(self) -> bool:
        """Whether every file's digest is known."""
        return UNPINNED not in self.sha256


_FASTSAM3D_HUB = "https://huggingface.co/techlove/FastSAM3D"
_FASTSAM3D_PAGE = "https://github.com/arcadelab/FastSAM3D"
_SAM_MED3D_HUB = "https://huggingface.co/blueyo0/SAM-Med3D"
_LITEMEDSAM_PAGE = "https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM"
_REPVIT_PAGE = "https://github.com/THU-MIG/RepViT"
_NO_HASH = "unpinned: no published hash could be checked"
_BY_HAND = f"{_NO_HASH}; no stable address is known: get it by way of {_FASTSAM3D_PAGE}, then weights import"

SHIPPED = "fastsam3d-compact-v4"
_ROWS = (
    WeightEntry(
        SHIPPED,
        "fastsam3d",
        ("fastsam3d_compact_encoder.safetensors", "fastsam3d_compact_decoder.safetensors"),
        (UNPINNED, UNPINNED),
        "Apache-2.0",
        "fastsam3d_compact",
        note="ships with the app; its hashes are in model/registry.json",
    ),
    WeightEntry(
        "fastsam3d_published",
        "fastsam3d",
        ("FastSAM3D.pth",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_FASTSAM3D_HUB}",
        "fastsam3d_published_h6",
        url=f"{_FASTSAM3D_HUB}/resolve/main/FastSAM3D.pth",
        note=f"whole network, about 638 MB with optimizer state; {_NO_HASH}",
    ),
    WeightEntry(
        "fastsam3d_published_encoder_h6",
        "fastsam3d",
        ("6layer6head2skip_logits.pth",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_FASTSAM3D_PAGE}",
        "fastsam3d_published_h6",
        decoder="sam_med3d_turbo",
        note=f"encoder alone, 6 heads; {_BY_HAND}",
    ),
    WeightEntry(
        "fastsam3d_published_encoder_h12",
        "fastsam3d",
        ("fastsam3d.pth",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_FASTSAM3D_PAGE}",
        "fastsam3d_published_h12",
        decoder="sam_med3d_turbo",
        note=f"encoder alone, 12 heads (CVPR 2025), made for the decoder of sam_med3d.pth; {_BY_HAND}",
    ),
    WeightEntry(
        "sam_med3d_turbo",
        "sam_med3d",
        ("sam_med3d_turbo.pth",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_SAM_MED3D_HUB}",
        "sam_med3d",
        url=f"{_SAM_MED3D_HUB}/resolve/main/sam_med3d_turbo.pth",
        note=f"the teacher; {_NO_HASH}",
    ),
    WeightEntry(
        "litemedsam_published",
        "litemedsam",
        ("lite_medsam.pth",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_LITEMEDSAM_PAGE}",
        "litemedsam",
        note=f"baseline and teacher of RepMedSAM; {_NO_HASH}; get it by hand from {_LITEMEDSAM_PAGE}, then weights import",
    ),
    WeightEntry(
        "repvit_sam_published",
        "repmedsam",
        ("repvit_sam.pt",),
        (UNPINNED,),
        f"code Apache-2.0; for the weights' terms see {_REPVIT_PAGE}",
        "repmedsam",
        note="RepViT-SAM, for photographs at 1024 pixels: a start for training rather than a medical model; "
        f"{_NO_HASH}; get it by hand from {_REPVIT_PAGE}, then weights import",
    ),
)

REGISTRY: dict[str, WeightEntry] = {row.name: row for row in _ROWS}


def entries(model_dir: Path) -> dict[str, WeightEntry]:
    """All rows that can be named in this folder of weights: published, shipped, imported (files in `imported/`).

    Raises:
        WeightsError: a registry.json breaks its format.
    """
    return sources(model_dir) | {row.name: row for row in imported(model_dir)}


def sources(model_dir: Path) -> dict[str, WeightEntry]:
    """Published and shipped rows, without what was made of them by an import.

    Raises:
        WeightsError: registry.json breaks its format.
    """
    return REGISTRY | {row.name: row for row in read_registry(model_dir)[0]}


def imported(model_dir: Path) -> list[WeightEntry]:
    """Rows of the imported weights, oldest import first.

    Raises:
        WeightsError: their registry.json breaks its format.
    """
    return read_registry(Path(model_dir) / IMPORTED)[0]


def folder_of(entry: WeightEntry, model_dir: Path) -> Path:
    """Where the row's files lie."""
    model_dir = Path(model_dir)
    return model_dir / IMPORTED if entry in imported(model_dir) else model_dir


def read_registry(folder: Path) -> tuple[list[WeightEntry], dict[str, str]]:
    """Rows and defaults of a folder's registry.json; empty if there is none.

    Raises:
        WeightsError: it breaks its format.
    """
    path = Path(folder) / REGISTRY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("weights"), list):
        raise WeightsError(f'{path} must hold an object with a list "weights"')
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise WeightsError(f'"defaults" in {path} must map models to names, got {defaults!r}')
    return [_row(raw, path) for raw in content["weights"]], {str(k): str(v) for k, v in defaults.items()}


def record(folder: Path, entry: WeightEntry, default: bool = False) -> None:
    """Writes or replaces a row of the folder's registry.json, as its newest; rows of files it replaces go; atomic.

    Args:
        default: make it the model's default in this folder.

    Raises:
        WeightsError: the present file breaks its format.
        OSError: it cannot be written.
    """
    rows, defaults = read_registry(folder)
    rows = [row for row in rows if row.name != entry.name and not set(row.files) & set(entry.files)] + [entry]
    if default:
        defaults[entry.model] = entry.name
    text = json.dumps({"defaults": defaults, "weights": [asdict(row) for row in rows]}, indent=2) + "\n"
    path = Path(folder) / REGISTRY_FILE
    temporary = path.with_name(f".{REGISTRY_FILE}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def plain_name(text: Any, what: str) -> str:
    """Checks a name that becomes a file's.

    Raises:
        WeightsError: it is not 1 to 100 letters, digits, dots, dashes and underscores.
    """
    if not isinstance(text, str) or not _PLAIN_NAME.fullmatch(text):
        raise WeightsError(f"{what} must be 1 to 100 letters, digits, dots, dashes and underscores, got {text!r:.120}")
    return text


def _row(raw: Any, path: Path) -> WeightEntry:
    known = {field.name for field in fields(WeightEntry)}
    required = {"name", "model", "files", "sha256", "licence", "spec"}
    if not isinstance(raw, Mapping) or not required <= set(raw) <= known:
        raise WeightsError(f"a row of {path} needs {', '.join(sorted(required))} and knows {', '.join(sorted(known))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    entry = WeightEntry(**values)
    plain_name(entry.name, f"a name in {path}")
    good = isinstance(entry.files, tuple) and isinstance(entry.sha256, tuple) and isinstance(entry.bytes, tuple)
    if not good or len(entry.files) not in (1, 2) or len(entry.files) != len(entry.sha256):
        raise WeightsError(f"{entry.name} in {path} must list one or two files and a sha256 for each")
    for file in entry.files:
        plain_name(file, f"a file of {entry.name} in {path}")
    if entry.spec not in ALL_SPECS:
        raise WeightsError(f"{entry.name} in {path} names the spec {entry.spec!r}; known are {', '.join(ALL_SPECS)}")
    if entry.model != model_of(entry.spec):
        raise WeightsError(f"{entry.name} in {path} is of {entry.spec}, so its model must be {model_of(entry.spec)}")
    if entry.url is not None and not isinstance(entry.url, str):
        raise WeightsError(f"the url of {entry.name} in {path} must be a text or null")
    if not all(isinstance(text, str) and (text == UNPINNED or _HEX.fullmatch(text)) for text in entry.sha256):
        raise WeightsError(f'each sha256 of {entry.name} in {path} must be 64 hex digits or "{UNPINNED}"')
    return entry


def model_of(spec_name: str) -> str:
    """The model that serves weights of that spec."""
    return next((model for model in _PREFIXES if spec_name.startswith(model)), "fastsam3d")
