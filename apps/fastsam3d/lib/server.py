"""MONAI Label's settings that this app changes, so that the plain start command works as it is."""

from __future__ import annotations

import os
import sys

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore

_DEFAULT_FILE_EXT = ["*.nii.gz", "*.nii", "*.nrrd", "*.jpg", "*.png", "*.tif", "*.svs", "*.xml"]
_VOLUME_FILE_EXT = ["*.nii.gz", "*.nii", "*.nrrd", "*.mha", "*.mhd"]


def apply_settings() -> None:
    """Changes the settings; call it before MONAILabelApp's constructor, which reads most of them.

    - Experiment tracking is off unless an address for it is set: MLflow no longer takes MONAI Label's default one.
    - Scoring does not run by itself at each start, sample and training: each run would be a process of its own.
    - The list of studies holds volumes and no photographs, unless the user chose other extensions.
    - This environment's programs (itkimage2segimage above all) are found although it may not be activated.
    """
    if not settings.MONAI_LABEL_TRACKING_URI:
        settings.MONAI_LABEL_TRACKING_ENABLED = False
    settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False
    if settings.MONAI_LABEL_DATASTORE_FILE_EXT == _DEFAULT_FILE_EXT:
        settings.MONAI_LABEL_DATASTORE_FILE_EXT = list(_VOLUME_FILE_EXT)
    programs = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", "")
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = programs + os.pathsep + path


def forget_dicomweb_lists() -> None:
    """Makes a DICOMweb datastore ask its server again which series and which segmentations there are.

    MONAI Label keeps both lists for MONAI_LABEL_DICOMWEB_CACHE_EXPIRY seconds, two hours unless set in the
    environment; the setting is read when its module is imported, before any app could change it.
    """
    for method in (DICOMWebDatastore.list_images, DICOMWebDatastore.get_labeled_images):
        method.cache.clear()
