"""From a label to a DICOM SEG on a real server and back into the training list: the same voxels under the same names.

The SEG is compared with the slices that were sent by code that knows nothing of the app: a frame belongs to the slice at
whose position it lies, and its pixels are that slice's pixels.
"""

from __future__ import annotations

import copy
import io

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from pydicom.uid import generate_uid

from tests.app import orthanc
from tests.app.dicom.world import BROKEN, CENTRE, IN_ONE_STUDY, NAMES, WHOLE, save, segs, volume
from tests.app.orthanc import Geometry

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def frames_by_slice(seg: pydicom.Dataset, shape: tuple[int, ...], geometry: Geometry) -> dict[str, np.ndarray]:
    """Name -> (I, J, K) bool in the order sent, from the frames' positions and nothing else."""
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in seg.SegmentSequence}
    masks = {name: np.zeros(shape, bool) for name in names.values()}
    positions = np.array([geometry.position(k) for k in range(shape[2])])
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    flip = [np.sign(orientation[3 * n : 3 * n + 3] @ np.array(geometry.axes[n])) for n in (0, 1)]
    for frame, group in zip(seg.pixel_array.reshape(-1, seg.Rows, seg.Columns), seg.PerFrameFunctionalGroupsSequence):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        straight = frame[:: int(flip[1]), :: int(flip[0])]
        for n, length in ((0, seg.Columns), (1, seg.Rows)):
            if flip[n] < 0:
                corner = corner - np.array(geometry.axes[n], float) * geometry.pixel_mm[n] * (length - 1)
        apart = np.linalg.norm(positions - corner, axis=1)
        assert apart.min() < 0.05
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[names[int(number)]][:, :, int(apart.argmin())] |= straight.T.astype(bool)
    return masks


def trained_on(server, uid: str) -> tuple[np.ndarray, dict[str, int]]:
    """The label of a series in the training list, and its names."""
    pairs = server.get("/datastore/?output=train").json()
    path = next(pair["label"] for pair in pairs if uid in pair["image"])
    info = server.get(f"/datastore/label/info?label={uid}&tag=final").json()
    return np.asarray(nib.load(path).dataobj), {e["name"]: e["idx"] for e in info["label_info"]}


def check_trained(server, uid: str, expected: np.ndarray, unused: tuple[str, ...] = ()) -> None:
    array, names = trained_on(server, uid)
    assert set(names) == {*NAMES.values(), *unused}
    for value, name in NAMES.items():
        assert np.array_equal(array == names[name], expected == value)


def forget_local_labels(server) -> None:
    """What a second server, or a new cache, starts from."""
    for path in (server.temporary.parent / ".cache").rglob("labels/final/*"):
        path.unlink()


def send(pacs: str, seg: pydicom.Dataset) -> None:
    sent = io.BytesIO()
    seg.save_as(sent)
    requests.post(f"{pacs}/instances", data=sent.getvalue(), timeout=30).raise_for_status()


def send_dated(pacs: str, seg: pydicom.Dataset, date: str) -> str:
    """Stores a copy of a segmentation as another program with a clock of its own would; its series."""
    made = copy.deepcopy(seg)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID, made.ContentDate = generate_uid(), date
    send(pacs, made)
    return made.SeriesInstanceUID


@pytest.mark.parametrize("name", WHOLE)
def test_a_label_comes_back_voxel_for_voxel(server, labelled, name):
    found = labelled[name]
    masks = frames_by_slice(found.seg, found.label.shape, found.geometry)
    assert set(masks) == set(NAMES.values())
    for value, text in NAMES.items():
        assert np.array_equal(masks[text], found.label == value)
    check_trained(server, found.uid, found.placed, ("not in it",))


def test_labels_come_back_from_the_dicomweb_server_alone(server, labelled):
    forget_local_labels(server)
    for found in labelled.values():
        check_trained(server, found.uid, found.placed)


def test_a_newer_segmentation_with_other_numbers_is_learned_under_its_names(server, pacs, labelled):
    """As a viewer exports it: segments in alphabetical order, frames in another order, a series of its own."""
    uid, expected, seg = labelled["axial"].uid, labelled["axial"].placed, copy.deepcopy(labelled["axial"].seg)
    new = {1: 2, 2: 1}
    seg.SegmentSequence = list(reversed(seg.SegmentSequence))
    for segment in seg.SegmentSequence:
        segment.SegmentNumber = new[segment.SegmentNumber]
    groups = list(seg.PerFrameFunctionalGroupsSequence)
    for group in groups:
        reference = group.SegmentIdentificationSequence[0]
        reference.ReferencedSegmentNumber = new[reference.ReferencedSegmentNumber]
    frames = seg.pixel_array[::-1]
    seg.PerFrameFunctionalGroupsSequence = groups[::-1]
    seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    seg.SeriesInstanceUID, seg.ContentDate = generate_uid(), "20991231"
    seg.file_meta.ImplementationVersionName = "OHIF-VIEWER-2.0"
    send(pacs, seg)
    check_trained(server, uid, expected)
    info = server.get(f"/datastore/label/info?label={uid}&tag=final").json()
    assert info["SeriesInstanceUID"] == seg.SeriesInstanceUID
    assert "another viewer" in info["warnings"][0]  # what OHIF exports is doubtful: see tests/clients/test_ohif.py


def test_what_came_last_is_learned_whatever_the_clocks_of_its_makers_said(server, pacs, labelled):
    found = labelled["oblique"]
    before = send_dated(pacs, found.seg, "20991231")
    label = np.where(found.placed == 3, 3, 0).astype(np.uint8)
    answer = save(server, found.uid, nib.Nifti1Image(label, found.image.affine), [{"name": "spleen", "idx": 3}])
    assert answer.status_code == 200, answer.text
    assert np.array_equal(trained_on(server, found.uid)[0], label)
    info = server.get(f"/datastore/label/info?label={found.uid}&tag=final").json()
    assert before in info["older_segmentations"]
    last = send_dated(pacs, found.seg, "19991231")
    for _ in range(2):
        check_trained(server, found.uid, found.placed)
        info = server.get(f"/datastore/label/info?label={found.uid}&tag=final").json()
        assert info["SeriesInstanceUID"] == last
    removed = requests.post(f"{pacs}/tools/lookup", data=last, timeout=30).json()[0]["Path"]
    requests.delete(pacs + removed, timeout=30).raise_for_status()
    check_trained(server, found.uid, found.placed)  # of those that are left nobody knows more than their times
    assert server.get(f"/datastore/label/info?label={found.uid}&tag=final").json()["SeriesInstanceUID"] == before


@pytest.mark.parametrize("name", ["missing slices", "two distances"])
def test_uneven_slices_are_reported_at_each_click_and_not_saved_as_a_seg(server, pacs, series, tmp_path, name):
    uid = series[name]
    answer = server.infer(uid, {"foreground": [list(CENTRE)]}, output="json")
    assert answer.status_code == 200
    assert any("apart" in text for text in answer.json()["warnings"])
    image = volume(server, uid, tmp_path)
    label = np.zeros(image.shape, np.uint8)
    label[40:50, 30:40, 5:8] = 3
    refused = save(server, uid, nib.Nifti1Image(label, image.affine), [{"name": "spleen", "idx": 3}])
    assert refused.status_code == 422
    assert "apart" in refused.json()["detail"]
    assert segs(pacs, uid) == []


@pytest.mark.parametrize("name", ["gantry tilt", "several volumes", "two pixel sizes"])
def test_slices_that_are_no_volume_are_refused(server, series, name):
    answer = server.infer(series[name], {"foreground": [list(CENTRE)]})
    assert answer.status_code == 422
    assert BROKEN[name][1] in answer.json()["detail"]
    assert server.get(f"/datastore/image?image={series[name]}").status_code == 422


def test_a_value_without_a_name_and_an_empty_label_are_refused(server, pacs, labelled):
    uid, image = labelled["reversed"].uid, labelled["reversed"].image
    before = len(segs(pacs, uid))
    label = np.zeros(image.shape, np.uint8)
    assert save(server, uid, nib.Nifti1Image(label, image.affine), [{"name": "a", "idx": 1}]).status_code == 422
    label[5, 5, 5] = 4
    answer = save(server, uid, nib.Nifti1Image(label, image.affine), [{"name": "spleen", "idx": 3}])
    assert answer.status_code == 422
    assert "[4]" in answer.json()["detail"]
    assert len(segs(pacs, uid)) == before


@pytest.mark.parametrize("name", ["../../x", "..", "1.2/../..", "/etc"])
def test_a_series_that_is_no_identifier(server, name, tmp_path):
    assert server.get(f"/datastore/image?image={name}").status_code == 404
    assert server.get(f"/datastore/label?label={name}&tag=final").status_code == 404
    assert requests.put(f"{server.url}/datastore/image", params={"image": name}, files={"file": ("a.nii.gz", b"x")},
                        timeout=60).status_code == 409  # fmt: skip
    for path in (
        "wado/%2e%2e/instances",
        "..%2finstances",
        "qido/studies/%252e%252e/%252e%252e/instances",
        "%2e%2e/tools/now",
    ):
        assert server.get(f"/proxy/dicom/{path}").status_code == 404


def test_the_proxy_still_serves_what_viewers_ask(server, series):
    assert len(server.get("/proxy/dicom/qido/studies").json()) == len(series) - IN_ONE_STUDY + 1
    (one,) = server.get(f"/proxy/dicom/qido/series?SeriesInstanceUID={series['axial']}").json()[:1]
    assert one["0020000E"]["Value"]


def test_series_that_are_no_volume_do_not_stop_the_queue(server, series, labelled):
    answer = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["id"] in {series["missing slices"], series["two distances"]}


def test_no_patient_is_named_in_the_log(server, series):
    log = server.log.read_text()
    assert series["oblique"] in log
    for identifier in orthanc.IDENTIFIERS:
        assert identifier not in log
