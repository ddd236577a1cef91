"""Train, as a client does it: annotate, press the button, click; why it failed; and back to earlier weights."""

import os
import subprocess
import sys

import pytest
from lib.sam.versions import rollback

from tests.app.learning import IDLE, click, copy_app, next_sample, save_label, stats, train, wait_for_training
from tests.app.serving import start, stop
from tests.app.volumes import CENTRE_IJK, save, scan, target

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING_SECONDS = int(os.environ.get("FASTSAM3D_TRAINING_SECONDS", 280))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return copy_app(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def own_server(app, tmp_path_factory):
    """A server with weights of its own and three images, none annotated."""
    studies = tmp_path_factory.mktemp("training") / "studies"
    studies.mkdir()
    for n in (1, 2, 3):
        save(studies / f"case{n}.nii.gz", scan(n))
    conf = ("models", "fastsam3d,repmedsam_2d", "strategy", "uncertainty", "labels", "ball:4,air:1")
    running = start(studies, tmp_path_factory.mktemp("home"), *conf, app=app)
    yield running
    stop(running)


def test_what_a_client_is_told_before_anything_is_annotated(own_server):
    info = own_server.get("/info/").json()
    assert list(info["trainers"]) == list(info["train_stats"]) == ["fastsam3d", "repmedsam"]
    for name in info["trainers"]:
        config = info["trainers"][name]["config"]
        assert {"minutes", "epochs", "learning_rate", "freeze_encoder"} <= set(config)
        assert not {"foreground", "background", "label", "roi"} & set(config)
        assert {"epoch": 0, "best_metric": 0.0}.items() <= info["train_stats"][name].items()
        assert info["train_stats"][name]["total_epochs"] > 0
    assert "fastsam3d_auto" not in info["models"]  # nothing has taught it
    assert set(info["scoring"]) == {"uncertainty"}


def test_a_training_that_cannot_be_says_why_in_the_client(own_server):
    train(own_server, {})
    task = wait_for_training(own_server, TRAINING_SECONDS)
    assert task["status"] == "ERROR"
    assert any("at least 2 annotated cases" in line for line in task["details"])
    found = stats(own_server)
    assert found["state"] == "failed"
    assert "at least 2 annotated cases" in found["message"]


def box(server):
    """A box in a slice; the answer's parameters."""
    roi = [20, 70, 20, 60, CENTRE_IJK[2], CENTRE_IJK[2]]
    return server.infer("case3", {"roi": roi}, model="repmedsam_2d", output="json").json()


def test_training_publishes_and_the_next_click_and_box_use_it_without_a_restart(own_server, app, tmp_path):
    before, boxed = click(own_server, "case3", CENTRE_IJK), box(own_server)
    for n, value in ((1, 1), (2, 4)):  # each client numbers as it likes; the name counts
        label = save(tmp_path / f"label{n}.nii.gz", (target() * value).astype("uint8"))
        save_label(own_server, f"case{n}", label, {value: "Ball" if n == 1 else "ball"})
    assert list(train(own_server, IDLE, every=True)) == ["fastsam3d", "repmedsam"]  # one after the other
    assert click(own_server, "case3", CENTRE_IJK)["weights"] == before["weights"]  # it answers meanwhile
    task = wait_for_training(own_server, TRAINING_SECONDS)
    log = own_server.log.read_text()
    assert task["status"] == "DONE", log[-4000:]
    found = stats(own_server)
    assert found["state"] == "accepted", found
    assert found["epoch"] == found["total_epochs"] == 3  # two folds and the candidate
    assert found["best_metric"] > 0
    after = click(own_server, "case3", CENTRE_IJK)
    assert after["weights"]["version"] != before["weights"]["version"]
    assert after["weights"]["name"] == found["run"]
    assert after["voxels"] == pytest.approx(before["voxels"], rel=0.01)
    slices, answer = stats(own_server, "repmedsam"), box(own_server)
    assert (slices["state"], slices["epoch"], slices["total_epochs"]) == ("accepted", 3, 3), slices
    assert answer["weights"]["name"] == slices["run"] != boxed["weights"]["name"]
    assert answer["voxels"] == pytest.approx(boxed["voxels"], rel=0.01) and answer["voxels"] > 0
    for model, run in (("fastsam3d", found), ("repmedsam", slices)):
        folder = app / "model" / "runs" / model / run["run"]
        assert "Dice per click" in (folder / "report.html").read_text()
        assert (folder / "report.png").stat().st_size > 1000
        assert str(folder / "report.html") in log
        assert not (folder / "patches").exists()


def test_the_trainer_for_slices_alone_and_back_again(own_server, app):
    first = box(own_server)["weights"]
    train(own_server, {**IDLE, "seed": 2, "guard_cases": 0}, model="repmedsam")
    assert wait_for_training(own_server, TRAINING_SECONDS)["status"] == "DONE", own_server.log.read_text()[-4000:]
    found = stats(own_server, "repmedsam")
    assert found["state"] == "accepted"
    assert box(own_server)["weights"]["name"] == found["run"] != first["name"]
    assert rollback(app / "model", "repmedsam", None, "2026-01-01T00:00:00+00:00") == first["name"]
    assert box(own_server)["weights"] == first


def test_a_rollback_serves_the_earlier_weights_at_the_next_click(own_server, app):
    now = click(own_server, "case3", CENTRE_IJK)["weights"]

    def weights(*words):
        return subprocess.run([sys.executable, str(app), "weights", *words], capture_output=True, text=True, check=True)

    assert f"accepted  {now['name']}" in weights("history").stdout
    weights("rollback")
    assert click(own_server, "case3", CENTRE_IJK)["weights"]["version"] != now["version"]
    weights("rollback", now["name"])
    assert click(own_server, "case3", CENTRE_IJK)["weights"] == now


def test_what_was_annotated_is_found_in_another_image_without_a_click(own_server):
    model = own_server.get("/info/").json()["models"]["fastsam3d_auto"]
    assert (model["type"], model["labels"]) == ("segmentation", {"Ball": 1})
    answer = own_server.infer("case3", {}, model="fastsam3d_auto", output="json").json()
    assert answer["label_names"] == {"Ball": 1}
    assert answer["voxels"] == pytest.approx(target().sum(), rel=0.4)


def test_the_next_sample_comes_with_a_reason(own_server):
    answer = next_sample(own_server, "random")  # which --conf strategy makes the uncertain one
    assert answer["id"] == "case3"
    assert "unsure" in answer["reason"]
    assert answer["uncertainty"]["version"] == click(own_server, "case3", CENTRE_IJK)["weights"]["version"]
    assert "by name" in next_sample(own_server, "first")["reason"]
