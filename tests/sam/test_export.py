"""`export`: the files say what the network says, and the networks say what they said before they could be exported."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from lib import cli
from lib.sam import export as exporting
from lib.sam.build import build_network
from lib.sam.export import ExportError, export
from lib.sam.export_check import onnx_runner, sample_patch
from lib.sam.networks.connectedness import (
    at_cells,
    clicked_cells,
    far_from_clicks,
    prompted_maps,
    sweep_by_doubling,
    sweep_by_planes,
)
from lib.sam.networks.sam2d import grey_and_rank
from lib.sam.spec import Decoder2dSpec, DecoderSpec, EncoderSpec, RepVitSpec, Sam2dSpec, SamSpec, TinyVitSpec
from lib.sam.weights import load_sam, resolve
from lib.sam.zoo import get_spec

REPO = Path(__file__).resolve().parents[2]
MODEL_DIR = REPO / "apps" / "fastsam3d" / "model"


def lacking(format: str) -> str | None:
    names = [name for name in exporting.FORMATS[format] if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(names)}: pip install --no-deps -r requirements-export.txt" if names else None


needs_onnx = pytest.mark.skipif(lacking("onnx") is not None, reason=str(lacking("onnx")))
needs_openvino = pytest.mark.skipif(lacking("openvino") is not None, reason=str(lacking("openvino")))

SMALL_ENCODER = EncoderSpec(image_size=32, width=24, depth=2, heads=2, out=24, feedforward_layers=(0,))
COMPACT = get_spec("fastsam3d_compact")
SMALL = {
    "compact": replace(
        COMPACT,
        encoder=replace(SMALL_ENCODER, channels=2, residual="plain", relative_position=False, stem_widths=(4, 8, 8)),
        decoder=replace(COMPACT.decoder, width=96, heads=4, mlp_width=32, iou_width=16, grow=4, sharpen=4),
    ),
    "teacher": SamSpec(
        "teacher",
        replace(SMALL_ENCODER, residual="plain", feedforward_layers=(), window=3, global_layers=(1,)),
        DecoderSpec(width=24, heads=4, mlp_width=32, iou_width=16),
    ),
    "repmedsam": Sam2dSpec(
        "repmedsam",
        RepVitSpec(image_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), out=32),
        Decoder2dSpec(width=32, heads=4, mlp_width=64, iou_width=32),
        upsampling=2,
    ),
    "litemedsam": Sam2dSpec(
        "litemedsam",
        TinyVitSpec(
            image_size=64, widths=(8, 8, 16, 16), depths=(1,) * 4, heads=(1, 1, 2, 2), windows=(4,) * 4, out=32
        ),
        Decoder2dSpec(width=32, heads=4, mlp_width=64, iou_width=32),
    ),
}
SMALL["compact"] = replace(SMALL["compact"], encoder=replace(SMALL["compact"].encoder, out=96))


def small(name: str) -> torch.nn.Module:
    """An untrained network in which nothing is zero, so that every part has an effect."""
    torch.manual_seed(0)
    model = build_network(SMALL[name]).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def run():
    """Calls the command; returns its exit status."""

    def call(*words) -> int:
        return cli.main(["export", *map(str, words)])

    return call


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory) -> dict[str, Path]:
    """The 3D default as ONNX, and where it is asked for the 2D default, which takes half a minute more."""
    folder = tmp_path_factory.mktemp("exported")
    models = {"fastsam3d": "fastsam3d"} | ({"repmedsam": "repmedsam_2d"} if ALL else {})
    for model in models.values():
        assert run("--model", model, "--out", folder / model) == 0
    return {name: folder / model for name, model in models.items()}


ALL = bool(os.environ.get("FASTSAM3D_EXPORT_ALL"))
MODELS = [
    "fastsam3d",
    pytest.param("repmedsam", marks=pytest.mark.skipif(not ALL, reason="half a minute; set FASTSAM3D_EXPORT_ALL=1")),
]
OTHER = {
    "far clicks": ([(3, 120, 77), (60, 61, 90), (0, 0, 0), (64, 100, 30), (64, 64, 64)], [0, 1, 0, 1, 1]),
    "background alone": ([(50, 60, 70)], [0]),
    "flat box": ([(40, 30, 50), (90, 100, 52)], [2, 3]),
    "many": ([(i, 127 - i, 5 * i % 128) for i in range(0, 120, 5)], [i % 2 for i in range(24)]),
}


@needs_onnx
@pytest.mark.parametrize("model", MODELS)
def test_other_clicks_than_those_of_the_check(shipped, model):
    network = load_sam(resolve(model, MODEL_DIR))
    encode, decode = (onnx_runner(shipped[model] / f"{part}.onnx", threads=1) for part in ("encoder", "decoder"))
    flat = model == "repmedsam"
    dims, patch = (2 if flat else 3), sample_patch(network.spec, seed=7)
    features = encode({"image" if flat else "patch": patch})
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        embedding = network.encode(torch.from_numpy(patch))
        for points, labels in OTHER.values():
            points = np.array([[p[:dims] for p in points]], np.float32)
            previous = draw.normal(0, 4, (1, 1, *(network.spec.mask_size,) * dims)).astype(np.float32)
            tensors = torch.from_numpy(points), torch.tensor([labels]), torch.from_numpy(previous)
            if not flat:
                logits, iou = network.decode(embedding, tensors[:2], tensors[2])
            elif 2 in labels:
                logits, iou = network.decode(embedding, None, tensors[0].flatten(1), tensors[2])
            else:
                logits, iou = network.decode(embedding, tensors[:2], None, tensors[2])
                points, labels = np.pad(points, ((0, 0), (0, 1), (0, 0))), [*labels, -1]
            given = {"points": points, "labels": np.array([labels], np.float32), "previous": previous}
            found = decode({**given, **features})
            scale = float(logits.abs().max())
            np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-4 * scale)
            np.testing.assert_allclose(found["iou"], iou.numpy(), atol=1e-4)


@needs_onnx
def test_the_example_of_the_document(shipped, tmp_path):
    code = re.search(r"```python\n(.*?)```", (REPO / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"json", "sys", "pathlib", "numpy", "onnxruntime"}
    (tmp_path / "click.py").write_text(code)
    command = [sys.executable, str(tmp_path / "click.py"), str(shipped["fastsam3d"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    dice = [float(value) for value in re.findall(r"Dice with the ball ([\d.]+)", done.stdout)]
    assert len(dice) == 2 and min(dice) > 0.8, done.stdout


@needs_onnx
@pytest.mark.parametrize("model", MODELS)
def test_the_description_tells_the_truth(shipped, model):
    import onnxruntime

    about = json.loads((shipped[model] / "model.json").read_text())
    assert sorted(path.name for path in shipped[model].iterdir()) == ["decoder.onnx", "encoder.onnx", "model.json"]
    for part in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(str(shipped[model] / f"{part}.onnx"))
        for kind, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [(p["name"], p["shape"]) for p in about[part][kind]] == [(p.name, p.shape) for p in ports]
            assert {p.type for p in ports} == {"tensor(float)"}
    for file in about["weights"]["files"]:
        assert file["sha256"] == sha256((MODEL_DIR / file["name"]).read_bytes()).hexdigest()
    assert about["weights"]["licence"] == "Apache-2.0" and about["warning"] == "not for clinical use"
    assert [step["step"] for step in about["check"]["steps"]] == [
        "encoder",
        "1 click",
        "3 clicks",
        "box",
        "box and click",
    ]
    assert max(max(step["difference"].values()) for step in about["check"]["steps"]) <= 1e-3
    assert min(step.get("dice", 1) for step in about["check"]["steps"]) >= 0.999
    assert (
        min(step.get("positive", 1) for step in about["check"]["steps"]) > 0.001
    )  # the masks that agree are not empty


@pytest.fixture
def written_once(tmp_path_factory, monkeypatch):
    """Graphs of the small networks are written once for all tests, which takes most of the time; later ones are copies."""
    honest = exporting.write_onnx

    def write(graph, path):
        kept = _WRITTEN.setdefault(_key(graph), tmp_path_factory.getbasetemp() / f"graph{len(_WRITTEN)}.onnx")
        if not kept.exists():
            honest(graph, kept)
        shutil.copy(kept, path)

    monkeypatch.setattr(exporting, "write_onnx", write)


_WRITTEN: dict[tuple, Path] = {}


def _key(graph) -> tuple:
    return graph.module.model.spec, len(graph.inputs)


@needs_onnx
@pytest.mark.parametrize("name", ["teacher", "repmedsam", "litemedsam"])
def test_the_published_forms_export(name, tmp_path, written_once):
    report = export(small(name), {"model": name}, "onnx", tmp_path / "out")
    steps = {step["step"]: step for step in report["check"]["steps"]}
    assert ("box" in steps) == (name in ("repmedsam", "litemedsam"))
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == report


@needs_onnx
def test_a_mask_of_zeros_is_none_for_published_image_models(tmp_path, written_once):
    model = small("litemedsam")
    export(model, {}, "onnx", tmp_path / "out")
    decode = onnx_runner(tmp_path / "out" / "decoder.onnx")
    draw = torch.Generator().manual_seed(0)
    embedding, box = torch.randn(1, 32, 16, 16, generator=draw), torch.tensor([[[4.0, 8], [40, 50]]])
    mask = torch.randn(1, 1, 64, 64, generator=draw)
    for previous in (None, mask):
        wanted, _ = model.decode(embedding, None, box.flatten(1), previous)
        given = torch.zeros_like(mask) if previous is None else previous
        named = {"points": box, "labels": torch.tensor([[2.0, 3]]), "previous": given, "embedding": embedding}
        found = decode({name: value.numpy() for name, value in named.items()})["logits"]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))


@needs_openvino
def test_openvino(tmp_path, written_once):
    report = export(small("litemedsam"), {}, "openvino", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["decoder.bin", "decoder.xml", "encoder.bin", "encoder.xml", "model.json"]
    assert report["decoder"]["files"] == ["decoder.xml", "decoder.bin"]
    assert {step["step"] for step in report["check"]["steps"]} >= {"1 click", "3 clicks", "box"}


@needs_onnx
def test_files_that_disagree_are_refused_and_deleted(tmp_path, written_once, monkeypatch):
    import onnx

    honest = exporting.write_onnx

    def damaging(graph, path):
        honest(graph, path)
        content = onnx.load(str(path))
        weight = max(content.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weight.name))
        onnx.save(content, str(path))

    monkeypatch.setattr(exporting, "write_onnx", damaging)
    with pytest.raises(ExportError, match="disagree with the network and were deleted: encoder: embedding differs"):
        export(small("litemedsam"), {}, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_said_in_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: name)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    free = tmp_path / "free"
    for words, text in (
        (("--model", "sam", "--out", free), "--model takes fastsam3d"),
        (("--format", "tflite", "--out", free), "--format takes onnx, openvino, got 'tflite'"),
        (("--out", tmp_path / "file"), "is a file"),
        (("--out", tmp_path / "full"), "holds files"),
        (("--out", tmp_path / "no" / "where"), "is not there; make it"),
        (("--weights", tmp_path / "none.safetensors", "--out", free), "are not there"),
        (("--model", "sam_med3d", "--out", free), "there are no weights for sam_med3d"),
    ):
        assert run(*words) == 2
        out, err = capsys.readouterr()
        assert text in err and err.count("\n") == 1 and not out
        assert not free.exists()


def test_missing_packages_are_named_with_the_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert run("--out", tmp_path / "out") == 2
    assert (
        "needs onnxscript, which this environment does not have: pip install --no-deps -r requirements-export.txt"
        in (capsys.readouterr().err)
    )


def test_the_pins_of_the_tests_are_those_of_the_export():
    def pins(name: str) -> set[str]:
        lines = (line.split("#")[0].strip() for line in (REPO / name).read_text().splitlines())
        return {" ".join(line.split()) for line in lines if line}

    wanted = pins("requirements-export.txt")
    assert all(re.match(r"[a-z_-]+==[\d.]+( ;|$)", pin) for pin in wanted)
    assert {pin for pin in wanted if not pin.startswith("openvino")} <= pins("requirements-dev.txt")


@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 4), (32, 1, 4, 6), (33, 7), (64, 2, 3)])
def test_both_sweeps_are_equal(shape):
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        found = torch.rand(shape, generator=draw) * (torch.rand(shape, generator=draw) > 0.8)
        links = [torch.rand(shape[0] - 1, *shape[1:], generator=draw) for _ in range(2)]
        assert torch.equal(sweep_by_planes(found, *links), sweep_by_doubling(found, *links))


@pytest.mark.parametrize("levels", [7, 256, None])
def test_ranks_count_the_pixels_below(levels):
    grey = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0))
    grey = grey if levels is None else (grey * levels).floor() / levels
    picture = grey[:, None].expand(-1, 3, -1, -1)
    flat = picture.mean(1).flatten(1)
    below, up_to = (compare(flat[:, None, :], flat[:, :, None]).sum(2) for compare in (torch.lt, torch.le))
    wanted = ((below + up_to) / (2 * 576) * 2 - 1).unflatten(1, (24, 24))
    assert torch.equal(grey_and_rank(picture)[:, 1], wanted)


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_are_equal_while_exporting(dims, monkeypatch):
    draw = torch.Generator().manual_seed(dims)
    intensity, fine = (torch.rand(1, 2, *(n,) * dims, generator=draw) * 2 - 1 for n in (8, 16))
    cells = torch.randint(-2, 10, (3, 5, dims), generator=draw)
    labels = torch.tensor([[1, 1, 0, 1, -1], [0, 0, -1, 0, 0], [-1] * 5])
    inside = torch.zeros(3, 1, *(8,) * dims, dtype=torch.bool)
    inside[1:, :, 2:6, 1:7] = True

    def maps() -> torch.Tensor:
        signs = (labels == 1, labels == 0)
        clicked = [clicked_cells(cells, sign, intensity.shape[2:]) for sign in signs]
        far = tuple(far_from_clicks(intensity, cells, sign, fine) for sign in signs)
        return torch.cat([prompted_maps(intensity, *clicked, far, inside, fine), *(c.float() for c in clicked)], dim=1)

    wanted = maps()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(maps(), wanted)


def test_cells_outside_count_for_the_nearest():
    features = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    cells = torch.tensor([[[1, 2], [-5, 9]], [[2, 0], [0, 0]]])
    assert at_cells(features, cells).tolist() == [[[6, 3], [18, 15]], [[8, 0], [20, 12]]]
    mask = clicked_cells(cells, torch.tensor([[True, True], [True, False]]), features.shape[2:])
    assert torch.nonzero(mask).tolist() == [[0, 0, 0, 3], [0, 0, 1, 2], [1, 0, 2, 0]]


def test_the_compact_network_is_equal_while_exporting(monkeypatch):
    model = small("compact")
    s, m = model.spec.patch_size, model.spec.mask_size
    draw = torch.Generator().manual_seed(0)
    embedding = model.encode(torch.rand(1, 2, s, s, s, generator=draw) * 2 - 1)
    previous = torch.randn(1, 1, m, m, m, generator=draw)
    points = torch.randint(0, s, (1, 4, 3), generator=draw).float()
    asked = [([1, 0, 1, -1], previous), ([1, -1, -1, -1], torch.zeros_like(previous)), ([2, 3, 0, -1], previous)]

    def answers() -> list[torch.Tensor]:
        found = []
        for labels, mask in asked:
            logits, iou = model.decode(embedding, (points, torch.tensor([labels])), mask)
            found += [logits, iou, model.sharpen(embedding, logits)]
        return found

    wanted = answers()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for found, value in zip(answers(), wanted):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6)
