"""The rest of an annotator's round: next sample, saved label."""

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient

from tests.app.serving import shipped_model, start, stop
from tests.app.volumes import CENTRE_IJK, save, scan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # MONAI Label's client leaves its sockets open
]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """A server whose studies may be changed: three open images."""
    studies = tmp_path_factory.mktemp("labelling") / "studies"
    studies.mkdir()
    for n in (1, 2, 3):
        save(studies / f"case{n}.nii.gz", scan(n))
    running = start(studies, tmp_path_factory.mktemp("home"), *shipped_model(), "labels", "ball:2,air:1")
    yield running
    stop(running)


@pytest.fixture
def client(own_server, tmp_path):
    return MONAILabelClient(own_server.url, str(tmp_path), "user-xyz")


def test_a_round_of_annotation(own_server, client, tmp_path):
    info = client.info()
    assert info["labels"] == ["ball", "air"]
    assert info["models"]["fastsam3d"]["labels"] == {"ball": 2, "air": 1}
    for done, name in enumerate(["case1", "case2", "case3"]):
        assert client.info()["datastore"] | {"label_tags": 0} == {"total": 3, "completed": done, "label_tags": 0}
        sample = client.next_sample("first", {})
        assert sample["id"] == name
        assert sample["path"].endswith(f"{name}.nii.gz")
        request = {"foreground": [list(CENTRE_IJK)], "label": "ball"}
        mask, params = client.infer("fastsam3d", name, request)
        assert params["label_names"] == {"ball": 1}
        saved = client.save_label(name, mask, params={"label_info": [{"name": "ball", "idx": 1}]})
        assert saved["label"] == name
        stored = nib.load(own_server.studies / "labels" / "final" / f"{name}.nii.gz")
        assert np.asarray(stored.dataobj).sum() == params["voxels"]
    assert client.next_sample("first", {}) == client.next_sample("random", {}) == {}


def test_random_offers_the_only_open_image_any_number_of_times(own_server, client):
    save(own_server.studies / "late.nii.gz", scan(4))
    requests.put(
        f"{own_server.url}/datastore/image?image=sent",
        files={"file": ("sent.nii.gz", (own_server.studies / "late.nii.gz").read_bytes())},
        timeout=60,
    ).raise_for_status()
    offered = {client.next_sample("random", {}).get("id") for _ in range(12)}
    assert offered
    assert offered <= {"late", "sent"}


def test_a_label_for_an_unknown_image_is_a_404(own_server, tmp_path):
    label = save(tmp_path / "label.nii.gz", np.zeros((3, 3, 3), np.uint8))
    answer = requests.put(
        f"{own_server.url}/datastore/label?image=nothing", files={"label": (label.name, label.read_bytes())}, timeout=60
    )
    assert answer.status_code == 404
    assert "nothing" in answer.json()["detail"]


def test_an_unknown_strategy_is_a_400(own_server):
    assert requests.post(f"{own_server.url}/activelearning/best", json={}, timeout=60).status_code == 400
