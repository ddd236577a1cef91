"""A wrong setting or a wrong checkpoint stops the start, in words."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.app.serving import launch, stop

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def words_of_failed_start(tmp_path, *conf: str) -> str:
    (tmp_path / "studies").mkdir()
    server = launch(tmp_path / "studies", tmp_path / "home", *conf)
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
