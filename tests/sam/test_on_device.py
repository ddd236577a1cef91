"""Cutting out and bringing back as tensors, against the same in numpy; and a click on a GPU against one on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lib.sam import on_device
from lib.sam.build import build_sam
from lib.sam.geometry import Grid, PatchFrame
from lib.sam.intensity import percentile_rank, znorm_positive
from lib.sam.preprocess import network_input
from lib.sam.prompts import Click, Prompts
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.session import SessionStore
from lib.sam.volume_io import Volume

from tests.sam.test_finetune import TINY
from tests.sam.test_geometry import AFFINES, ORIENTATIONS, affine_of, scan

SHAPE = (37, 52, 23)


def frames():
    """Patches in the middle of scans and beyond their faces, finer and coarser than they are."""
    for name, affine in AFFINES.items():
        for centre, spacing in (((18, 25, 11), 1.5), ((0, 51, 22), 0.7), ((30, 3, 2), 3.2)):
            yield pytest.param(PatchFrame.around(Grid(SHAPE, affine), centre, 32, spacing), id=f"{name}-{spacing}")
    for axes, signs in ORIENTATIONS[::7]:
        turned = np.zeros((4, 4))
        for axis, (row, sign) in enumerate(zip(axes, signs)):
            turned[row, axis] = sign * (0.9, 1.1, 2.0)[axis]
        turned[3, 3] = 1
        yield pytest.param(PatchFrame.around(Grid(SHAPE, turned), (10, 30, 12), 32, 1.5), id=f"{axes}{signs}")


@pytest.mark.parametrize("frame", list(frames()))
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_the_patch_is_the_same(frame, dtype):
    array = (scan(SHAPE) + 200).clip(0).astype(dtype)
    for volume in (array, np.asfortranarray(array)):
        found = on_device.crop(on_device.to_tensor(volume), frame)
        np.testing.assert_allclose(found.numpy(), frame.crop(volume), atol=1e-2 * 200 / 255)


@pytest.mark.parametrize("frame", list(frames()))
def test_what_the_network_sees_is_the_same(frame):
    array = scan(SHAPE).astype(np.int16)
    for mode in ("percentile_rank", "znorm_positive"):
        for floor in (None, -20.0):
            expected = network_input(array, frame, floor, mode)
            found = on_device.network_input(on_device.to_tensor(array), frame, floor, mode).numpy()
            away = np.abs(found - expected)  # a value beside the border of two ranks may take either
            assert away.mean() < 1e-4 and (away > 1e-3).mean() < 2e-3


@pytest.mark.parametrize(
    "patch",
    [np.zeros((8, 8, 8)), np.full((8, 8, 8), 7.0), -np.ones((8, 8, 8)), np.eye(8)[None].repeat(8, 0) * 3],
    ids=["zeros", "sevens", "negative", "few"],
)
def test_patches_without_contrast_are_treated_alike(patch):
    patch, all_of_it = patch.astype(np.float32), (slice(0, 8),) * 3
    expected = percentile_rank(patch, None)
    np.testing.assert_allclose(
        on_device.percentile_rank(torch.from_numpy(patch), all_of_it).numpy(), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        on_device.znorm_positive(torch.from_numpy(patch)).numpy(), znorm_positive(patch), atol=1e-5
    )


@pytest.mark.parametrize("frame", list(frames()))
def test_the_mask_is_brought_back_to_the_same_voxels(frame):
    cube = scan((32,) * 3, seed=3) - 20
    expected, found = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for out, (box, corner) in (
        (expected, frame.paste(cube)),
        (found, on_device.paste(frame, torch.from_numpy(cube))),
    ):
        out[tuple(slice(c, c + n) for c, n in zip(corner, box.shape))] = box
        assert box.dtype == np.uint8 and (box.flags.f_contiguous or not box.size)
    assert expected.any() and (expected != found).mean() < 1e-4


def test_nothing_is_brought_back_from_an_empty_mask():
    frame = PatchFrame.around(Grid(SHAPE, affine_of((1, 1, 1))), (5, 5, 5), 16, 1.0)
    box, corner = on_device.paste(frame, torch.full((16,) * 3, -1.0))
    assert box.shape == (0, 0, 0) and corner == (0, 0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_click_on_a_gpu_is_answered_as_on_the_cpu():
    torch.manual_seed(5)
    network = build_sam(TINY)
    state, answers, graphs = network.state_dict(), [], []
    volume = Volume(scan((60, 60, 60)), Grid((60, 60, 60), affine_of((1, 1, 1))))
    for device in ("cpu", "cuda"):
        model = build_sam(TINY)
        model.load_state_dict(state)
        segmenter = VolumeSegmenter(model, TINY, "tiny", "1", device)
        graphs.append(segmenter.record_graphs())
        store = SessionStore(2**30, lambda path, max_bytes: volume)
        with store.open("scan", __file__) as session:
            clicks = (Click((30, 30, 30)), Click((40, 30, 30)), Click((20, 20, 20), positive=False))
            answers.append([segmenter.segment(session, Prompts(clicks[:n])) for n in (1, 2, 3)])
            if device == "cuda":
                assert session.get(("voxels", "cuda")) is not None
    assert graphs[1] >= 8
    for one, other in zip(*answers):
        assert (one.full_mask() != other.full_mask()).mean() < 1e-2
