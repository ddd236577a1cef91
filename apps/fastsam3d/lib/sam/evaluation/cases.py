"""Which scans and label maps lie in the folders that a user names.

Layouts: two folders (or files) with equal file names; a folder of MONAI Label studies (`labels/final/`); nnU-Net's
`imagesTr`, `labelsTr` and `dataset.json`; .npz archives of the CVPR challenges; and files `x_image.*` beside `x_label.*`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..npz_io import array_names
from ..photo_io import SUFFIXES as PHOTOS

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", *PHOTOS)
MODALITIES = ("CT", "MR", "PET", "US", "X-ray", "dermoscopy", "endoscopy", "fundus", "microscopy")
"""The modalities of RepMedSAM's table, in its order; others may be named too."""

UNKNOWN = "unknown"
_ALIASES = {"mri": "MR", "ultrasound": "US", "xray": "X-ray", "x_ray": "X-ray", "cxr": "X-ray", "pt": "PET"}
_ALIASES |= {"microscope": "microscopy"}
_ARCHIVE = ".npz"
_NAMES_FILE, _DESCRIPTION = "labels.json", "dataset.json"


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
        return [Case(_stem(images), images, labels, _archive_modality(images))], []
    scans, maps = _files(images), _files(labels)
    by_stem = {_stem(p): p for p in maps.values()}
    cases, problems = [], []
    for name, path in scans.items():
        partner = maps.get(name) or by_stem.get(_stem(path))
        if partner is None:
            problems.append(Problem(_stem(path), f"{name} has no label map of the same name in {labels}"))
        else:
            cases.append(Case(_stem(path), path, partner, _archive_modality(path)))
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
    if (folder / "imagesTr").is_dir() and (folder / "labelsTr").is_dir():
        return _nnunet(folder, _json(folder / _DESCRIPTION))
    if (folder / "labels" / "final").is_dir():
        return pair_folders(folder, folder / "labels" / "final")
    archives = {p: array_names(p) for p in _files(folder).values() if p.name.lower().endswith(_ARCHIVE)}
    if any(held and "imgs" in held for held in archives.values()):
        cases, problems = _archives(archives)
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


def label_names(cases: list[Case], given: Path | None, folder: Path | None) -> tuple[dict[int, str], list[Problem]]:
    """{value: name} from the file that the user names, else from labels.json or dataset.json near the data.

    Returns:
        The names, and a note for every file near the data that should hold them and cannot be used.

    Raises:
        ValueError: the user's file is no such table.
    """
    if given is not None:
        try:
            return parse_names(json.loads(given.read_text(encoding="utf-8"))), []
        except ValueError as error:
            raise ValueError(f"{given} must map values to names, as {{'1': 'liver'}}: {error}") from error
    near = [folder] if folder else []
    for case in cases[:1]:
        near += [case.labels.parent, case.labels.parent.parent, case.image.parent]
        if case.image.parent in case.labels.parents:  # MONAI Label studies
            near.append(case.image.parent.parent)
    notes: list[Problem] = []
    for path in dict.fromkeys(place / name for place in near for name in (_NAMES_FILE, _DESCRIPTION)):
        names, note = _names_in(path)
        notes += note
        if names:
            return names, notes
    return {}, notes


def _names_in(path: Path) -> tuple[dict[int, str], list[Problem]]:
    """The names of a file that need not be there, and a note where it is damaged."""
    try:
        return parse_names(json.loads(path.read_text(encoding="utf-8"))), []
    except OSError:
        return {}, []
    except ValueError as error:
        if path.name == _DESCRIPTION and _json(path) is not None:  # one without names is none the worse for it
            return {}, []
        return {}, [Problem("", f"the names in {path} are not used: {error}", scored=True)]


def parse_names(content: object) -> dict[int, str]:
    """Reads {"1": "liver"}, {"liver": 1} or either under the key "labels"; entries of another form are left out.

    Such entries are nnU-Net's regions of several values, and remarks.

    Raises:
        ValueError: nothing of that kind.
    """
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping):
        raise ValueError(f"a table of names must be an object, got {type(content).__name__}")
    names: dict[int, str] = {}
    for key, value in content.items():
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", str(key)):
            names[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
    if content and not names:
        raise ValueError(f"none of its {len(content)} entries gives a value a name")
    return {value: name for value, name in names.items() if value != 0}


def _nnunet(folder: Path, description: object) -> tuple[list[Case], list[Problem]]:
    description = description if isinstance(description, Mapping) else {}
    kinds = description.get("channel_names") or description.get("modality") or {}
    modality = modality_name(str(kinds.get("0", ""))) if isinstance(kinds, Mapping) else UNKNOWN
    scans, maps = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    labels = {_stem(p): p for p in maps.values()}
    stems = {_stem(p): p for p in scans.values()}
    channels = {stem: _channel(stem, labels, stems) for stem in stems}
    first = {name: stems[stem] for stem, (name, channel) in channels.items() if channel == 0}
    cases = [Case(name, path, labels[name], modality) for name, path in first.items() if name in labels]
    problems = [Problem(n, f"no label map of that name in {folder / 'labelsTr'}") for n in first if n not in labels]
    problems += [Problem(n, f"no image of that name in {folder / 'imagesTr'}") for n in labels if n not in first]
    if not cases:
        raise ValueError(f"no image in {folder / 'imagesTr'} has a label map of the same name in labelsTr")
    return cases, problems


def _channel(stem: str, labels: Iterable[str], images: Iterable[str]) -> tuple[str, int]:
    """The case that an image belongs to, and which channel it is: four digits at the end may also be the case's own number."""
    name, _, number = stem.rpartition("_")
    numbered = len(number) == 4 and number.isdecimal() and stem not in labels
    if numbered and (name in labels or f"{name}_0000" in images):
        return name, int(number)
    return stem, 0


def _archives(found: Mapping[Path, frozenset[str] | None]) -> tuple[list[Case], list[Problem]]:
    """Archives with images and labels, by the names of their arrays (None: damaged)."""
    cases, problems = [], []
    for path, held in found.items():
        missing = [] if held is None else [key for key in ("imgs", "gts") if key not in held]
        if held is None:
            problems.append(Problem(_stem(path), f"{path.name} is not a whole .npz archive"))
        elif missing:
            what = {"imgs": "no image (imgs)", "gts": "no labels (gts)"}
            problems.append(Problem(_stem(path), f"{path.name} holds {' and '.join(what[key] for key in missing)}"))
        else:
            cases.append(Case(_stem(path), path, path, _archive_modality(path)))
    return cases, problems


def _archive_modality(path: Path) -> str:
    """The modality that a challenge's archive begins with, as in CT_1.npz and 3DBox_CT_1.npz."""
    if not path.name.lower().endswith(_ARCHIVE):
        return UNKNOWN
    first = re.sub(r"^[23]DBox_", "", _stem(path), flags=re.IGNORECASE).split("_")[0]
    modality = modality_name(first)
    return modality if modality in MODALITIES else UNKNOWN


def _side_by_side(folder: Path) -> tuple[list[Case], list[Problem]]:
    cases, problems = [], []
    stems = {_stem(path): path for path in _files(folder).values()}
    problems += [
        Problem(stem.removesuffix("label").rstrip("_-") or folder.name, f"{path.name} has no image beside it")
        for stem, path in stems.items()
        if stem.endswith("label") and stem.removesuffix("label") + "image" not in stems
    ]
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
