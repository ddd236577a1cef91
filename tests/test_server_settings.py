"""MONAI Label's settings after the app has changed them."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from lib import server
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore

NAMES = ("TRACKING_ENABLED", "TRACKING_URI", "AUTO_UPDATE_SCORING", "DATASTORE_FILE_EXT")


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    for name in NAMES:
        monkeypatch.setattr(settings, f"MONAI_LABEL_{name}", type(settings).model_fields[f"MONAI_LABEL_{name}"].default)


def test_tracking_and_scoring_are_off_and_volumes_are_listed():
    server.apply_settings()
    assert settings.MONAI_LABEL_TRACKING_ENABLED is False
    assert settings.MONAI_LABEL_AUTO_UPDATE_SCORING is False
    assert settings.MONAI_LABEL_DATASTORE_FILE_EXT == ["*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.mhd"]


def test_what_a_user_chose_stays():
    settings.MONAI_LABEL_TRACKING_URI = "sqlite:///runs.db"
    settings.MONAI_LABEL_DATASTORE_FILE_EXT = ["*.mha"]
    server.apply_settings()
    assert settings.MONAI_LABEL_TRACKING_ENABLED is True
    assert settings.MONAI_LABEL_DATASTORE_FILE_EXT == ["*.mha"]


def test_this_environments_programs_are_found(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    server.apply_settings()
    server.apply_settings()
    folder = str(Path(sys.executable).parent)
    assert os.environ["PATH"] == folder + os.pathsep + "/nowhere"
    assert shutil.which("itkimage2segimage") == os.path.join(folder, "itkimage2segimage")


def test_the_dicomweb_lists_can_be_forgotten():
    cache = DICOMWebDatastore.list_images.cache
    cache["key"] = ["series"]
    server.forget_dicomweb_lists()
    assert len(cache) == 0
