"""`evaluate` with another MONAI Label server as a model: here the app's own server, so that the answers must agree."""

import json

import nibabel as nib
import numpy as np
import pytest
import requests
from lib.cli import main

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    place = np.moveaxis(np.indices((50, 46, 30)), 0, -1)
    inside = (((place - [22, 20, 14]) * [2.0, 2.0, 3.0]) ** 2).sum(-1) <= 20.0**2
    image = np.random.default_rng(0).normal(40, 8, inside.shape) + 100 * inside
    affine = np.array([[0.0, -2, 0, 10], [-2, 0, 0, 5], [0, 0, 3, -7], [0, 0, 0, 1]])  # stored in another order
    labels = inside.astype(np.uint8)
    labels[38:44, 36:42, 20:26] = 2
    for kind, array in (("images", image.astype(np.int16)), ("labels", labels)):
        (folder / kind).mkdir()
        nib.save(nib.Nifti1Image(array, affine), folder / kind / "ball.nii.gz")
    return folder


def test_a_server_is_a_model_like_the_others(server, pair, tmp_path, monkeypatch):
    sent = []
    plain = requests.Session.request

    def noted(self, method, url, **given):
        sent.append((method, url.removeprefix(server.url).rpartition("/")[0] + "/"))
        return plain(self, method, url, **given)

    monkeypatch.setattr(requests.Session, "request", noted)
    remote = f"{server.url}#fastsam3d"
    before = server.get("/datastore/").json()
    arguments = [
        "--images",
        str(pair / "images"),
        "--labels",
        str(pair / "labels"),
        "--clicks",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(["evaluate", *arguments, "--model", f"fastsam3d,{remote}"]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert [(r["model"], r["label"]) for r in rows] == [("fastsam3d", 1), ("fastsam3d", 2), (remote, 1), (remote, 2)]
    for ours, theirs in zip(rows[:2], rows[2:]):
        assert ours["dice"] == theirs["dice"] and ours["nsd"] == theirs["nsd"]
        assert theirs["box"] is None and min(theirs["seconds"]) > 0
    assert rows[0]["dice"][0] > 0.6
    methods = [method for method, path in sent if path == "/session/"]
    assert methods == ["PUT", "DELETE"]  # once for both structures
    assert server.get("/datastore/").json() == before  # nothing is left in the studies
    left = [p for p in server.temporary.parent.rglob("ball*") if p.is_file()]
    assert not left, f"the scan was left on the server: {left}"


def test_a_server_without_that_model(server, pair, tmp_path, capsys):
    arguments = ["--images", str(pair / "images"), "--labels", str(pair / "labels"), "--out", str(tmp_path)]
    assert main(["evaluate", *arguments, "--model", f"{server.url}#other"]) == 2
    assert "offers no model 'other'" in capsys.readouterr().err
