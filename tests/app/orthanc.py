"""A private Orthanc with its DICOMweb plugin, and a small CT series to put into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from scripts import demo_ohif
from tests.app.serving import free_port
from tests.app.volumes import SPACING_MM

_START_SECONDS = 30


def missing() -> str | None:
    """What of Orthanc is not installed, in words; None if nothing."""
    try:
        demo_ohif.find_orthanc()
    except demo_ohif.DemoError as error:
        return str(error)
    return None


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Runs Orthanc with an empty database in a folder; yields its address."""
    program, plugin = demo_ohif.find_orthanc()
    port = free_port()
    url = f"http://{demo_ohif.HOST}:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / "orthanc.json", folder / "orthanc.log"
    config.write_text(json.dumps(demo_ohif.orthanc_config(plugin, folder, port)))
    with demo_ohif.started([program, str(config)], log) as process:
        demo_ohif.wait_for(url + "/system", process, _START_SECONDS, str(log))
        yield url


def send_series(url: str, array: np.ndarray, folder: Path, seed: int = 0) -> str:
    """Sends (I, J, K) int16 as an axial CT series through Orthanc's own API; returns the SeriesInstanceUID."""
    study, series, frame = (generate_uid(entropy_srcs=[name, str(seed)]) for name in ("study", "series", "frame"))
    for k in range(array.shape[2]):
        path = folder / f"{series}-{k}.dcm"
        _slice(array[:, :, k], k, study, series, frame, seed).save_as(path, write_like_original=False)
        requests.post(url + "/instances", data=path.read_bytes(), timeout=30).raise_for_status()
        path.unlink()
    return series


def _slice(pixels: np.ndarray, k: int, study: str, series: str, frame: str, seed: int) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
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
        "PatientName": "Phantom^Test",
        "PatientID": f"T{seed}",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "StudyID": "1",
        "AccessionNumber": f"A{seed}",
        "ReferringPhysicianName": "",
        "Manufacturer": "Test",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PositionReferenceIndicator": "",
        "PatientPosition": "HFS",
        "KVP": 120,
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "InstanceNumber": k + 1,
        "ImagePositionPatient": [-60.0, -50.0, -400.0 + SPACING_MM[2] * k],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [SPACING_MM[1], SPACING_MM[0]],
        "SliceThickness": SPACING_MM[2],
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
