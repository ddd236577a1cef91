"""kill -9 of the DICOMweb server while labels are saved and images clicked on: what was acknowledged is there afterwards."""

from __future__ import annotations

import os
import random
import time

import nibabel as nib
import numpy as np
import pytest

from tests.app.load import Image, Load, label_map
from tests.app.orthanc import Orthanc, missing, send_series
from tests.app.serving import shipped_model, start, stop
from tests.app.volumes import scan
from tests.needs import need

KILLS = int(os.environ.get("FASTSAM3D_KILLS", "0"))
DOWN = 502

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not KILLS, reason="takes minutes: make faults"),
]


@pytest.fixture
def pacs(tmp_path):
    need(missing())
    running = Orthanc(tmp_path / "orthanc")
    yield running
    running.stop()


@pytest.fixture
def uids(pacs, tmp_path) -> list[str]:
    return [send_series(pacs.url, scan(seed), tmp_path, seed) for seed in range(3)]


@pytest.fixture
def living(pacs, uids, tmp_path):
    running = start(f"{pacs.url}/dicom-web", tmp_path / "home", *shipped_model())
    yield running
    stop(running)


def check_training_list(load: Load) -> None:
    """Each series' newest SEG is whole, with its own name, and no older than the last one that was acknowledged."""
    pairs = load.server.get("/datastore/?output=train").json()
    for image in load.images:
        number = 0
        for pair in pairs:
            if image.name in pair["image"]:
                array = np.asarray(nib.load(pair["label"]).dataobj)
                info = load.server.get(f"/datastore/label/info?label={image.name}&tag=final").json()["label_info"]
                (number,) = [int(e["name"].split()[1]) for e in info if e["idx"] in array]
                assert np.array_equal(array > 0, label_map(number) > 0)
        assert image.acknowledged <= number <= image.sent, (image, number)


def test_kills_of_the_dicomweb_server(pacs, uids, living):
    rng = random.Random(8)
    load = Load(living, [Image(uid) for uid in uids[:2]], [uids[2]], excused=(DOWN,))
    before = load.click(uids[2], 0)
    for n in range(KILLS):
        load.begin()
        load.wait(saves=2, clicks=1)
        time.sleep(rng.uniform(0.0, 2.0))
        pacs.kill()
        time.sleep(rng.uniform(0.0, 1.0))
        assert load.click(uids[2], 0) == before  # what was fetched is still served
        refused = living.get("/datastore/?output=train")
        assert refused.status_code == DOWN
        assert "DICOMweb server" in refused.json()["detail"]
        load.end()
        pacs.start()
        check_training_list(load)
        print(f"kill {n + 1}: {load.saves} labels saved, {load.clicks} clicks answered")  # noqa: T201
    assert load.wrong == []
    assert load.saves > KILLS
