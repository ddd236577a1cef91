"""Annotated cases by name and place, the plan of a run, the gate's verdict."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from lib.sam.geometry import Grid
from lib.sam.training.cases import LabelledCase, fingerprint, on_grid, read_case, structures_of
from lib.sam.training.gate import MAX_FORGETTING, Pair, generated, judge
from lib.sam.training.plan import plan
from lib.sam.volume_io import Volume, VolumeError

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def case(folder, name, names, values=(1, 2)):
    label = np.zeros((6, 5, 4), np.uint8)
    label[0], label[1] = values
    image = write(folder / f"{name}.nii.gz", np.arange(120, dtype=np.int16).reshape(6, 5, 4))
    return LabelledCase(name, image, write(folder / f"{name}-label.nii.gz", label), names)


def test_structures_are_matched_by_name_whatever_their_numbers(tmp_path):
    slicer = case(tmp_path, "a", {1: "Liver", 2: "aorta"})
    ohif = case(tmp_path, "b", {1: "aorta ", 2: "liver", 3: "absent"})
    structures = structures_of([slicer, ohif])
    assert structures == ["aorta", "Liver"]
    for one, first in ((slicer, 2), (ohif, 1)):
        _, label = read_case(one, structures)
        assert (label[0] == first).all()
        assert (label[1] == 3 - first).all()
    assert structures_of([slicer, ohif], ["LIVER"]) == ["Liver"]
    _, label = read_case(slicer, ["Liver"])
    assert set(np.unique(label)) == {0, 1}


def test_values_without_a_name_count_and_background_does_not(tmp_path):
    assert structures_of([case(tmp_path, "a", {1: "Background"}, (1, 7))]) == ["label 7"]


def test_a_label_map_on_another_grid_is_brought_to_the_scans():
    scan = Grid((8, 6, 5), AFFINE)
    truth = np.zeros(scan.shape, np.uint8)
    truth[2:5, 1:4, 2:4] = 3
    flipped = scan.reordered((1, 0, 2), (1, -1, 1))
    turned = truth.transpose(1, 0, 2)[:, ::-1]
    np.testing.assert_array_equal(on_grid(Volume(turned, flipped), scan), truth)
    part = Grid((4, 4, 3), AFFINE @ np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1.0]]))
    np.testing.assert_array_equal(on_grid(Volume(truth[1:5, 1:5, 1:4], part), scan), truth)
    far = Grid(scan.shape, AFFINE + np.array([[0, 0, 0, 900.0]] + 3 * [[0] * 4]))
    with pytest.raises(VolumeError, match="within the scan"):
        on_grid(Volume(truth, far), scan)


def test_a_label_map_of_fractions_is_refused(tmp_path):
    one = case(tmp_path, "a", {})
    write(one.label, np.full((6, 5, 4), 0.5, np.float32))
    with pytest.raises(VolumeError, match="whole numbers"):
        read_case(one, ["label 1"])


def test_a_changed_label_changes_the_fingerprint(tmp_path):
    cases = [case(tmp_path, "a", {}), case(tmp_path, "b", {})]
    before = fingerprint(cases)
    assert fingerprint(cases[::-1]) == before
    write(cases[0].label, np.ones((6, 5, 4), np.uint8))
    assert fingerprint(cases) != before


@pytest.mark.parametrize("count", range(2, 17))
def test_nothing_is_judged_by_what_it_trained_on(tmp_path, count):
    cases = [LabelledCase(f"c{n}", tmp_path, tmp_path) for n in range(count)]
    folds = plan(cases)
    assert all(not {c.name for c in f.train} & {c.name for c in f.held_out} for f in folds)
    assert sum(fold.share for fold in folds) == pytest.approx(1)
    judged = sorted(c.name for fold in folds for c in fold.held_out)
    assert len(set(judged)) == len(judged)
    if count < 5:
        assert judged == sorted(c.name for c in cases)
        assert len(folds[-1].train) == count
    else:
        assert len(folds) == 1
        assert len(judged) == count // 5
    assert [f.held_out for f in plan(cases[::-1])] == [f.held_out for f in folds]


def test_one_case_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        plan([LabelledCase("a", tmp_path, tmp_path)])


def pair(served, candidate):
    return Pair("case", "liver", (served,) * 3, (candidate,) * 3)


@pytest.mark.parametrize(
    ("held_out", "guard", "accepted", "reason"),
    [
        ([(0.5, 0.7)], [(0.8, 0.79)], True, "published"),
        ([(0.5, 0.5)], [(0.8, 0.8)], True, "published"),
        ([(0.5, 0.49)], [(0.8, 0.9)], False, "worse where annotations were held out"),
        ([(0.5, 0.9), (0.9, 0.4)], [(0.8, 0.8)], False, "worse"),
        ([(0.5, 0.9)], [(0.8, 0.8 - MAX_FORGETTING - 0.01)], False, "forgets"),
        ([], [(0.8, 0.9)], False, "no structure"),
    ],
)
def test_the_gate_publishes_what_is_as_good_and_forgets_little(held_out, guard, accepted, reason):
    verdict = judge([pair(*p) for p in held_out], [pair(*p) for p in guard])
    assert verdict.accepted is accepted
    assert reason in verdict.reason
    assert verdict.forgets is (reason == "forgets")
    assert verdict.metrics()["held_out"]["structures"] == len(held_out)


def test_a_trained_network_that_no_click_was_sent_to_is_not_published():
    """Nothing is known of it, however good the other one is."""
    pairs = [replace(pair(0.5, 0.5), taught=taught) for taught in (False, False, True)]
    assert not judge(pairs[:2], []).accepted
    assert "no click on what was held out goes to the trained network" in judge(pairs[:2], []).reason
    assert judge(pairs, []).accepted


def test_the_gates_generated_cases_are_always_the_same():
    first, again = (next(generated(1, 64, 1.5)) for _ in range(2))
    np.testing.assert_array_equal(first[2].array, again[2].array)
    np.testing.assert_array_equal(first[3], again[3])
    assert first[3].any()
