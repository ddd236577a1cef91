"""The benchmark runs, says what it ran, and compares like with like; nothing here judges a duration."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from lib import cli
from lib.benchmarks import WAYS_BACK
from lib.benchmarks.ct import write_scan
from lib.benchmarks.stock_pipeline import StockClick
from lib.sam import weights
from lib.sam.benchmark import Row, alternate
from lib.sam.evaluate import dice
from lib.sam.geometry import PatchFrame
from lib.sam.intensity import normalise
from lib.sam.networks.prompt_maps import NEGATIVE, POSITIVE
from lib.sam.preprocess import read_volume
from torch.nn import functional as F

from tests.app.serving import shipped_weights

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
KEYS = {"part", "case", "ours_ms", "reference_ms", "ratio", "rounds", "threads", "dtype", "device"}


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(APP), "benchmark", *words], capture_output=True, text=True, cwd=cwd)


def check_rows(path: Path, rounds: set[int]) -> list[dict]:
    rows = json.loads(path.read_text())
    for row in rows:
        assert set(row) == KEYS
        assert row["ours_ms"] > 0 and row["reference_ms"] > 0
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ours_ms"], rel=0.01, abs=0.01)
        assert (row["threads"], row["device"]) == (1, "cpu")
        assert row["dtype"] in ("float32", "bfloat16")
        assert row["rounds"] in rounds
    return rows


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_click(tmp_path):
    words = ["click", "--size", "64,64,40", "--rounds", "2", "--threads", "1", "--device", "cpu", "--json", "rows.json"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = check_rows(tmp_path / "rows.json", {2, 4})
    assert [row["part"] for row in rows] == ["click"] * 4
    for kind, rounds in (("first click", 2), ("refinement click", 4)):
        found = [row for row in rows if row["case"].startswith(f"{kind} on 64x64x40, stock pipeline with")]
        assert [row["rounds"] for row in found] == [rounds, rounds]
        assert len({row["case"] for row in found}) == 2
        assert len({row["ours_ms"] for row in found}) == 1
    assert done.stdout.count("click   ours") == 4


def test_encode_and_decode(tmp_path):
    words = ["encode", "decode", "--rounds", "1", "--threads", "1", "--device", "cpu", "--json", "rows.json"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = check_rows(tmp_path / "rows.json", {1})
    assert [row["part"] for row in rows] == ["encode", "decode"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "the parts are encode, decode, click"),
        (["--size", "64,64"], "--size takes three"),
        (["--size", "64,64,4"], "--size takes three"),
        (["--rounds", "0"], "--rounds takes"),
        (["--threads", "-1"], "--threads takes"),
        (["--device", "abacus"], "abacus"),
        (["click", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_status_2(capsys, words, message):
    assert cli.main(["benchmark", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_sides_take_turns():
    order = []
    taken = alternate([lambda: order.append("a"), lambda: order.append("b")], rounds=2, warm_up=1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(side) for side in taken] == [2, 2]


def test_a_row_holds_medians():
    row = Row.of("encode", "x", [1.0, 9.0, 2.0], [20.0, 4.0, 5.0], 1, torch.bfloat16, "cpu")
    assert (row.ours_ms, row.reference_ms, row.ratio, row.rounds, row.dtype) == (2.0, 5.0, 2.5, 3, "bfloat16")


def test_a_generated_scan(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", (64, 60, 40), 5, seed=1)
    volume = read_volume(scan.path)
    assert volume.array.dtype == np.int16
    assert volume.array.shape == (64, 60, 40)
    assert volume.array.min() < -900 < 100 < volume.array.max()
    assert len({ijk for ijk, _ in scan.clicks}) == 5
    assert [positive for _, positive in scan.clicks] == [True, False, True, False, True]
    assert volume.grid.contains(np.array([ijk for ijk, _ in scan.clicks])).all()
    around = tuple(slice(c - 2, c + 3) for c in scan.clicks[0][0])
    assert volume.array[around].mean() > 100


@pytest.fixture(scope="module")
def network():
    resolved = weights.resolve("fastsam3d", APP / "model", configured=shipped_weights().partition("=")[2])
    return weights.load_sam(resolved, "cpu"), resolved.spec


@pytest.mark.parametrize("way_back", WAYS_BACK)
@pytest.mark.parametrize("clicks", [1, 3])
def test_the_stock_pipeline_gives_the_networks_own_mask(network, tmp_path, way_back, clicks):
    """Against the same network on the patch around the click, without any of the pipeline."""
    model, spec = network
    scan = write_scan(tmp_path / "scan.nii.gz", (150, 130, 96), 3, seed=2)
    made = scan.clicks[:clicks]
    task = StockClick(model, spec, {"x": 1}, "cpu", way_back)
    request = {
        "image": str(scan.path),
        "foreground": [list(ijk) for ijk, positive in made if positive],
        "background": [list(ijk) for ijk, positive in made if not positive],
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    file, _ = task(request)
    image = sitk.ReadImage(file)
    Path(file).unlink()
    volume = read_volume(scan.path)
    assert image.GetSize() == volume.array.shape
    np.testing.assert_allclose(np.array(image.GetOrigin()) * [-1, -1, 1], volume.grid.affine[:3, 3], atol=1e-4)

    frame = PatchFrame.around(volume.grid, made[0][0], spec.patch_size, spec.spacing_mm, spec.lattice)
    patch = torch.from_numpy(normalise(frame.crop(volume.array), frame.inside(), spec.intensity))[None]
    ordered = sorted(made, key=lambda click: not click[1])  # as a request lists them: foreground first
    points = torch.tensor(frame.to_patch([ijk for ijk, _ in ordered])).round().float()[None]
    labels = torch.tensor([[POSITIVE if positive else NEGATIVE for _, positive in ordered]])
    with torch.inference_mode():
        embedding = model.encode(patch)
        logits = torch.zeros(1, 1, *(spec.mask_size,) * 3)
        for n in range(clicks):
            for _ in range(spec.first_passes if n == 0 else 1):
                logits, _ = model.decode(embedding, (points[:, : n + 1], labels[:, : n + 1]), logits)
        logits = F.interpolate(logits, size=(spec.patch_size,) * 3, mode="trilinear", align_corners=False)[0, 0]
    box, corner = frame.paste(logits.numpy())
    expected = np.zeros(volume.array.shape, dtype=bool)
    expected[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
    assert dice(sitk.GetArrayFromImage(image).T > 0, expected) > 0.9
