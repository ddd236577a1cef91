"""From a datastore's saved labels to annotated cases whose values have names."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from pydicom.errors import InvalidDicomError

from ..sam.training.cases import LabelledCase

logger = logging.getLogger(__name__)

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def annotated_cases(datastore: Datastore, labels: Mapping[str, int]) -> list[LabelledCase]:
    """The images that have a final label, sorted by id.

    What a value of a label map means is asked of whoever wrote it, in this order: the segments of the DICOM SEG that it
    came from (OHIF's export; numbered as OHIF likes), `label_info` as the client saved it (3D Slicer, the API), and the
    app's own label list for files that somebody put into the folder.

    Args:
        labels: the app's label list, name -> number.
    """
    cases = []
    numbered = {number: name for name, number in labels.items()}
    for entry in datastore.datalist():
        image, label = Path(str(entry["image"])), Path(str(entry["label"]))
        if not (image.exists() and label.exists()):
            logger.warning("left out: %s or its label is not there any more", image.name)
            continue
        name = _id_of(image)
        info = datastore.get_label_info(name, DefaultLabelTag.FINAL)
        names = _of_segments(label, info) or _of_client(info) or numbered
        cases.append(LabelledCase(name, image, label, names))
    return sorted(cases, key=lambda case: case.name)


def _id_of(path: Path) -> str:
    return next((path.name[: -len(end)] for end in _ENDINGS if path.name.endswith(end)), path.stem)


def _of_client(info: Mapping[str, Any]) -> dict[int, str]:
    """value -> name of `label_info`; entries without a usable number or name are left out."""
    names = {}
    entries = info.get("label_info")
    for entry in entries if isinstance(entries, list) else []:
        number = entry.get("idx", entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(number, int) and number > 0 and isinstance(name, str) and name.strip():
            names[number] = name
    return names


def _of_segments(label: Path, info: Mapping[str, Any]) -> dict[int, str]:
    """Segment number -> segment label of the DICOM SEG beside a converted label map; empty if there is none."""
    series = info.get("SeriesInstanceUID")
    folder = label.parent / str(series) if series else None
    if folder is None or not folder.is_dir():
        return {}
    for file in sorted(os.listdir(folder)):
        try:
            header = pydicom.dcmread(folder / file, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        segments = header.get("SegmentSequence") or []
        return {int(s.SegmentNumber): str(s.SegmentLabel) for s in segments if s.get("SegmentLabel")}
    return {}
