"""The table of RepMedSAM's run times: what is run is what is said; nothing here judges a duration."""

import json

import numpy as np
import pytest
import torch
from lib import cli
from lib.sam.benchmark2d import CASES, FORMS, SIDES, PlainPath, phantom
from lib.sam.build import build_sam2d
from lib.sam.slice_network import SlicePrompt
from lib.sam.slice_segmenter import SliceSegmenter
from lib.sam.zoo import get_spec2d

from tests.sam.models2d import SMALL, small_state


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_boxes_lie_in_the_image(case):
    sizes = np.array(case.shape[::-1] if case.is_stack else case.shape[1::-1])
    boxes = np.array(case.boxes)
    low, high = boxes[:, : len(sizes)], boxes[:, len(sizes) :]
    assert (low >= 0).all() and (low < high).all() and (high < sizes).all()


def test_the_published_sizes_and_counts():
    found = {(case.shape, len(case.boxes)) for case in CASES}
    assert found == {((237, 512, 512), 6), ((64, 290, 320), 6), ((3024, 4032, 3), 1), ((1920, 2560, 3), 241)}


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_half_of_the_boxes_share_their_depth_and_half_are_alone(case):
    def shared(a, b):
        return a[2] <= b[5] and b[2] <= a[5]

    meet = [any(shared(a, b) for b in case.boxes if b is not a) for a in case.boxes]
    if case.shape[0] == 237:
        assert meet == [True] * 3 + [False] * 3
    assert case.slices < case.pairs


def test_a_smaller_case_keeps_its_form():
    for case in (case.smaller(8) for case in CASES):
        image = phantom(case)
        assert (image.shape, image.dtype) == (case.shape, np.uint8)
        assert image.max() >= 140 and image[0, 0].max() < 90
        assert len(case.boxes) <= 6


def test_the_plain_path_asks_and_answers_as_served():
    model = build_sam2d(get_spec2d(SMALL)).eval()
    model.load_state_dict(small_state())
    case = CASES[1].smaller(8)
    stack, boxes = phantom(case), case.boxes[:2]
    with torch.inference_mode():
        plain = PlainPath(model).segment_stack(stack, boxes)
    ours = SliceSegmenter(model, "x", "y", fused=False, half=False).segment_stack(stack, np.array(boxes))
    for a, b in zip(plain, ours):
        assert a.keys() == b.keys()
        assert all(abs(int(a[z].mask.sum()) - int(b[z].mask.sum())) <= 2 for z in a)
    one = PlainPath(model, fused=True).predict(stack[3], SlicePrompt((10.0, 10.0, 200.0, 190.0)))
    assert one.mask.shape in (stack.shape[1:], (0, one.mask.shape[1]))


def test_the_command_says_what_it_ran(tmp_path, capsys):
    out = tmp_path / "table.json"
    words = ["repmedsam", "--case", "mr", "--small", "16", "--rounds", "1", "--samples", "1", "--spec", SMALL]
    assert cli.main(["benchmark", *words, "--threads", "1", "--json", str(out)]) == 0
    (row,), case = json.loads(out.read_text()), CASES[1].smaller(16)
    assert (row["case"], row["pairs"], row["slices"]) == (case.name, case.pairs, case.slices)
    assert (row["objects"], row["pairs_run"], row["rounds"], row["spec"]) == (6, 1, 1, SMALL)
    assert set(row["seconds"]) == set(row["ratio"]) == set(SIDES)
    assert row["extrapolated"] == ["baseline", "unfused", "fused"]
    assert row["ratio"]["ours"] == pytest.approx(row["seconds"]["baseline"] / row["seconds"]["ours"], rel=0.02)
    assert row["dice_pairs"] == 6
    assert "from 1 of" in capsys.readouterr().out


def test_variants_are_compared_with_the_trained_form(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lib.sam.benchmark2d.BATCHES", (1, 2))
    out = tmp_path / "variants.json"
    words = ["repmedsam", "--variants", "--rounds", "1", "--spec", SMALL, "--threads", "1", "--json", str(out)]
    assert cli.main(["benchmark", *words]) == 0
    rows = json.loads(out.read_text())
    assert [(row["name"], row["batch"]) for row in rows] == [(name, n) for name, *_ in FORMS for n in (1, 2)]
    assert all(row["encode_ms"] > 0 and row["decode_ms"] > 0 for row in rows)
    assert rows[0]["dice"] == 1 and all(row["dice"] > 0.95 for row in rows)
    assert capsys.readouterr().out.count("\n") == len(rows)


def test_the_table_stands_alone(capsys):
    assert cli.main(["benchmark", "repmedsam", "encode"]) == 2
    assert "by itself repmedsam" in capsys.readouterr().err
    assert cli.main(["benchmark", "repmedsam", "--spec", "unet"]) == 2
    assert "unknown model spec 'unet'" in capsys.readouterr().err
    assert cli.main(["benchmark", "repmedsam", "--case", "PET"]) == 2
    assert "--case takes a part of CT stack" in capsys.readouterr().err
