"""One Orthanc with the series of `world`, one server on it, and labels saved for all that are whole volumes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from tests.app import orthanc
from tests.app.dicom.world import (
    BROKEN,
    IN_ONE_STUDY,
    NAMES,
    WHOLE,
    Labelled,
    as_sent,
    label_of,
    pixels,
    save,
    segs,
    volume,
)
from tests.app.serving import shipped_model, start, stop

pacs = pytest.fixture(scope="package")(orthanc.served)


@pytest.fixture(scope="package")
def series(pacs, tmp_path_factory) -> dict[str, str]:
    """Name of the geometry -> series; the first few lie in one study."""
    folder, study = tmp_path_factory.mktemp("dicom"), generate_uid(entropy_srcs=["one study"])
    sent = {}
    for seed, (name, geometry) in enumerate([*WHOLE.items(), *((n, g) for n, (g, _) in BROKEN.items())]):
        own = study if seed < IN_ONE_STUDY else None
        sent[name] = orthanc.send_series(pacs, pixels(seed), folder, seed, geometry, own)
    return sent


@pytest.fixture(scope="package")
def server(pacs, series, tmp_path_factory):
    running = start(f"{pacs}/dicom-web", tmp_path_factory.mktemp("home"), *shipped_model())
    yield running
    stop(running)


@pytest.fixture(scope="package")
def labelled(server, pacs, series, tmp_path_factory) -> dict[str, Labelled]:
    """Name of the geometry -> what was saved; with a name that no voxel has."""
    folder, made = tmp_path_factory.mktemp("labels"), {}
    for seed, (name, geometry) in enumerate(WHOLE.items()):
        uid, label = series[name], label_of(seed)
        image = volume(server, uid, folder)
        sent = as_sent(image, pixels(seed) + 2000, geometry)
        assert np.array_equal(sent - 2000, np.asarray(image.dataobj))
        placed = as_sent(image, label, geometry)
        info = [{"name": NAMES[7], "idx": 7}, {"name": NAMES[3], "idx": 3}, {"name": "not in it", "idx": 9}]
        answer = save(server, uid, nib.Nifti1Image(placed, image.affine), info)
        assert answer.status_code == 200, (name, answer.text)
        (seg,) = segs(pacs, uid)
        made[name] = Labelled(uid, geometry, image, label, placed, seg)
    return made
