"""In the real OHIF: click, export, Update Model; after publication the same click is answered by the new weights.

Takes about a quarter of an hour on two idle cores, so it runs only when asked for:

    FASTSAM3D_ACCEPTANCE=1 python -m pytest tests/acceptance/test_ohif_learning.py -s --timeout 3600

$FASTSAM3D_ACCEPTANCE_PICTURE names a PNG for what the viewer shows at the end.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from lib.sam.clicks import next_click
from lib.sam.evaluate import dice

from scripts import demo_ohif
from tests.app import orthanc
from tests.app.learning import copy_app, stats, wait_for_training
from tests.app.serving import start, stop
from tests.clients import demo, ohif, phantom
from tests.needs import need

MODEL, ORGAN, CASES = "fastsam3d", "vertebra", ("case1", "case2")
CLICKS, GOOD = 5, 0.93

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("FASTSAM3D_ACCEPTANCE"), reason="takes 15 minutes; set FASTSAM3D_ACCEPTANCE=1"
    ),
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(3600),
]


@pytest.fixture
def world(tmp_path):
    """The server on an Orthanc with two studies, and these."""
    need(demo.missing())
    made = tmp_path / "phantoms"
    lattice = ["--shape", ",".join(map(str, phantom.SHAPE)), "--spacing", ",".join(map(str, phantom.SPACING_MM))]
    phantom.make(made, "--cases", "2", "--seed", str(phantom.SEED), "--dicom", "2", *lattice)
    with orthanc.running(tmp_path / "orthanc") as pacs:
        demo_ohif.store_series(made / "dicom", f"{pacs}/dicom-web")
        server = start(f"{pacs}/dicom-web", tmp_path / "home", "models", MODEL, app=copy_app(tmp_path))
        yield server, [phantom.dicom_series(made, case) for case in CASES]
        stop(server)


def click(viewer, series, most: int = 1) -> list[np.ndarray]:
    """Simulated clicks on the organ until the mask is good; the labelmap that the viewer shows after each of them."""
    target, masks, mask = series.organ(ORGAN), [], np.zeros(series.labels.shape, bool)
    while len(masks) < most and dice(mask, target) < GOOD:
        following = next_click(mask, target, None, "centre", series.spacing_mm)
        viewer.choose(ORGAN if following.positive else "background")
        viewer.point(following.ijk)
        viewer.choose(ORGAN)
        assert viewer.run().status == 200
        mask = viewer.mask(ORGAN)
        masks.append(mask)
    return masks


def weights(server, series) -> dict:
    """Which weights answer now."""
    request = {"foreground": [[90, 75, 48]], "result_write_to_file": False}
    return server.infer(series.series, request, output="json").json()["weights"]


def test_update_model_in_ohif_publishes_weights_that_answer_the_same_click(world):
    server, cases = world
    before, figures = weights(server, cases[0]), {}
    with ohif.browser_page(demo.find_chromium()) as page:
        viewer = ohif.Viewer(page, server.url)
        for n, series in enumerate(reversed(cases)):  # the first study is the last one to be annotated, and stays open
            viewer.open(series.study)
            viewer.connect(MODEL)
            masks = click(viewer, series, CLICKS)
            viewer.export("by hand")
            figures[f"before {n}"] = [round(dice(mask, series.organ(ORGAN)), 3) for mask in masks]
        assert viewer.update_model() == 200
        task = wait_for_training(server, 3000)
        viewer.clear_points()
        after = click(viewer, cases[0])[0]
        viewer.wait_until_messages_are_gone()
        now = weights(server, cases[0])
        figures |= {
            "after": round(dice(after, cases[0].organ(ORGAN)), 3),
            "weights": [before, now],
            "stats": stats(server),
        }
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        if os.environ.get("FASTSAM3D_ACCEPTANCE_PICTURE"):
            ohif.save_picture(page, Path(os.environ["FASTSAM3D_ACCEPTANCE_PICTURE"]))
        assert not viewer.errors
    assert task["status"] == "DONE", server.log.read_text()[-3000:]
    assert figures["stats"]["state"] == "accepted", figures
    assert now["version"] != before["version"]
    assert now["name"] == figures["stats"]["run"]
    assert figures["after"] >= figures["before 1"][0]
