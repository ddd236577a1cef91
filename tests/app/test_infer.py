"""Clicks over HTTP in the form of each client; every mask comes from the real model."""

import json
import time

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

from tests.app.volumes import CENTRE_IJK, RADII_MM, SHAPE, SPACING_MM, save, scan, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # MONAI Label's client leaves its sockets open
]

CLICK = list(CENTRE_IJK)
ROI = [
    edge
    for centre, radius, spacing in zip(CENTRE_IJK, RADII_MM, SPACING_MM)
    for edge in (round(centre + radius / spacing), round(centre - radius / spacing))
]
OHIF = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}


@pytest.fixture
def slicer(server, tmp_path):
    """Slicer's logic: its client, and the two parameters that it adds to each inference."""
    client = MONAILabelClient(server.url, str(tmp_path), "user-xyz")

    def infer(image, session_id=None, **params):
        params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
        return client.infer("fastsam3d", image, params, None, None, session_id)

    client.as_slicer = infer
    return client


def read(path_or_bytes, tmp_path=None) -> sitk.Image:
    if isinstance(path_or_bytes, bytes):
        path = tmp_path / "answer.nrrd"
        path.write_bytes(path_or_bytes)
        path_or_bytes = str(path)
    return sitk.ReadImage(path_or_bytes)


def voxels(image: sitk.Image) -> np.ndarray:
    """(I, J, K) of an image as read by SimpleITK."""
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def overlap(mask: np.ndarray) -> float:
    truth = target()
    return float(2 * (truth & (mask > 0)).sum() / max(1, truth.sum() + (mask > 0).sum()))


def test_ohif_gets_a_full_uint8_volume_in_native_order(server, tmp_path):
    answer = server.infer("case1", {**OHIF, "foreground": [CLICK], "background": []}, output="image")
    assert answer.status_code == 200
    image = read(answer.content, tmp_path)
    mask = voxels(image)
    assert mask.shape == SHAPE
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert mask[CENTRE_IJK] == 1
    assert overlap(mask) > 0.5
    assert len(answer.content) < mask.size / 5


def test_slicer_gets_the_geometry_and_the_parameters(slicer, studies):
    file, params = slicer.as_slicer("case1", label="left kidney", foreground=[CLICK], background=[])
    image, source = read(file), sitk.ReadImage(str(studies / "case1.nii.gz"))
    assert image.GetSize() == source.GetSize()
    np.testing.assert_allclose(image.GetSpacing(), source.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), source.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(image.GetDirection(), source.GetDirection(), atol=1e-6)
    assert params["label_names"] == {"left kidney": 1}
    assert 0 <= params["predicted_iou"] <= 1
    assert params["weights"]["name"]
    assert params["weights"]["version"]
    assert params["voxels"] == int(voxels(image).sum())
    assert params["latencies"]["total"] > 0
    assert params["model"] == "fastsam3d"


def test_a_second_click_reads_and_encodes_nothing(slicer):
    first = slicer.as_slicer("fresh", label="a", foreground=[CLICK], background=[])[1]["latencies"]
    more = [CLICK, [c + 4 for c in CLICK]]
    second = slicer.as_slicer("fresh", label="a", foreground=more, background=[])[1]["latencies"]
    assert {"crop", "encode"} <= set(first)  # it may have been read ahead: as the next sample of another test
    assert not {"read", "crop", "encode"} & set(second)


def test_a_volume_that_was_sent_is_read_before_the_first_click(server, tmp_path):
    file = save(tmp_path / "own.nii.gz", scan(77))
    sent = requests.put(f"{server.url}/session/", files={"files": (file.name, file.read_bytes())}, timeout=60).json()
    time.sleep(2)  # as a user takes at least
    answer = server.infer("", {"foreground": [CLICK]}, session_id=sent["session_id"], output="json").json()
    assert "encode" in answer["latencies"] and "read" not in answer["latencies"]


def test_the_same_request_gives_the_same_answer(server):
    request = {**OHIF, "foreground": [CLICK, [c + 4 for c in CLICK]], "background": [[5, 5, 5]]}
    answers = [server.infer("case1", request, output="image").content for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]


def test_slicers_unsorted_box(slicer):
    file, params = slicer.as_slicer("case1", label="liver", foreground=[], background=[], roi=ROI)
    mask = voxels(read(file))
    assert overlap(mask) > 0.5
    assert params["label_names"] == {"liver": 1}


def test_a_box_with_clicks(slicer):
    file, _ = slicer.as_slicer("case1", foreground=[CLICK], background=[[2, 2, 2]], roi=ROI, reset_state=True)
    mask = voxels(read(file))
    assert overlap(mask) > 0.5
    assert mask[2, 2, 2] == 0


@pytest.fixture
def reference(slicer) -> np.ndarray:
    """(I, J, K): the answer to one click on case1."""
    return voxels(read(slicer.as_slicer("case1", foreground=[CLICK])[0]))


def test_a_session_upload_is_segmented_like_the_study(slicer, tmp_path, reference):
    upload = save(tmp_path / "volume.nii.gz", scan(1))
    session = slicer.create_session(str(upload))["session_id"]
    assert slicer.get_session(session)["image"]
    file, _ = slicer.as_slicer("some name", session_id=session, label="x", foreground=[CLICK], background=[])
    assert np.array_equal(voxels(read(file)), reference)
    slicer.remove_session(session)


def test_a_file_sent_with_the_request(slicer, tmp_path, reference):
    upload = save(tmp_path / "volume.nii.gz", scan(1))
    file, _ = slicer.infer("fastsam3d", "none", {"foreground": [CLICK]}, None, str(upload))
    assert file.endswith(".nii.gz")
    assert np.array_equal(voxels(read(file)), reference)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii"])
def test_the_extension_is_as_asked(slicer, extension, reference):
    file, _ = slicer.infer("fastsam3d", "case1", {"foreground": [CLICK], "result_extension": extension})
    assert file.endswith(extension)
    assert np.array_equal(voxels(read(file)), reference)


def test_the_voxel_type_is_as_asked(slicer, reference):
    request = {"foreground": [CLICK], "result_extension": ".nrrd", "result_dtype": "uint16"}
    mask = voxels(read(slicer.infer("fastsam3d", "case1", request)[0]))
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, reference)


def test_output_json_has_no_file(server):
    answer = server.infer("case1", {"foreground": [CLICK]}, output="json")
    assert answer.status_code == 200
    assert answer.json()["label_names"] == {"foreground": 1}


def test_no_file_when_none_is_wanted(server):
    answer = server.infer("case1", {"foreground": [CLICK], "result_write_to_file": False})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["voxels"] > 0


def test_no_answer_file_is_left_behind(server):
    def answers():
        return set(server.temporary.glob("fastsam3d-*"))

    before = answers()
    server.infer("case1", {"foreground": [CLICK]}, output="json")
    server.infer("case1", {**OHIF, "foreground": [CLICK]}, output="image")
    deadline = time.monotonic() + 5  # MONAI Label removes the file after the answer is out
    while not answers() <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert answers() <= before


def test_a_volume_of_one_slice(slicer):
    click = [CENTRE_IJK[0], CENTRE_IJK[1], 0]
    file, _ = slicer.as_slicer("one_slice", label="x", foreground=[click], background=[])
    mask = voxels(read(file))
    assert mask.shape == (*SHAPE[:2], 1)
    assert mask[tuple(click)] == 1


def test_some_nan_is_segmented_with_a_warning(slicer):
    file, params = slicer.as_slicer("some_nan", label="x", foreground=[CLICK], background=[])
    assert overlap(voxels(read(file))) > 0.5
    assert any("NaN" in text or "finite" in text for text in params["warnings"])
    assert json.dumps(params, allow_nan=False)
