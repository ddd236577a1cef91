"""From a label to a DICOM SEG on a real server and back into the training list: the same voxels under the same names.

The SEG is compared with the slices that were sent by code that knows nothing of the app: a frame belongs to the slice at
whose position it lies, and its pixels are that slice's pixels.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from pydicom.uid import generate_uid

from tests.app import orthanc
from tests.app.orthanc import Geometry
from tests.app.serving import shipped_model, start, stop
from tests.app.volumes import CENTRE_IJK, scan, target
from tests.needs import need

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SLICES = slice(18, 42)  # of the small scan: what every label below lies in
CENTRE = (*CENTRE_IJK[:2], CENTRE_IJK[2] - SLICES.start)
NAMES = {3: "spleen", 7: "left kidney"}
_TILT = np.deg2rad(20)
OBLIQUE = (
    (float(np.cos(_TILT)), float(np.sin(_TILT)), 0.0),
    (-float(np.sin(_TILT)) * 0.8, float(np.cos(_TILT)) * 0.8, -0.6),
)
WHOLE = {
    "axial": Geometry(),
    "reversed": Geometry(step=(0.0, 0.0, -1.8), order=-1),
    "oblique": Geometry(axes=OBLIQUE),
    "sagittal, rows reversed": Geometry(axes=((0, -1, 0), (0, 0, -1))),
}
BROKEN = {
    "missing slices": (Geometry(left_out=(9, 10)), "apart"),
    "gantry tilt": (Geometry(step=(0.0, 0.6, 1.8)), "gantry tilt"),
    "several volumes": (Geometry(step=(0.0, 0.0, 0.0)), "same one"),
}


def pixels(seed: int) -> np.ndarray:
    return scan(seed)[:, :, SLICES]


def label_of(seed: int) -> np.ndarray:
    """(I, J, K) uint8 in the order in which the slices were sent: two structures that no symmetry maps onto themselves."""
    inside = target()[:, :, SLICES]
    label = np.where(inside, 3, 0).astype(np.uint8)
    label[: CENTRE[0] - seed, :, : CENTRE[2] + 3] *= 0
    label[30:37, 20 + seed : 33, 4:9] = 7
    return label


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    need(orthanc.missing())
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


@pytest.fixture(scope="module")
def series(pacs, tmp_path_factory) -> dict[str, str]:
    """Name of the geometry -> series; the first two lie in one study."""
    folder, study = tmp_path_factory.mktemp("dicom"), generate_uid(entropy_srcs=["one study"])
    sent = {}
    for seed, (name, geometry) in enumerate([*WHOLE.items(), *((n, g) for n, (g, _) in BROKEN.items())]):
        sent[name] = orthanc.send_series(pacs, pixels(seed), folder, seed, geometry, study if seed < 2 else None)
    return sent


@pytest.fixture(scope="module")
def server(pacs, series, tmp_path_factory):
    running = start(f"{pacs}/dicom-web", tmp_path_factory.mktemp("home"), *shipped_model())
    yield running
    stop(running)


def volume(server, uid: str, tmp_path: Path) -> nib.Nifti1Image:
    """The image as a client gets it."""
    answer = server.get(f"/datastore/image?image={uid}")
    answer.raise_for_status()
    path = tmp_path / f"{uid}.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path)


def as_sent(image: nib.Nifti1Image, array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, 3) -> places every voxel of an array in the order sent on the client's image, by positions in mm alone."""
    axes = np.array(geometry.axes, float)
    step = geometry.position(1) - geometry.position(0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * 1.2, axes[1] * 1.2, step
    affine[:3, 3] = geometry.position(0)
    to_client = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    placed = np.zeros(image.shape, array.dtype)
    where = np.argwhere(array)
    exact = where @ to_client[:3, :3].T + to_client[:3, 3]
    assert np.abs(exact - np.rint(exact)).max() < 0.05
    placed[tuple(np.rint(exact).astype(int).T)] = array[tuple(where.T)]
    return placed


def save(server, uid: str, label: nib.Nifti1Image, info) -> requests.Response:
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": uid},
        files={"label": ("label.nii.gz", compressed(label)), "params": (None, json.dumps({"label_info": info}))},
        timeout=120,
    )


def compressed(image: nib.Nifti1Image) -> bytes:
    import gzip

    return gzip.compress(image.to_bytes(), 1)


def segs(pacs: str, uid: str) -> list[pydicom.Dataset]:
    """Every SEG on the server that refers to a series."""
    found = []
    for instance in requests.get(f"{pacs}/instances", timeout=30).json():
        data = pydicom.dcmread(io.BytesIO(requests.get(f"{pacs}/instances/{instance}/file", timeout=30).content))
        if data.Modality == "SEG" and data.ReferencedSeriesSequence[0].SeriesInstanceUID == uid:
            found.append(data)
    return found


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
                corner = corner - np.array(geometry.axes[n], float) * 1.2 * (length - 1)
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


@pytest.mark.parametrize("name", WHOLE)
def test_a_label_comes_back_voxel_for_voxel(server, pacs, series, name, tmp_path):
    uid, geometry, seed = series[name], WHOLE[name], list(WHOLE).index(name)
    image, label = volume(server, uid, tmp_path), label_of(seed)
    assert np.array_equal(as_sent(image, pixels(seed) + 2000, geometry) - 2000, np.asarray(image.dataobj))
    placed = as_sent(image, label, geometry)
    info = [{"name": NAMES[7], "idx": 7}, {"name": NAMES[3], "idx": 3}, {"name": "not in it", "idx": 9}]
    assert save(server, uid, nib.Nifti1Image(placed, image.affine), info).status_code == 200

    (seg,) = segs(pacs, uid)
    found = frames_by_slice(seg, label.shape, geometry)
    assert set(found) == set(NAMES.values())
    for value, text in NAMES.items():
        assert np.array_equal(found[text], label == value)
    check_trained(server, uid, placed, ("not in it",))
    forget_local_labels(server)
    check_trained(server, uid, placed)


def test_another_readers_segmentation_agrees(pacs, series, server, tmp_path):
    """dcmqi's own reader, on the SEG of the oblique series: the number of voxels of each segment, by name."""
    tool = Path(sys.executable).with_name("segimage2itkimage")
    need(None if tool.exists() else "segimage2itkimage (package dcmqi) is not there")
    (seg,) = segs(pacs, series["oblique"])
    seg.save_as(tmp_path / "seg.dcm")
    subprocess.run([tool, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    meta = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    counts = {}
    for entry in (e for group in meta for e in group):
        voxels = np.asarray(nib.load(tmp_path / f"{entry['labelID']}.nii.gz").dataobj)
        counts[entry["SegmentLabel"]] = int((voxels > 0).sum())
    label = label_of(list(WHOLE).index("oblique"))
    assert counts == {name: int((label == value).sum()) for value, name in NAMES.items()}


def test_a_newer_segmentation_with_other_numbers_is_learned_under_its_names(server, pacs, series, tmp_path):
    """As a viewer exports it: segments in alphabetical order, frames in another order, a series of its own."""
    uid = series["axial"]
    (seg,) = segs(pacs, uid)
    expected = as_sent(volume(server, uid, tmp_path), label_of(0), WHOLE["axial"])
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
    sent = io.BytesIO()
    seg.save_as(sent)
    requests.post(f"{pacs}/instances", data=sent.getvalue(), timeout=30).raise_for_status()
    check_trained(server, uid, expected)
    assert (
        server.get(f"/datastore/label/info?label={uid}&tag=final").json()["SeriesInstanceUID"] == seg.SeriesInstanceUID
    )


def test_missing_slices_are_reported_at_each_click_and_not_saved_as_a_seg(server, pacs, series, tmp_path):
    uid = series["missing slices"]
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


@pytest.mark.parametrize("name", ["gantry tilt", "several volumes"])
def test_slices_that_are_no_volume_are_refused(server, series, name):
    answer = server.infer(series[name], {"foreground": [list(CENTRE)]})
    assert answer.status_code == 422
    assert BROKEN[name][1] in answer.json()["detail"]
    assert server.get(f"/datastore/image?image={series[name]}").status_code == 422


def test_a_value_without_a_name_and_an_empty_label_are_refused(server, pacs, series, tmp_path):
    uid = series["reversed"]
    image, before = volume(server, uid, tmp_path), len(segs(pacs, uid))
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
    assert len(server.get("/proxy/dicom/qido/studies").json()) == len(series) - 1
    (one,) = server.get(f"/proxy/dicom/qido/series?SeriesInstanceUID={series['axial']}").json()[:1]
    assert one["0020000E"]["Value"]


def test_series_that_are_no_volume_do_not_stop_the_queue(server, series):
    answer = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["id"] == series["missing slices"]


def test_no_patient_is_named_in_the_log(server, series):
    log = server.log.read_text()
    assert series["oblique"] in log
    for identifier in orthanc.IDENTIFIERS:
        assert identifier not in log
