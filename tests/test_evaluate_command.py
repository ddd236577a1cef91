"""The command `evaluate`, on small scans of its own: outputs, exit status, resuming, and what goes wrong in data."""

import csv
import json
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.cli import main
from lib.sam.evaluation.models import changed_spec
from lib.sam.registry import REGISTRY
from lib.sam.zoo import get_spec
from PIL import Image

from tests.sam.models2d import write_small_model

KEYS = {
    "case",
    "label",
    "name",
    "volume_ml",
    "model",
    "clicks",
    "dice",
    "nsd",
    "seconds",
    "protocol",
    "modality",
    "box",
}
SHAPE = (40, 36, 22)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def ball(centre, radius):
    place = np.moveaxis(np.indices(SHAPE), 0, -1)
    return (((place - centre) * [2.0, 2.0, 3.0]) ** 2).sum(-1) <= radius**2


def scan(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(40, 8, SHAPE)
    labels = np.zeros(SHAPE, np.int16)
    for value, centre, radius in ((7, (13, 14, 10), 14.0), (300, (28, 22, 12), 10.0)):
        inside = ball(centre, radius)
        image[inside] += 100
        labels[inside] = value
    return image.astype(np.int16), labels


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def data(tmp_path):
    image, labels = scan()
    save(tmp_path / "images" / "a.nii.gz", image)
    save(tmp_path / "labels" / "a.nii.gz", labels)
    (tmp_path / "labels.json").write_text('{"7": "large ball"}')
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """The random walker without its walk, for tests of what surrounds an answer."""
    import lib.sam.evaluation.random_walker as walker

    monkeypatch.setattr(walker, "_walked", lambda frame, array, seeds: frame.crop(array) > 90)


def evaluate(folder, *more, out="out", model="random_walker"):
    return main(
        ["evaluate", "--images", str(folder / "images"), "--labels", str(folder / "labels"), "--model", model,
         "--out", str(folder / out), *more]
    )  # fmt: skip


def rows_of(folder, out="out"):
    return json.loads((folder / out / "metrics.json").read_text())


def test_outputs_and_an_independent_dice(data, capsys):
    assert evaluate(data, "--clicks", "2", "--save-masks", "--modality", "ct") == 0
    rows = rows_of(data)
    assert [(r["case"], r["label"], r["name"]) for r in rows] == [("a", 7, "large ball"), ("a", 300, "300")]
    labels = np.asarray(nib.load(data / "labels" / "a.nii.gz").dataobj)
    for row in rows:
        assert set(row) == KEYS and row["protocol"] == "points" and row["modality"] == "CT" and row["clicks"] == [1, 2]
        target = labels == row["label"]
        assert row["volume_ml"] == pytest.approx(target.sum() * 12 / 1000, rel=1e-3)
        for n, stored in [*zip(row["clicks"], row["dice"]), ("box", row["box"]["dice"])]:
            name = f"a_{row['label']}_random_walker_{n if n == 'box' else f'click{n}'}.nii.gz"
            file = nib.load(data / "out" / "masks" / name)
            mask = np.asarray(file.dataobj) > 0
            assert 2 * (mask & target).sum() / (mask.sum() + target.sum()) == pytest.approx(stored, abs=1e-4)
            np.testing.assert_allclose(file.affine, AFFINE)
        assert len(row["seconds"]) == 2 == len(row["nsd"]) and min(row["seconds"]) > 0 and row["dice"][0] > 0.5
    with open(data / "out" / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["dice_2"]) for line in table] == [r["dice"][1] for r in rows]
    assert "mean of 2" in capsys.readouterr().out


def test_the_report_needs_nothing_else(data):
    save(data / "images" / "<b>.nii.gz", scan(1)[0])
    save(data / "labels" / "<b>.nii.gz", scan(1)[1])
    assert evaluate(data, "--clicks", "1") == 0
    text = (data / "out" / "report.html").read_text()

    class Reader(HTMLParser):
        tags, sources = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.sources += [value for key, value in attrs if key in ("src", "href", "srcset")]

    reader = Reader()
    reader.feed(text)
    assert "script" not in reader.tags and "link" not in reader.tags and "b" not in reader.tags
    assert reader.sources and all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert reader.tags.count("svg") == 2 and "no data" in text and "large ball" in text


def test_an_interrupted_run_goes_on_and_changed_arguments_are_noticed(data, capsys, monkeypatch):
    import lib.sam.evaluation.run as running

    calls = []
    honest = running.score

    def broken(model, structure, store, settings):
        calls.append(structure.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(model, structure, store, settings)

    monkeypatch.setattr(running, "score", broken)
    assert evaluate(data, "--clicks", "1") == 130
    assert not (data / "out" / "metrics.json").exists()
    assert evaluate(data, "--clicks", "1") == 0
    assert calls == [7, 300, 300] and len(rows_of(data)) == 2
    assert evaluate(data, "--clicks", "1", "--modality", "mri") == 0 and len(calls) == 3
    assert {row["modality"] for row in rows_of(data)} == {"MR"}
    capsys.readouterr()
    assert evaluate(data, "--clicks", "2", "--only", "300") == 0
    assert "another clicks" in capsys.readouterr().out and calls[3:] == [300]
    assert evaluate(data, "--clicks", "2", "--only", "300", "--save-masks") == 0 and calls[4:] == [300]
    image, labels = scan()
    labels[labels == 300] = 300 * (np.arange((labels == 300).sum()) % 50 > 0)
    save(data / "labels" / "a.nii.gz", labels)
    assert evaluate(data, "--clicks", "2", "--only", "300") == 0
    assert "another labels" in capsys.readouterr().out and calls[5:] == [300]


def test_what_is_wrong_with_data_is_said_and_the_run_goes_on(data, capsys):
    image, labels = scan()
    cases = {
        "empty": (image, np.zeros_like(labels), AFFINE),
        "other_shape": (image, labels[1:], AFFINE),
        "other_place": (image, labels, np.diag([2.0, 2.0, 3.5, 1.0])),
        "fractions": (image, labels / 2.0 + 0.25, AFFINE),
        "nan_labels": (image, np.where(labels == 7, np.nan, labels.astype(np.float32)), AFFINE),
    }
    for name, (scan_, labels_, affine) in cases.items():
        save(data / "images" / f"{name}.nii.gz", scan_)
        save(data / "labels" / f"{name}.nii.gz", labels_, affine)
    one = np.zeros_like(labels)
    one[13, 14, 10] = 1
    save(data / "images" / "one_voxel.nii.gz", np.where(image > 150, np.nan, image.astype(np.float32)))
    save(data / "labels" / "one_voxel.nii.gz", one)
    save(data / "images" / "lonely.nii.gz", image)
    (data / "images" / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    save(data / "labels" / "broken.nii.gz", labels)
    assert evaluate(data, "--clicks", "1") == 3
    problems = json.loads((data / "out" / "problems.json").read_text())
    reasons = {p["case"]: p["reason"] for p in problems if not p["scored"]}
    assert set(reasons) == {*cases, "lonely", "broken"}
    assert "empty" in reasons["empty"] and "21 x" not in reasons["other_place"] and "39 x" in reasons["other_shape"]
    assert "mm apart" in reasons["other_place"] and "NaN" in reasons["nan_labels"] and "whole" in reasons["fractions"]
    assert "same name" in reasons["lonely"]
    assert {r["case"] for r in rows_of(data)} == {"a", "one_voxel"}
    notes = " ".join(p["reason"] for p in problems if p["case"] == "one_voxel")
    assert "box" in notes and "NaN" in notes and all(p["scored"] for p in problems if p["case"] == "one_voxel")
    assert next(r for r in rows_of(data) if r["case"] == "one_voxel")["box"] is None
    assert capsys.readouterr().out.count("not scored:") == 7


def test_the_challenges_protocol(data, capsys):
    assert evaluate(data, "--protocol", "cvpr25", "--clicks", "2", "--only", "7") == 0
    (row,) = rows_of(data)
    assert row["protocol"] == "cvpr25" and row["box"]["dice"] > 0.2
    out = capsys.readouterr().out
    assert f"DSC_Final {row['dice'][-1]:.4f}" in out and f"DSC_AUC {sum(row['dice']) / 2:.4f}" in out


@pytest.mark.parametrize("protocol", ["points", "box2d"])
def test_the_apps_own_models(data, protocol):
    """A model for volumes by clicks and a box; its answers to a box in every slice too."""
    image, labels = scan()
    save(data / "labels" / "a.nii.gz", np.where(labels == 7, labels, 0)[:, :, :12])
    save(data / "images" / "a.nii.gz", image[:, :, :12])
    assert evaluate(data, "--protocol", protocol, "--clicks", "1", model="fastsam3d", out=protocol) == 0
    (row,) = rows_of(data, protocol)
    assert row["model"] == "fastsam3d" and row["box"] is not None
    assert (row["clicks"] == [1] and row["dice"][0] > 0.6) if protocol == "points" else row["clicks"] == []


def test_models_for_images_on_slices_and_photographs(data, tmp_path):
    """With untrained weights: where the masks lie, not how good they are."""
    weights = str(write_small_model(tmp_path / "weights"))
    image, labels = scan()
    for name, shape in (("a.nii.gz", None), ("p.png", (30, 42, 3)), ("q.npz", (30, 42, 3))):
        if shape is None:
            save(data / "labels" / name, np.where(labels == 7, labels, 0)[:, :, 8:12])
            save(data / "images" / name, image[:, :, 8:12])
            continue
        rng = np.random.default_rng(1)
        pixels, truth = rng.integers(0, 255, shape, dtype=np.uint8), np.zeros(shape[:2], np.uint8)
        truth[4:12, 20:35] = 7
        if name.endswith(".png"):
            Image.fromarray(pixels).save(data / "images" / name)
            Image.fromarray(truth).save(data / "labels" / name)
        else:
            np.savez(data / "images" / name, imgs=pixels)
            np.savez(data / "labels" / name, gts=truth)
    more = ["--weights", weights, "--protocol", "box2d", "--save-masks"]
    assert evaluate(data, *more, model="repmedsam") == 0
    rows = {row["case"]: row for row in rows_of(data)}
    assert set(rows) == {"a", "p", "q"} and all(row["clicks"] == [] and row["box"] for row in rows.values())
    assert rows["p"]["box"] == rows["q"]["box"]  # the same pixels, from two kinds of file
    mask = np.asarray(nib.load(data / "out" / "masks" / "p_7_repmedsam_box.nii.gz").dataobj)[..., 0].T > 0
    truth = np.zeros((30, 42), bool)
    truth[4:12, 20:35] = True
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert mask.any() and dice == pytest.approx(rows["p"]["box"]["dice"], abs=1e-4)
    assert evaluate(data, "--weights", weights, "--clicks", "1", "--only", "7", out="clicks", model="repmedsam") == 3
    assert {r["case"] for r in rows_of(data, "clicks")} == {"a"}  # a photograph takes boxes only, one at a time


def test_two_processes_give_what_one_gives(data):
    save(data / "images" / "b.nii.gz", scan(1)[0])
    save(data / "labels" / "b.nii.gz", scan(1)[1])
    assert evaluate(data, "--clicks", "1", "--only", "7", out="one") == 0
    assert evaluate(data, "--clicks", "1", "--only", "7", "--workers", "2", out="two") == 0
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(data, out)] for out in ("one", "two")]
    assert plain[0] == plain[1] and len(plain[0]) == 2


def killed(task):
    """What the system does to a process for which there is no memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run_which_goes_on_later(data, capsys, monkeypatch):
    import lib.sam.evaluation.run as running

    monkeypatch.setattr(running, "_work", killed)
    assert evaluate(data, "--clicks", "1", "--only", "300", "--workers", "2") == 2
    assert "a worker process ended" in capsys.readouterr().err
    monkeypatch.undo()
    assert evaluate(data, "--clicks", "1", "--only", "300") == 0 and len(rows_of(data)) == 1


@pytest.mark.parametrize(
    "more, said",
    [
        (["--clicks", "0"], "--clicks"),
        (["--set", "zom=false"], "FIELD=VALUE"),
        (["--set", "first_passes=0"], "first_passes must be 1 to 20"),
        (["--set", 'lattice="nonsense"'], 'lattice must be "corner" or "click"'),
        (["--set", 'replay="foo"'], "replay must be"),
        (["--set", "spacing_mm=-1"], "spacing_mm must be"),
        (["--set", "steady=NaN"], "steady must be"),
        (["--device", "meta"], "--device meta"),
        (["--device", "nonsense"], "nonsense"),
        (["--goal", "nan"], "--goal"),
        (["--goal", "5"], "--goal"),
        (["--min-ml", "nan"], "--min-ml"),
        (["--min-ml", "-1"], "--min-ml"),
        (["--model", "random_walker, supervised", "--folds", "1"], "--folds must be"),
        (["--model", "fastsam3d", "--weights", "/nowhere/lr=3/w.safetensors"], "/nowhere/lr=3/w.safetensors"),
        (["--workers", "0"], "--workers"),
        (["--only", "x"], "--only"),
        (["--only", "9"], "no structure"),
        (["--tolerance", "nan"], "--tolerance"),
        (["--weights", "other=x"], "--weights"),
        (["--names", "nowhere.json"], "nowhere.json"),
        (["--model", "nothing_of_this_name"], "nothing_of_this_name"),
        (["--model", "http://127.0.0.1:9/#m"], "does not answer"),
        (["--model", "http://127.0.0.1:9"], "#model"),
        (["--data", "."], "--data"),
    ],
)
def test_bad_arguments(data, capsys, more, said):
    assert evaluate(data, *more) == 2
    assert said in capsys.readouterr().err and not (data / "out" / "cases").exists()


def test_a_device_that_this_machine_lacks_is_refused(data, capsys):
    if torch.backends.mps.is_available():
        pytest.skip("it has one")
    assert evaluate(data, "--device", "mps") == 2 and "--device mps" in capsys.readouterr().err


def test_a_defect_in_one_structure_costs_no_other(data, quick, monkeypatch):
    import lib.sam.evaluation.score as scoring

    honest = scoring.dice

    def broken(pred, target):
        if target[28, 22, 12]:
            raise KeyError("a defect")
        return honest(pred, target)

    monkeypatch.setattr(scoring, "dice", broken)
    assert evaluate(data, "--clicks", "1") == 3
    assert [row["label"] for row in rows_of(data)] == [7]
    (problem,) = json.loads((data / "out" / "problems.json").read_text())
    assert problem["label"] == 300 and "KeyError" in problem["reason"] and not problem["scored"]


def test_a_model_that_cannot_be_loaded_costs_no_other(data, monkeypatch):
    import lib.sam.evaluation.run as running

    def broken(choice):
        raise TypeError("a defect")

    monkeypatch.setattr(running, "load_model", broken)
    assert evaluate(data, "--clicks", "1") == 3 and rows_of(data) == []
    problems = json.loads((data / "out" / "problems.json").read_text())
    assert [p["label"] for p in problems] == [7, 300] and all("TypeError" in p["reason"] for p in problems)


def test_masks_and_pictures_that_are_gone_are_made_again(data, quick, capsys):
    more = ("--clicks", "1", "--only", "300", "--save-masks")
    assert evaluate(data, *more) == 0
    masks, pictures = (sorted((data / "out" / kind).iterdir()) for kind in ("masks", "pictures"))
    for files, said in ((masks[:1], "no masks"), (pictures, "no picture")):
        for path in files:
            path.unlink()
        capsys.readouterr()
        assert evaluate(data, *more) == 0 and said in capsys.readouterr().out
        assert all(path.is_file() for path in [*masks, *pictures])
    assert "data:image/png" in (data / "out" / "report.html").read_text()


def test_masks_of_other_arguments_do_not_stay_beside_new_numbers(data, quick):
    masks = data / "out" / "masks"
    assert evaluate(data, "--clicks", "2", "--only", "300", "--save-masks") == 0
    (masks / "mine_click1.nii.gz").write_bytes(b"of somebody else")
    assert evaluate(data, "--clicks", "1", "--only", "300", "--save-masks") == 0
    kept = {"mine_click1.nii.gz", "a_300_random_walker_box.nii.gz", "a_300_random_walker_click1.nii.gz"}
    assert {path.name for path in masks.iterdir()} == kept
    assert evaluate(data, "--clicks", "1", "--only", "300", "--tolerance", "1") == 0  # without masks
    assert [path.name for path in masks.iterdir()] == ["mine_click1.nii.gz"]


@pytest.mark.parametrize("change", [lambda c: [], lambda c: dict.fromkeys(c, {}), lambda c: {k: v | {"row": {}} for k, v in c.items()},
                                    lambda c: {k: v | {"problems": [1]} for k, v in c.items()}])  # fmt: skip
def test_earlier_results_of_another_form_are_made_again(data, quick, change):
    assert evaluate(data, "--clicks", "1", "--only", "300") == 0
    rows, kept = rows_of(data), data / "out" / "cases" / "a.json"
    kept.write_text(json.dumps(change(json.loads(kept.read_text()))))
    assert evaluate(data, "--clicks", "1", "--only", "300") == 0
    assert rows_of(data)[0]["dice"] == rows[0]["dice"] and json.loads(kept.read_text())["random_walker|300"]["row"]


def test_slices_that_are_lines_take_no_boxes_and_that_is_said(data):
    image, labels = scan()
    save(data / "images" / "a.nii.gz", image[13:14])
    save(data / "labels" / "a.nii.gz", labels[13:14])
    assert evaluate(data, "--protocol", "box2d") == 3
    (problem,) = json.loads((data / "out" / "problems.json").read_text())
    assert "lines" in problem["reason"] and "1 x 36 x 22" in problem["reason"]


def test_the_random_walker_has_an_answer_where_everything_is_a_seed(data):
    labels = np.ones((2, 2, 2), np.int16)
    save(data / "images" / "a.nii.gz", labels * 100)
    save(data / "labels" / "a.nii.gz", labels)
    assert evaluate(data, "--clicks", "1") == 0


def test_labels_of_an_archive_without_spacing_have_that_of_the_image(data, quick):
    image, labels = scan()
    for path in (data / "images" / "a.nii.gz", data / "labels" / "a.nii.gz"):
        path.unlink()
    np.savez(data / "images" / "CT_a.npz", imgs=image.T, spacing=(2.0, 2.0, 3.0))
    np.savez(data / "labels" / "CT_a.npz", gts=labels.T)
    assert evaluate(data, "--clicks", "1", "--only", "7") == 0
    (row,) = rows_of(data)
    assert row["volume_ml"] == pytest.approx((labels == 7).sum() * 12 / 1000, rel=1e-3) and row["modality"] == "CT"


def test_models_that_cannot_be_had_are_left_out(data, capsys):
    assert evaluate(data, "--clicks", "1", "--only", "300", "--model", "random_walker,sam_med3d") in (0, 3)
    out = capsys.readouterr().out
    assert {r["model"] for r in rows_of(data)} >= {"random_walker"}
    if "left out" in out:  # without the published weights
        assert any(p["model"] == "sam_med3d" for p in json.loads((data / "out" / "problems.json").read_text()))


def test_fields_take_other_values():
    spec = get_spec("fastsam3d_compact")
    changed = changed_spec(spec, ["zoom=false", 'replay="last"', "first_passes=1"])
    assert (changed.zoom, changed.replay, changed.first_passes) == (False, "last", 1)
    assert changed.encoder == spec.encoder and changed_spec(spec, []) == spec


@pytest.mark.parametrize("change", ["zom=false", "zoom=1", "replay=last", "zoom", "encoder={}", 'name="x"'])
def test_what_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match="FIELD=VALUE"):
        changed_spec(get_spec("fastsam3d_compact"), [change])


def test_the_commands_for_published_tables_measure_published_weights():
    """A model whose weights ship would be measured with those unless others are imported."""
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = text.split("## Published tables")[1].replace("\\\n", " ")
    imported = re.findall(r"weights import (\S+)(?: --name (\S+))?", section)
    names = {row.name for row in REGISTRY.values() for file, _ in imported if file in row.files}
    names |= {name for _, name in imported if name}
    for line in section.splitlines():
        asked = re.search(r"evaluate --model (\S+)", line)
        for model in asked[1].split(",") if asked else ():
            given = re.search(rf"\b{model}=([a-z0-9_]+)", line)
            assert given[1] in names if given else any(name.startswith(model) for name in names), model
