"""The benchmark runs, says what it ran, and compares like with like; nothing here judges a duration."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
import torch
from lib import cli
from lib.benchmarks import WAYS_BACK
from lib.benchmarks.attention import AttentionRow, using
from lib.benchmarks.ct import same_scan, write_scan
from lib.benchmarks.memory import MemoryRow
from lib.benchmarks.plot import draw
from lib.benchmarks.scale import ScaleRow, TogetherRow
from lib.benchmarks.stock_pipeline import StockClick
from lib.benchmarks.table import PaddedAttention, TableRow, resized
from lib.sam import weights
from lib.sam.benchmark import PUBLISHED, Row, alternate, decode_as_published
from lib.sam.build import build_sam
from lib.sam.evaluate import dice
from lib.sam.geometry import PatchFrame
from lib.sam.intensity import normalise
from lib.sam.networks.attention import DenseAttention
from lib.sam.networks.prompt_maps import NEGATIVE, POSITIVE
from lib.sam.preprocess import read_volume
from lib.sam.zoo import get_spec
from PIL import Image
from torch.nn import functional as F

from tests.app.serving import shipped_weights

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"
KEYS = {"part", "case", "ours_ms", "reference_ms", "ratio", "rounds", "threads", "dtype", "device"}


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(APP), "benchmark", *words], capture_output=True, text=True, cwd=cwd)


def check_rows(path: Path, rounds: set[int]) -> list[dict]:
    rows = json.loads(path.read_text())
    for row in rows:
        assert set(row) - {"dice"} == KEYS
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
    words = ["click", "--size", "64,64,40", "--rounds", "1", "--threads", "1", "--device", "cpu", "--json", "rows.json"]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = check_rows(tmp_path / "rows.json", {1, 2})
    assert [row["part"] for row in rows] == ["click"] * 4
    for kind, rounds in (("first click", 1), ("refinement click", 2)):
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
    assert [row["part"] for row in rows] == ["encode"] * 3 + ["decode"] * 3
    for first, own, published in (rows[:3], rows[3:]):
        assert "dice" not in first
        assert own["case"] == "fastsam3d_compact against the same in eager float32, its weights"
        assert published["case"] == f"{PUBLISHED} against the same in eager float32, random weights"
        assert (first["ours_ms"], first["reference_ms"]) == (own["ours_ms"], published["reference_ms"])
        assert own["dice"] >= 0.995
        assert published["dice"] >= 0.99  # a mask of noise: half of its logits are near 0


def keys(row: type) -> set[str]:
    return set(row.__dataclass_fields__)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_scale_and_read(tmp_path):
    words = ["memory", "scale", "read", "--rounds", "1", "--threads", "1", "--device", "cpu", "--size", "64,64,40"]
    words += ["--volumes", "2", "--volume-size", "48,48,32", "--cache-gb", "0.5"]
    words += ["--sizes", "48,48,32", "--clicks", "3", "--clients", "2", "--pause", "0"]
    done = run(*words, "--json", "rows.json", "--plot", "rows.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    one, many = rows[:2]
    assert set(one) == set(many) == keys(MemoryRow)
    assert (one["volumes"], one["settled_after"], one["case"]) == (1, 0, "one 64x64x40 int16 scan open")
    assert (many["volumes"], many["settled_after"], many["cache_gb"]) == (2, 1, 0.5)
    for row in (one, many):
        assert 100 < row["before_mb"] and row["after_mb"] <= row["peak_mb"]
        assert row["growth_mb"] == pytest.approx(row["after_mb"] - row["before_mb"], abs=0.2)
    *single, together = rows[2:-1]
    assert [row["case"] for row in single] == [
        "first click on 48x48x32",
        "refinement click on 48x48x32",
        "click number 3 after those before it",
        "3 clicks at once on an open scan",
    ]
    assert [row["requests"] for row in single] == [1, 4, 1, 1]
    for row in single:
        assert set(row) == keys(ScaleRow)
        assert 0 < row["median_ms"] <= row["largest_ms"]
    assert set(together) == keys(TogetherRow)
    assert (together["clients"], together["loads"]) == (2, 1)
    assert together["alone_requests"] >= 2 and together["beside_requests"] >= 1
    assert together["added_largest_ms"] == pytest.approx(
        together["beside_largest_ms"] - together["alone_median_ms"], abs=0.2
    )
    assert set(rows[-1]) == KEYS
    assert (rows[-1]["part"], rows[-1]["rounds"]) == ("read", 1)
    assert rows[-1]["case"] == "first click on 64x64x40, nibabel reads the same .nii.gz"
    with Image.open(tmp_path / "rows.png") as image:
        assert image.width > 500


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_an_interrupted_benchmark_leaves_no_server(tmp_path):
    words = [sys.executable, str(APP), "benchmark", "read", "--size", "16,16,16", "--rounds", "1", "--threads", "1"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        servers: list[psutil.Process] = []
        while not servers and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            servers = [p for p in psutil.Process(process.pid).children() if "start_server" in p.cmdline()]
        assert servers
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        gone, alive = psutil.wait_procs(servers, 10)
        assert gone and not alive
    finally:
        process.kill()


def test_attention_and_table(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = [
        "attention",
        "table",
        "--tokens",
        "512",
        "--cube",
        "32",
        "--samples",
        "1",
        "--rounds",
        "1",
        "--threads",
        "1",
    ]
    assert (
        cli.main(["benchmark", *words, "--device", "cpu", "--json", str(out), "--plot", str(tmp_path / "x.png")]) == 0
    )
    rows = json.loads(out.read_text())
    layers = [row for row in rows if row["part"] == "attention"]
    assert {row["form"] for row in layers} == {"dense", "strided", "segment_dilated"}
    for row in layers:
        assert set(row) == keys(AttentionRow)
        assert row["tokens"] == 512 and row["ms"] > 0
        assert row["difference"] < (1e-5 if row["dtype"] == "float32" else 3e-2)
    exact = [row for row in layers if (row["backend"], row["dtype"]) == ("eager", "float32")]
    assert len(exact) == 5 and {row["difference"] for row in exact} == {0}
    assert {"torch math", "torch flash"} <= {row["backend"] for row in layers}
    sam, padded, exact, eager, served, ours = rows[len(layers) :]
    assert set(sam) == keys(TableRow)
    assert sam["missing"] is None or "package transformers" in sam["missing"]
    assert sam["slices"] == 32 and sam["extrapolated"] == (sam["missing"] is None)
    assert "as published, with its padding" in padded["case"] and "without" in exact["case"]
    assert [row["parameters"] for row in (padded, eager)] == [exact["parameters"], served["parameters"]]
    assert (eager["case"], eager["ratio"], ours["slices"]) == (f"{PUBLISHED}, eager float32", 1, 0)
    for row in (padded, exact, eager, served, ours):
        assert row["total_ms"] == pytest.approx(row["encode_ms"] + row["decode_ms"], abs=0.02)
    assert capsys.readouterr().out.count("\ntable ") == 6


def test_the_padded_window_gives_the_shortcuts_values():
    torch.manual_seed(0)
    exact = DenseAttention(24, 3, 5, relative=True).eval()
    for name in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
        torch.nn.init.normal_(getattr(exact, name))
    x = torch.randn(1, 3, 3, 3, 24)
    with torch.inference_mode():
        torch.testing.assert_close(PaddedAttention(exact)(x), exact(x), rtol=1e-5, atol=1e-5)


def test_the_published_decoder_gives_our_decoders_values():
    spec = resized(get_spec(PUBLISHED), 32)
    torch.manual_seed(0)
    model = build_sam(spec).eval()
    embedding = torch.randn(1, spec.decoder.width, 2, 2, 2), ()
    points = torch.tensor([[[3.0, 9.0, 20.0]]]), torch.tensor([[POSITIVE]])
    before = torch.randn(1, 1, 8, 8, 8)
    with torch.inference_mode():
        expected = model.decode(embedding, points, before)[0]
        found = decode_as_published(model, embedding, points, before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="flash-attn"), using("flash-attn"):
        pass


def test_bars_of_rows_that_hold_nothing(tmp_path):
    missing = TableRow("table", "x", None, None, None, None, 0.0, 1, 0, False, 0, 1, "float32", "cpu", "not there")
    draw([missing], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
    assert "not run: not there" in missing.line()


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
        (["encode", "--weights", "nowhere"], "nowhere"),
        (["--json", "nowhere/rows.json"], "--json: there is no folder 'nowhere'"),
        (["--plot", "rows.jpg"], "--plot takes a file that ends in .png"),
        (["--plot", "nowhere/rows.png"], "--plot: there is no folder 'nowhere'"),
        (["repmedsam", "--plot", "rows.png"], "--plot draws"),
        (["memory", "--volumes", "0"], "--volumes takes"),
        (["memory", "--volumes", "100000"], "--volumes takes"),
        (["memory", "--volume-size", "a,b,c"], "--volume-size takes three"),
        (["memory", "--cache-gb", "nan"], "--cache-gb takes"),
        (["scale", "--sizes", "64,64,64", "9"], "--sizes takes three"),
        (["scale", "--clicks", "1,0"], "--clicks takes"),
        (["scale", "--clicks", "1000"], "--clicks takes"),
        (["scale", "--clients", "1"], "--clients takes"),
        (["scale", "--pause", "-1"], "--pause takes"),
        (["attention", "--tokens", "500"], "--tokens takes"),
        (["table", "--cube", "100"], "--cube takes"),
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
    again = same_scan(scan, tmp_path / "again.nii.gz")
    assert (again.name, again.clicks) == ("again", scan.clicks)
    assert again.path.read_bytes() == scan.path.read_bytes()


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
