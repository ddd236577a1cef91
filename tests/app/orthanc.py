"""A private Orthanc with its DICOMweb plugin, and a small CT series to put into it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.app.serving import free_port
from tests.app.volumes import SPACING_MM

_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
_START_SECONDS = 30


def installed() -> tuple[str, str] | None:
    """Paths of Orthanc and of its DICOMweb plugin, or None."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = [str(path) for folder in _PLUGINS for path in Path(folder).glob("libOrthancDicomWeb.so*")]
    return (program, plugins[0]) if program and plugins else None


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Runs Orthanc with an empty database in a folder; yields its address."""
    program, plugin = installed()
    port = free_port()
    config = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [plugin],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                requests.get(url + "/system", timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "orthanc.log").read_text()[-2000:]) from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


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
