"""The supervised reference: who trains whom, that it learns, and that no network answers about what it saw."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.cli import main
from lib.sam.evaluation.cases import Case
from lib.sam.evaluation.interface import ModelError
from lib.sam.evaluation.score import Settings
from lib.sam.evaluation.supervised import Supervised, _folds, _readable, network_files, prepare
from lib.sam.evaluation.supervised_network import NetworkPlan, new_network, read_plan, segment, write_network
from lib.sam.evaluation.supervised_training import Recipe, choose_edge, choose_spacing
from lib.sam.grid import Grid
from lib.sam.volume_io import read_volume

CPU = torch.device("cpu")
SHAPE = (24, 24, 16)
AFFINES = [np.diag([3.0, 3.0, 4.0, 1.0]), np.array([[0.0, -3, 0, 40], [-3, 0, 0, 5], [0, 0, 4, -7], [0, 0, 0, 1]])]


def write_case(folder, name, seed, values=(4, 9), affine=0):
    """A scan of two balls that differ in brightness, stored along other axes where `affine` is 1."""
    rng = np.random.default_rng(seed)
    image, labels = rng.normal(40, 8, SHAPE), np.zeros(SHAPE, np.uint8)
    place = np.moveaxis(np.indices(SHAPE), 0, -1)
    for value, centre, add in zip(values, ((7, 7, 7), (16, 16, 8)), (150, 300)):
        inside = (((place - centre - rng.integers(-1, 2, 3)) * [3.0, 3.0, 4.0]) ** 2).sum(-1) <= 15.0**2
        image[inside] += add
        labels[inside] = value
    for kind, array in (("images", image.astype(np.int16)), ("labels", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINES[affine]), folder / kind / f"{name}.nii")
    return Case(name, folder / "images" / f"{name}.nii", folder / "labels" / f"{name}.nii")


def evaluate(folder, out, *more):
    return main(
        ["evaluate", "--model", "supervised", "--images", str(folder / "images"), "--labels", str(folder / "labels"),
         "--clicks", "2", "--out", str(out), *more]
    )  # fmt: skip


def test_cross_validation_learns_and_each_scan_is_answered_by_a_network_that_did_not_see_it(tmp_path, capsys):
    for n, name in enumerate("abcd"):
        write_case(tmp_path, name, n, affine=n % 2)
    more = ("--folds", "2", "--train-steps", "60")
    assert evaluate(tmp_path, tmp_path / "out", *more, "--save-masks") == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {(r["case"], r["label"]) for r in rows} == {(c, v) for c in "abcd" for v in (4, 9)}
    for row in rows:
        assert row["dice"] == [row["box"]["dice"]] * 2 and row["seconds"][0] > 0 == row["seconds"][1]
        mask = np.asarray(
            nib.load(tmp_path / f"out/masks/{row['case']}_{row['label']}_supervised_click1.nii.gz").dataobj
        )
        truth = np.asarray(nib.load(tmp_path / f"labels/{row['case']}.nii").dataobj) == row["label"]
        assert 2 * (mask > 0)[truth].sum() / ((mask > 0).sum() + truth.sum()) == pytest.approx(row["dice"][0], abs=1e-4)
    assert np.mean([row["dice"][0] for row in rows]) > 0.6
    plans = [read_plan(path) for path in network_files(tmp_path / "out" / "supervised")]
    assert sorted(name for p in plans for name in p.cases) == list("abcd") and len(plans[0].cases) == 2
    assert all(p.steps == 60 for p in plans) and not (tmp_path / "out" / "supervised" / "samples").exists()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "2 trained on 2, 2 other scans" in report
    capsys.readouterr()
    before = [path.stat().st_mtime_ns for path in network_files(tmp_path / "out" / "supervised")]
    assert evaluate(tmp_path, tmp_path / "out", *more) == 0  # nothing is trained again
    assert before == [path.stat().st_mtime_ns for path in network_files(tmp_path / "out" / "supervised")]
    assert "training network" not in capsys.readouterr().out


def test_other_scans_train_it_and_those_that_are_evaluated_do_not(tmp_path, capsys):
    write_case(tmp_path / "eval", "x", 1)
    write_case(tmp_path / "train", "same_as_x", 1)
    write_case(tmp_path / "train", "y", 2, values=(4, 5))
    more = ("--train-steps", "2", "--train", str(tmp_path / "train" / "images"), str(tmp_path / "train" / "labels"))
    assert evaluate(tmp_path / "eval", tmp_path / "out", *more) == 3  # label 9 was never taught
    (path,) = network_files(tmp_path / "out" / "supervised")
    assert read_plan(path).cases == ("y",) and read_plan(path).taught == (4, 5)
    problems = json.loads((tmp_path / "out" / "problems.json").read_text())
    assert [(p["case"], p["label"], p["scored"]) for p in problems] == [("same_as_x", None, True), ("x", 9, False)]
    folder = str(tmp_path / "out" / "supervised")
    assert main(["evaluate", "--images", str(tmp_path / "train/images"), "--labels", str(tmp_path / "train/labels"),
                 "--model", "supervised", "--weights", f"supervised={folder}", "--clicks", "1",
                 "--out", str(tmp_path / "later")]) == 3  # fmt: skip
    assert "saw y.nii in training" in capsys.readouterr().out
    assert {r["case"] for r in json.loads((tmp_path / "later" / "metrics.json").read_text())} == {"same_as_x"}


def test_scans_that_share_a_file_stay_in_one_fold(tmp_path):
    cases = [write_case(tmp_path, name, seed) for name, seed in (("a", 0), ("b", 1), ("a_again", 0), ("c", 2))]
    labels = cases[3].labels.read_bytes()
    (tmp_path / "labels" / "b.nii").write_bytes(labels)  # another scan with the contours of c
    taught, notes = _readable(cases, Settings())
    assert notes == [] and len(taught) == 4
    for seed in range(4):
        parts = [{t.case.name for t in part} for part in _folds(taught, 5, seed)]
        assert sorted(map(sorted, parts)) == [["a", "a_again"], ["b", "c"]]
    assert _folds(taught[:1], 5, 0) == []


def test_what_cannot_train_is_said(tmp_path):
    good = write_case(tmp_path, "good", 0)
    empty, apart = write_case(tmp_path, "empty", 1), write_case(tmp_path, "apart", 2)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINES[0]), empty.labels)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.int16), AFFINES[0]), apart.image)
    with pytest.raises(ModelError, match="got 1 of 2"):
        prepare(tmp_path / "n", [good, empty], None, 5, Recipe(steps=1), Settings(), CPU)
    notes = prepare(
        tmp_path / "n", [Case("z", empty.image, empty.labels)], [good, apart], 5, Recipe(steps=1), Settings(), CPU
    )
    assert [n.case for n in notes] == ["apart"] and "one grid" in notes[0].reason and notes[0].scored
    assert read_plan(network_files(tmp_path / "n")[0]).cases == ("good",)


def test_a_label_map_lies_on_the_scans_own_voxels(tmp_path):
    """A network that answers with the first channel of its input where it is bright, and with label 7."""
    case = write_case(tmp_path, "a", 0, affine=1)
    volume = read_volume(case.image)

    class Bright(torch.nn.Module):
        def forward(self, image):
            return torch.cat([torch.zeros_like(image[:, :1]), image[:, :1] * 10], dim=1)

    plan = NetworkPlan((7,), (7,), 3.0, (16, 16, 16), 8, (), ())
    found = segment(Bright(), plan, volume, CPU)
    low, high = np.percentile(volume.array, (0.5, 99.5))
    bright = volume.array > (low + high) / 2
    assert found.shape == SHAPE and set(np.unique(found)) == {0, 7}
    assert 2 * ((found == 7) & bright).sum() / ((found == 7).sum() + bright.sum()) > 0.9


def test_networks_come_back_from_their_file_and_other_files_are_refused(tmp_path):
    plan = NetworkPlan((1, 300), (300,), 1.5, (16, 24, 8), 8, ("a",), ("0f",), 3, 0.5, "x")
    write_network(tmp_path / "network_01.safetensors", plan, new_network(plan).state_dict())
    assert read_plan(tmp_path / "network_01.safetensors") == plan
    (tmp_path / "network_01.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="supervised"):
        Supervised(tmp_path, CPU)
    with pytest.raises(ModelError, match="--weights"):
        Supervised(tmp_path / "nowhere", CPU)


def test_grids_of_training():
    body, head = Grid((512, 512, 300), np.diag([0.8, 0.8, 1.5, 1])), Grid((35, 51, 35), np.eye(4))
    assert choose_spacing([head]) == 1.0 and choose_edge([head], 1.0) == (40, 56, 40)
    spacing = choose_spacing([body])
    assert 3.0 < spacing < 3.5 and choose_edge([body], spacing) == (64, 64, 64)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--model", "random_walker", "--folds", "3"], "--model supervised"),
        (["--folds", "1"], "--folds"),
        (["--train-minutes", "nan"], "--train-minutes"),
        (["--train-steps", "0"], "--train-steps"),
        (["--train", "nowhere"], "--train"),
        (["--train", ".", "--folds", "2"], "--train"),
        ([], "two evaluated cases"),
    ],
)
def test_bad_arguments(tmp_path, capsys, more, said):
    write_case(tmp_path, "a", 0)
    assert evaluate(tmp_path, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
