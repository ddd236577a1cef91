"""A private Orthanc with its DICOMweb plugin, and a small CT series to put into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from scripts import demo_ohif
from tests.app.serving import free_port
from tests.app.volumes import SPACING_MM
from tests.needs import need

_START_SECONDS = 30


def missing() -> str | None:
    """What of Orthanc is not installed, in words; None if nothing."""
    try:
        demo_ohif.find_orthanc()
    except demo_ohif.DemoError as error:
        return str(error)
    return None


class Orthanc:
    """An Orthanc with its database in a folder; it can be killed and started again at the same address.

    Attributes:
        url: its address.
    """

    def __init__(self, folder: Path) -> None:
        program, plugin = demo_ohif.find_orthanc()
        port = free_port()
        self.url = f"http://{demo_ohif.HOST}:{port}"
        folder.mkdir(parents=True, exist_ok=True)
        config, self._log = folder / "orthanc.json", folder / "orthanc.log"
        config.write_text(json.dumps(demo_ohif.orthanc_config(plugin, folder, port)))
        self._command = [program, str(config)]
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._process = self._stack.enter_context(demo_ohif.started(self._command, self._log))
        demo_ohif.wait_for(self.url + "/system", self._process, _START_SECONDS, str(self._log))

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self.stop()

    def stop(self) -> None:
        """Ends it."""
        self._stack.close()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Runs Orthanc with an empty database in a folder; yields its address."""
    orthanc = Orthanc(folder)
    try:
        yield orthanc.url
    finally:
        orthanc.stop()


IDENTIFIERS = ("Phantom^Jane", "PID-7731-X", "19531117", "ACC-20240-Z")
"""Name, ID, birth date and accession number in every file; none of them may turn up in a log."""


@dataclass(frozen=True)
class Geometry:
    """Where the slices of a series lie, in LPS mm.

    Attributes:
        axes: (2, 3) direction of increasing columns, and of increasing rows.
        step: (3,) mm from one slice to the next; None is along the normal.
        order: of the slices' instance numbers.
        left_out: slices that are not sent.
        pixel_mm: size of a pixel along a row, and along a column.
        slice_mm: distance of the slices where there is no `step`.
        thicker_from: the slice from which on the distance is twice as large.
        wider_from: the slice from which on pixels are twice as large.
    """

    axes: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1, 0, 0), (0, 1, 0))
    step: tuple[float, float, float] | None = None
    order: int = 1
    left_out: tuple[int, ...] = ()
    pixel_mm: tuple[float, float] = SPACING_MM[:2]
    slice_mm: float = SPACING_MM[2]
    thicker_from: int = 10**6
    wider_from: int = 10**6

    def position(self, k: int) -> np.ndarray:
        """(3,) of the first pixel of slice k."""
        step = np.cross(*self.axes) * self.slice_mm if self.step is None else np.array(self.step)
        return np.array([-60.0, -50.0, -400.0]) + (k + max(0, k - self.thicker_from)) * step

    def pixel_of(self, k: int) -> np.ndarray:
        """(2,) mm along a row and along a column of slice k."""
        return np.array(self.pixel_mm) * (1 + (k >= self.wider_from))


def instance_uid(series: str, k: int) -> str:
    """The SOPInstanceUID of slice k of a series that `send_series` sent."""
    return generate_uid(entropy_srcs=[series, str(k)])


def send_series(
    url: str,
    array: np.ndarray,
    folder: Path,
    seed: int = 0,
    geometry: Geometry = Geometry(),
    study: str | None = None,
    **attributes: Any,
) -> str:
    """Sends (I, J, K) int16 as a CT series through Orthanc's own API; returns the SeriesInstanceUID.

    Args:
        attributes: of every file, in place of those that a series has here otherwise.
    """
    own_study, series, frame = (generate_uid(entropy_srcs=[name, str(seed)]) for name in ("study", "series", "frame"))
    for k in range(array.shape[2]):
        if k in geometry.left_out:
            continue
        path = folder / f"{series}-{k}.dcm"
        slice_ = _slice(array[:, :, k], k, study or own_study, series, frame, geometry)
        if geometry.order < 0:
            slice_.InstanceNumber = array.shape[2] - k
        for name, value in attributes.items():
            setattr(slice_, name, value)
        slice_.save_as(path, write_like_original=False)
        requests.post(url + "/instances", data=path.read_bytes(), timeout=30).raise_for_status()
        path.unlink()
    return series


def _slice(pixels: np.ndarray, k: int, study: str, series: str, frame: str, geometry: Geometry) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance_uid(series, k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = Dataset()
    slice_.file_meta = meta
    slice_.is_little_endian, slice_.is_implicit_VR = True, False
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": frame,
        "Modality": "CT",
        "PatientName": IDENTIFIERS[0],
        "PatientID": IDENTIFIERS[1],
        "PatientBirthDate": IDENTIFIERS[2],
        "PatientSex": "O",
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "StudyID": "1",
        "AccessionNumber": IDENTIFIERS[3],
        "ReferringPhysicianName": "",
        "Manufacturer": "Test",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PositionReferenceIndicator": "",
        "PatientPosition": "HFS",
        "KVP": 120,
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "InstanceNumber": k + 1,
        "ImagePositionPatient": [round(float(v), 6) for v in geometry.position(k)],
        "ImageOrientationPatient": [round(float(v), 9) for axis in geometry.axes for v in axis],
        "PixelSpacing": [float(v) for v in geometry.pixel_of(k)[::-1]],
        "SliceThickness": geometry.slice_mm,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Columns": pixels.shape[0],
        "Rows": pixels.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }
    for name, value in values.items():
        setattr(slice_, name, value)
    slice_.PixelData = np.ascontiguousarray(pixels.T, dtype="<i2").tobytes()
    return slice_


def served(tmp_path_factory) -> Iterator[str]:
    """What a fixture `pacs` of any scope does: the address of an Orthanc of its own."""
    need(missing())
    with running(tmp_path_factory.mktemp("orthanc")) as url:
        yield url
