"""The app on a DICOMweb server: a real Orthanc."""

import time

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

from tests.app import orthanc
from tests.app.serving import shipped_model, start, stop
from tests.app.volumes import CENTRE_IJK, SHAPE, scan, target

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

CLICK = list(CENTRE_IJK)
PAUSE = 6  # seconds; the lists are asked for again when nobody has clicked for five


pacs = pytest.fixture(scope="module")(orthanc.served)


@pytest.fixture(scope="module")
def series(pacs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    return [orthanc.send_series(pacs, scan(seed), folder, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def server(pacs, series, tmp_path_factory):
    running = start(f"{pacs}/dicom-web", tmp_path_factory.mktemp("home"), *shipped_model())
    yield running
    stop(running)


@pytest.fixture
def client(server, tmp_path):
    return MONAILabelClient(server.url, str(tmp_path), "user-xyz")


def voxels(path: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0)


def test_the_server_starts_offline_and_counts_the_series(client, server):
    assert client.info()["datastore"]["total"] == 2
    assert "dcmqi" not in server.log.read_text()


def test_a_click_on_a_series(server, series, tmp_path):
    request = {"foreground": [CLICK], "background": [], "result_extension": ".nrrd", "result_dtype": "uint8"}
    answer = server.infer(series[0], request, output="image")
    assert answer.status_code == 200
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    mask = voxels(str(tmp_path / "mask.nrrd"))
    assert mask.shape == SHAPE
    assert mask[CENTRE_IJK] == 1
    assert 2 * (mask & target()).sum() / (mask.sum() + target().sum()) > 0.5


def test_the_second_click_finds_the_volume_of_the_first(client, series, server):
    first = client.infer("fastsam3d", series[1], {"foreground": [CLICK]})[1]["latencies"]
    second = client.infer("fastsam3d", series[1], {"foreground": [CLICK, [c + 2 for c in CLICK]]})[1]["latencies"]
    assert "encode" in first  # it may have been read ahead
    assert not {"read", "encode"} & set(second)
    assert not [path for path in server.temporary.glob("*.nii.gz") if not path.name.startswith("fastsam3d-")]


@pytest.mark.parametrize("image", ["1.2.3.4.5", "../../x", "..", "1.2/../..", "1." * 40 + "1", "/etc", "a b"])
def test_an_unknown_series_is_a_404_and_leaves_no_trace(server, image, tmp_path_factory):
    cache = server.temporary.parent / ".cache"
    before = sorted(cache.rglob("*"))
    answer = server.infer(image, {"foreground": [CLICK]})
    assert answer.status_code == 404
    assert "There is no image" in answer.json()["detail"]
    assert sorted(cache.rglob("*")) == before


def test_a_dicom_segmentation_as_the_answer(server, series):
    request = {"foreground": [CLICK], "label_info": [{"name": "ball"}], "result_extension": ".nii.gz"}
    answer = server.infer(series[0], request, output="dicom_seg")
    assert answer.status_code == 200
    assert answer.content[128:132] == b"DICM"


@pytest.mark.parametrize("label_info", [None, [], {"name": "ball"}, "ball", ["ball"]])
def test_a_dicom_segmentation_needs_names(server, series, label_info):
    request = {"foreground": [CLICK], "label_info": label_info, "result_extension": ".nii.gz"}
    answer = server.infer(series[0], request, output="dicom_seg")
    assert answer.status_code == 422
    assert "needs label_info" in answer.json()["detail"]


@pytest.mark.parametrize("count", [4, 64])  # what is denied often enough is nothing, to most weights
def test_a_mask_is_a_dicom_segmentation_unless_it_is_empty(server, series, count):
    request = {"foreground": [[0, 0, 0]], "background": [[0, 0, 0]] * count, "result_extension": ".nii.gz"}
    empty = server.infer(series[0], request, output="json").json()["voxels"] == 0
    answer = server.infer(series[0], {**request, "label_info": [{"name": "ball"}]}, output="dicom_seg")
    if empty:
        assert answer.status_code == 422
        assert "mask is empty" in answer.json()["detail"]
    else:
        assert answer.status_code == 200
        assert answer.content[128:132] == b"DICM"


def test_a_saved_label_reaches_the_pacs_and_is_counted_at_once(client, pacs, series):
    assert client.info()["datastore"]["completed"] == 0
    mask, _ = client.infer("fastsam3d", series[0], {"foreground": [CLICK], "label": "ball"})
    client.save_label(series[0], mask, params={"label_info": [{"name": "ball", "idx": 1}]})
    found = requests.get(f"{pacs}/dicom-web/series?Modality=SEG", timeout=30).json()
    assert len(found) == 1
    sample = client.next_sample("first", {})
    assert sample["id"] == series[1]
    time.sleep(PAUSE)
    assert client.info()["datastore"]["completed"] == 1


def test_a_click_after_a_pause_does_not_ask_the_pacs_for_its_lists(client, pacs, series, tmp_path):
    assert client.info()["datastore"]["total"] == 2
    orthanc.send_series(pacs, scan(3)[:, :, :8], tmp_path, seed=3)
    time.sleep(PAUSE)
    client.infer("fastsam3d", series[0], {"foreground": [CLICK]})
    assert client.info()["datastore"]["total"] == 2
    time.sleep(PAUSE)
    assert client.info()["datastore"]["total"] == 3
