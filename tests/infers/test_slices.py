"""The inference tasks of the models for slices, in process, with untrained weights that the exporter wrote."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from lib.conf import AppConf
from lib.infers.request import SLICE_CONFIG
from lib.infers.slices import SliceInfer
from lib.sam.session import SessionStore
from lib.sam.weights import WeightsError
from lib.sam.weights_files import write_model
from lib.sam.zoo import get_spec2d

from tests.sam.models2d import small_state

SHAPE = (40, 36, 5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for spec in ("repmedsam_compact", "litemedsam_compact"):
        write_model(small_state(spec=spec), get_spec2d(spec), folder, spec)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "scan.nii.gz"
    values = np.random.default_rng(0).normal(300, 50, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return str(path)


@pytest.fixture
def task(model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def make(model: str, folder=model_dir, **more) -> SliceInfer:
        return SliceInfer(
            model, {"liver": 1}, str(folder), SessionStore(2**30),
            weights_model=model.removesuffix("_2d"), dimension=2 if model.endswith("_2d") else 3, **more,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("model", ["repmedsam", "repmedsam_2d", "litemedsam", "litemedsam_2d"])
def test_each_is_served_where_its_weights_are(task, tmp_path, image, model):
    assert not task(model, tmp_path / "none").is_valid()
    with pytest.raises(WeightsError, match=f"no weights for {model.removesuffix('_2d')}"):
        task(model, tmp_path / "none").preload()
    made = task(model)
    assert made.is_valid()
    assert made.info()["config"] == SLICE_CONFIG
    file, params = made({"image": image, "roi": [30, 5, 4, 28, 1, 1], "foreground": [[20, 20, 1]], "label": "liver"})
    mask = sitk.GetArrayFromImage(sitk.ReadImage(file)).transpose(2, 1, 0)
    assert mask.shape == SHAPE
    assert params["model"] == model
    assert params["weights"]["name"] == f"{model.removesuffix('_2d')}-compact-v1"
    assert {"open", "read", "crop", "encode", "decode", "paste", "write", "total"} <= set(params["latencies"])
    if made.dimension == 2:
        assert not mask[:, :, [0, 2, 3, 4]].any()


def test_both_tasks_use_the_weights_that_were_configured():
    conf = AppConf.parse({"weights": "repmedsam=/a,litemedsam_2d=/b"})
    assert [conf.weights_of(m) for m in ("repmedsam", "repmedsam_2d", "litemedsam", "litemedsam_2d", "fastsam3d")] == [
        "/a", "/a", None, "/b", None,
    ]  # fmt: skip
