"""The app's folder alone is enough; a wrong setting or a wrong checkpoint stops the start, in words."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.app.serving import APP, launch, start, stop
from tests.app.volumes import CENTRE_IJK, save, scan

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NOT_OF_THE_REPOSITORY = ("__pycache__", "logs", "bin", "runs", "imported", "accepted", "atlas", ".fetch-*")


def copy_of_the_app(folder: Path, *left_out: str) -> Path:
    ignore = shutil.ignore_patterns(*NOT_OF_THE_REPOSITORY, *left_out)
    return Path(shutil.copytree(APP, folder / "app of mine", ignore=ignore))


def words_of_failed_start(tmp_path, *conf: str, app: Path = APP) -> str:
    (tmp_path / "studies").mkdir()
    server = launch(tmp_path / "studies", tmp_path / "home", *conf, app=app)
    try:
        assert server.process.wait(120) != 0
    finally:
        stop(server)
    return server.log.read_text()


def test_an_unknown_setting(tmp_path):
    log = words_of_failed_start(tmp_path, "lables", "liver")
    assert "--conf knows the keys" in log
    assert "'lables'" in log


def test_weights_that_do_not_fit(tmp_path):
    file = tmp_path / "wrong.safetensors"
    save_file({"image_encoder.nothing": np.zeros(3, np.float32)}, file)
    log = words_of_failed_start(tmp_path, "weights", str(file))
    assert "WeightsError" in log
    assert "wrong.safetensors" in log


def test_weights_that_are_not_there(tmp_path):
    log = words_of_failed_start(tmp_path, "weights", str(tmp_path / "missing.safetensors"))
    assert "WeightsError" in log
    assert "missing.safetensors" in log


def test_no_weights_at_all(tmp_path):
    log = words_of_failed_start(tmp_path, app=copy_of_the_app(tmp_path, "*.safetensors"))
    assert "WeightsError" in log
    assert "fastsam3d" in log.split("WeightsError")[-1]


def test_a_copy_of_the_folder_serves(tmp_path):
    (tmp_path / "studies").mkdir()
    save(tmp_path / "studies" / "case1.nii.gz", scan(1))
    server = start(tmp_path / "studies", tmp_path / "home", app=copy_of_the_app(tmp_path))
    try:
        assert {"fastsam3d", "repmedsam", "repmedsam_2d"} <= set(server.get("/info/").json()["models"])
        assert server.infer("case1", {"foreground": [list(CENTRE_IJK)]}, output="json").status_code == 200
        assert "sam_med3d is not offered: there are no weights" in server.log.read_text()
    finally:
        stop(server)
