"""Automatic segmentation: each answer has the names by which it was made."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from lib.infers.automatic import AutomaticInfer
from lib.infers.interactive import InteractiveInfer
from lib.infers.request import AnswerOptions
from lib.sam.geometry import Grid
from lib.sam.segmenter import Segmentation
from lib.sam.session import SessionStore


def test_a_label_that_others_save_meanwhile_renames_no_answer(tmp_path: Path):
    known = ["kidney", "liver"]
    clicks = InteractiveInfer("fastsam3d", {}, str(tmp_path), SessionStore(10**6))
    atlas = SimpleNamespace(structures=("kidney", "liver"), find=lambda array, grid: [])
    task = AutomaticInfer(clicks, lambda: atlas, lambda: list(known))
    made = task._numbers(atlas.structures)
    mask = np.array([[[1, 2]]], np.uint8)
    grid = Grid((1, 1, 2), np.eye(4))
    answer = Segmentation(mask, (0, 0, 0), grid, 1.0, {}, (), "w", "v", values=made)
    known.insert(0, "aorta")
    assert task.info()["labels"] == {"aorta": 1, "kidney": 2, "liver": 3}
    found = task._params(answer, AnswerOptions(), {})
    assert found["label_names"] == {"kidney": 1, "liver": 2}
