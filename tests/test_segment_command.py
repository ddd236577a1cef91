"""`segment` with the models for images: slices, photographs, archives. Weights are untrained and written by the exporter."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from lib import cli
from PIL import Image

from tests.sam.models2d import write_small_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(weights, capsys):
    """Calls the command; returns its exit status, its JSON (None without one) and stderr."""

    def call(*words, json_=True):
        status = cli.main(["segment", *map(str, words), "--weights", str(weights), *(["--json"] if json_ else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if json_ and out else out, err

    return call


@pytest.fixture
def volume(tmp_path):
    values = np.random.default_rng(0).normal(300, 40, (40, 36, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def mask_of(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_box_in_a_volume(run, volume, tmp_path):
    out = tmp_path / "mask.nii.gz"
    status, report, _ = run(volume, "--model", "repmedsam", "--box", "30,5,6,30,4,1", "--out", out)
    assert status == 0
    mask = mask_of(out)
    assert mask.shape == (40, 36, 6)
    assert not mask[:, :, [0, 5]].any()
    assert report["voxels"] == mask.sum()
    assert report["weights"]["name"] == "repmedsam-untrained-v1"


def test_one_slice_the_first(run, volume, tmp_path):
    out = tmp_path / "mask.nii.gz"
    words = ("--model", "repmedsam_2d", "--box", "5,30,6,30,0,0", "--click", "3,3,0,-", "--window", "percentiles")
    assert run(volume, *words, "--out", out)[0] == 0
    assert not mask_of(out)[:, :, 1:].any()


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "deep.png"])
def test_a_photograph(run, tmp_path, name):
    if name.startswith("rgb"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / name)
    else:
        deep = np.random.default_rng(0).integers(0, 65536, (50, 70)).astype(np.uint16)
        Image.fromarray(deep).save(tmp_path / name)
    out = tmp_path / "mask.png"
    status, report, _ = run(tmp_path / name, "--box", "60,5,10,45", "--out", out)
    mask = np.array(Image.open(out))
    assert status == 0
    assert (mask.shape, mask.dtype) == ((50, 70), np.uint8)
    assert set(np.unique(mask)) <= {0, 255}
    assert report["pixels"] == [int((mask > 0).sum())]
    assert "swapped" in report["warnings"][0]


def test_several_boxes_and_clicks_on_a_photograph(run, tmp_path):
    photo = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)).save(photo)
    assert run(photo, "--box", "2,2,20,20", "--box", "30,10,60,40", "--out", tmp_path / "m.png")[0] == 0
    assert set(np.unique(np.array(Image.open(tmp_path / "m.png")))) <= {0, 1, 2}
    assert run(photo, "--click", "30,20,+", "--click", "2,2,-", "--out", tmp_path / "c.png")[0] == 0
    assert set(np.unique(np.array(Image.open(tmp_path / "c.png")))) <= {0, 255}


@pytest.mark.parametrize(
    "words, what",
    [
        (["--box", "1,2,3"], "--box takes x0,y0,x1,y1"),
        (["--box", "1,2,1,9"], "must have an area"),
        (["--box", "100,2,190,9"], "must touch the image of 70 x 50"),
        (["--click", "99,2,+"], "must lie in the image of 70 x 50"),
        (["--click", "9,2,3,+"], "--click takes x,y,+"),
        (["--click", "9,2,-"], "at least one click on the object"),
        (["--box", "1,2,9,9", "--box", "1,2,9,9", "--click", "9,2,-"], "give one box"),
        ([], "needs --box"),
        (["--box", "1,2,9,9", "--model", "fastsam3d"], "which the model fastsam3d cannot use"),
        (["--box", "1,2,9,9", "--model", "unet"], "--model takes fastsam3d"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_status_2(run, tmp_path, words, what):
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "x.png")
    status, _, err = run(tmp_path / "x.png", *words, "--out", tmp_path / "m.png")
    assert status == 2
    assert what in err
    assert err.count("\n") == 1
    assert not (tmp_path / "m.png").exists()


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "cases"
    folder.mkdir()
    stack = np.random.default_rng(0).integers(0, 256, (4, 30, 40), dtype=np.uint8)
    np.savez_compressed(folder / "3DBox_a.npz", imgs=stack, boxes=[[3, 4, 0, 20, 22, 2]], spacing=[1.0, 1, 3])
    np.savez_compressed(folder / "2DBox_b.npz", imgs=stack[0], boxes=[[3, 4, 20, 22], [9, 9, 9, 9]])
    (folder / "broken.npz").write_bytes(b"PK\3\4 nothing")
    np.savez_compressed(folder / "objects.npz", imgs=np.array([object()]), boxes=[[1, 2, 3, 4]])
    return folder


def test_a_folder_of_archives_goes_on_past_bad_ones(run, archives, tmp_path):
    status, report, _ = run(archives, "--out", tmp_path / "answers")
    assert status == 3
    cases = {case["file"]: case for case in report["cases"]}
    assert sorted(p.name for p in (tmp_path / "answers").iterdir()) == ["2DBox_b.npz", "3DBox_a.npz"]
    assert "not a whole .npz archive" in cases["broken.npz"]["error"]
    assert "Python objects" in cases["objects.npz"]["error"]
    assert "box 2 must have an area" in cases["2DBox_b.npz"]["warnings"][0]
    with np.load(tmp_path / "answers" / "3DBox_a.npz", allow_pickle=False) as found:
        assert (found["segs"].shape, found["segs"].dtype) == ((4, 30, 40), np.uint8)
        assert found["spacing"].tolist() == [1, 1, 3]
        assert not found["segs"][3].any()


def test_one_archive(run, archives, tmp_path):
    status, out, _ = run(archives / "2DBox_b.npz", "--out", tmp_path / "b.npz", json_=False)
    assert status == 0
    assert "1 of 2 boxes" in out or "0 of 2 boxes" in out
    assert "warning: box 2" in out
    assert run(archives / "broken.npz", "--out", tmp_path / "c.npz")[0] == 3
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize("out", ["cases", "x.npz"])
def test_archives_are_never_written_over(run, archives, tmp_path, out):
    before = {p.name: p.read_bytes() for p in archives.iterdir()}
    status, _, err = run(archives, "--out", tmp_path / out)
    assert status == 2
    assert "--out must be another folder" in err
    assert {p.name: p.read_bytes() for p in archives.iterdir()} == before
