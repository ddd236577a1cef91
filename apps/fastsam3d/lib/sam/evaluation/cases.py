"""Which scans and label maps lie in the folders that a user names.

Layouts: two folders (or files) with equal file names; a folder of MONAI Label studies (`labels/final/`); nnU-Net's
`imagesTr`, `labelsTr` and `dataset.json`; .npz archives of the CVPR challenges; and files `x_image.*` beside `x_label.*`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..npz_io import holds
from ..photo_io import SUFFIXES as PHOTOS

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", *PHOTOS)
MODALITIES = ("CT", "MR", "PET", "US", "X-ray", "dermoscopy", "endoscopy", "fundus", "microscopy")
"""The modalities of RepMedSAM's table, in its order; others may be named too."""

UNKNOWN = "unknown"
_ALIASES = {"mri": "MR", "ultrasound": "US", "xray": "X-ray", "x_ray": "X-ray", "cxr": "X-ray", "pt": "PET"}
_NAMES_FILE = "labels.json"


@dataclass(frozen=True)
class Case:
    """A scan with its label map.

    Attributes:
        name: unique among the cases of a run.
        image, labels: files (of an .npz archive with both, the same file).
        modality: one of MODALITIES, another name, or "unknown".
    """

    name: str
    image: Path
    labels: Path
    modality: str = UNKNOWN


@dataclass(frozen=True)
class Problem:
    """Something that was not scored, or a note about what was.

    Attributes:
        case, model: where; an empty model means all.
        label: the label's value, or None for the whole case.
        reason: what is wrong and what to do.
        scored: True for a note about a structure that was scored all the same.
    """

    case: str
    reason: str
    label: int | None = None
    model: str = ""
    scored: bool = False


def modality_name(text: str) -> str:
    """The usual spelling of a modality ("mri" -> "MR"); a name that is not known is kept."""
    known = {name.lower(): name for name in MODALITIES} | _ALIASES
    return known.get(text.strip().lower(), text.strip() or UNKNOWN)


def pair_folders(images: Path, labels: Path) -> tuple[list[Case], list[Problem]]:
    """Pairs two folders by file name, or two files with each other.

    Returns:
        The cases, and a problem for every file without a partner.

    Raises:
        ValueError: no pair at all.
    """
    if images.is_file():
        return [Case(_stem(images), images, labels)], []
    scans, maps = _files(images), _files(labels)
    by_stem = {_stem(p): p for p in maps.values()}
    cases, problems = [], []
    for name, path in scans.items():
        partner = maps.get(name) or by_stem.get(_stem(path))
        if partner is None:
            problems.append(Problem(_stem(path), f"{name} has no label map of the same name in {labels}"))
        else:
            cases.append(Case(_stem(path), path, partner))
    used = {c.labels for c in cases}
    problems += [
        Problem(_stem(p), f"the label map {name} has no image of the same name in {images}")
        for name, p in maps.items()
        if p not in used
    ]
    if not cases:
        raise ValueError(f"no image in {images} has a label map of the same name in {labels}")
    return cases, problems


def find_cases(folder: Path) -> tuple[list[Case], list[Problem]]:
    """Pairs what lies in a folder of one of the known layouts.

    Raises:
        ValueError: the folder is of no known layout, or holds no pair.
    """
    description = _json(folder / "dataset.json")
    if (folder / "imagesTr").is_dir() and (folder / "labelsTr").is_dir():
        return _nnunet(folder, description)
    if (folder / "labels" / "final").is_dir():
        return pair_folders(folder, folder / "labels" / "final")
    archives = [p for p in sorted(folder.glob("*.npz")) if holds(p, "imgs")]
    if archives:
        cases = [Case(p.stem, p, p, modality_name(p.stem.split("_")[0])) for p in archives if holds(p, "gts")]
        cases = [c if c.modality in MODALITIES else Case(c.name, c.image, c.labels) for c in cases]
        found = {c.image for c in cases}
        problems = [Problem(p.stem, f"{p.name} holds no labels (gts)") for p in archives if p not in found]
    else:
        cases, problems = _side_by_side(folder)
    if not cases:
        raise ValueError(
            f"{folder} must be MONAI Label studies (labels/final), nnU-Net's (imagesTr, labelsTr), .npz archives with imgs "
            "and gts, or hold x_image.* beside x_label.*; otherwise use --images and --labels"
        )
    return cases, problems


def unique(cases: list[Case]) -> tuple[list[Case], list[Problem]]:
    """The cases without those whose name another one has already (x.nii.gz beside x.nrrd), and a problem for each of these."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.name, case)
    again = [case for case in cases if first[case.name] is not case]
    reason = "{} is left out: {} is a case of this name too; rename one"
    return list(first.values()), [Problem(c.name, reason.format(c.image.name, first[c.name].image.name)) for c in again]


def label_names(cases: list[Case], given: Path | None, folder: Path | None) -> dict[int, str]:
    """{value: name} from the file that the user names, else from labels.json or dataset.json near the data.

    Raises:
        ValueError: the user's file is no such table.
    """
    if given is not None:
        try:
            return parse_names(json.loads(given.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{given} must map values to names, as {{'1': 'liver'}}: {error}") from error
    near = [folder] if folder else []
    for case in cases[:1]:
        near += [case.labels.parent, case.labels.parent.parent, case.image.parent]
        if case.image.parent in case.labels.parents:  # MONAI Label studies
            near.append(case.image.parent.parent)
    for place in near:
        for name in (_NAMES_FILE, "dataset.json"):
            try:
                names = parse_names(_json(place / name))
            except ValueError:
                continue
            if names:
                return names
    return {}


def parse_names(content: object) -> dict[int, str]:
    """Reads {"1": "liver"}, {"liver": 1} or either under the key "labels"; regions of several values are left out.

    Raises:
        ValueError: nothing of that kind.
    """
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping):
        raise ValueError(f"a table of names must be an object, got {type(content).__name__}")
    names: dict[int, str] = {}
    for key, value in content.items():
        if isinstance(value, str):
            names[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
    return {value: name for value, name in names.items() if value != 0}


def _nnunet(folder: Path, description: object) -> tuple[list[Case], list[Problem]]:
    description = description if isinstance(description, Mapping) else {}
    channels = description.get("channel_names") or description.get("modality") or {}
    modality = modality_name(str(channels.get("0", ""))) if isinstance(channels, Mapping) else UNKNOWN
    scans, maps = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    first = {_stem(p).removesuffix("_0000"): p for p in scans.values() if not _other_channel(_stem(p))}
    labels = {_stem(p): p for p in maps.values()}
    cases = [Case(name, path, labels[name], modality) for name, path in first.items() if name in labels]
    problems = [Problem(n, f"no label map of that name in {folder / 'labelsTr'}") for n in first if n not in labels]
    problems += [Problem(n, f"no image of that name in {folder / 'imagesTr'}") for n in labels if n not in first]
    if not cases:
        raise ValueError(f"no image in {folder / 'imagesTr'} has a label map of the same name in labelsTr")
    return cases, problems


def _other_channel(stem: str) -> bool:
    number = stem.rpartition("_")[2]
    return len(number) == 4 and number.isdecimal() and number != "0000"


def _side_by_side(folder: Path) -> tuple[list[Case], list[Problem]]:
    cases, problems = [], []
    for path in _files(folder).values():
        stem = _stem(path)
        if not stem.endswith("image"):
            continue
        prefix = stem.removesuffix("image")
        partner = [p for p in _files(folder).values() if _stem(p) == prefix + "label"]
        name = prefix.rstrip("_-") or folder.name
        if partner:
            cases.append(Case(name, path, partner[0]))
        else:
            problems.append(Problem(name, f"{path.name} has no label map {prefix}label.* beside it"))
    return cases, problems


def _files(folder: Path) -> dict[str, Path]:
    """{name: path} of what can be read; hidden files (such as macOS's ._x.nii.gz) are no data."""
    found = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))
    return {p.name: p for p in found if p.name.lower().endswith(EXTENSIONS)}


def _stem(path: Path) -> str:
    """The file's name without its ending (dots in the name stay)."""
    ending = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
