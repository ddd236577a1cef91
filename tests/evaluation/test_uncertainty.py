"""How sure a mask is: low where the network is sure, high at borders, on the scan's own grid."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.cli import main
from lib.sam import weights
from lib.sam.geometry import PatchFrame
from lib.sam.networks.prompt_maps import BOX_HIGH, BOX_LOW, POSITIVE
from lib.sam.prompts import Box, Click, Prompts
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.session import SessionStore
from lib.sam.uncertainty import _entropy, _moved, uncertainty_map
from scipy import ndimage

SHAPE, CENTRE = (60, 50, 34), (28, 26, 17)
AFFINE = np.array([[0.0, -2.2, 0, 40], [2.0, 0, 0, -30], [0, 0, -3.0, 20], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    place = np.moveaxis(np.indices(SHAPE), 0, -1)
    inside = (((place - CENTRE) * [2.0, 2.2, 3.0]) ** 2).sum(-1) <= 24.0**2
    image = np.random.default_rng(0).normal(40, 8, SHAPE) + 100 * inside
    path = tmp_path_factory.mktemp("scan") / "ball.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.int16), AFFINE), path)
    return path, inside


@pytest.fixture(scope="module")
def segmenter(app_dir):
    resolved = weights.resolve("fastsam3d", app_dir / "model")
    return VolumeSegmenter(weights.load_sam(resolved, "cpu"), resolved.spec, resolved.name, resolved.version)


@pytest.mark.parametrize("box", [False, True])
def test_it_is_larger_at_the_masks_border_than_deep_inside_and_far_away(segmenter, scan, box):
    path, inside = scan
    prompts = Prompts((), Box((16, 15, 9), (40, 37, 25))) if box else Prompts((Click(CENTRE),))
    with SessionStore(2**30).open("scan", path) as session:
        mask = segmenter.segment(session, prompts).full_mask().astype(bool)
        found = uncertainty_map(segmenter, session, prompts)
        again = uncertainty_map(segmenter, session, prompts)
    values = found.full()
    assert values.shape == SHAPE and values.dtype == np.float32 and 0 <= values.min() and values.max() <= 1
    border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    deep, far = ndimage.binary_erosion(mask, iterations=4), ~ndimage.binary_dilation(mask, iterations=5)
    assert deep.any() and values[border].mean() > 1.5 * values[deep].mean()
    assert far.any() and values[border].mean() > 5 * values[far].mean()
    assert 0 < found.disagreement < 1 and np.array_equal(values, again.full())
    assert values[found.most_uncertain_ijk()] == values.max()


def test_entropy_and_moved_prompts():
    assert _entropy(torch.tensor([0.5, 0.0, 1.0])).tolist() == pytest.approx([1, 0, 0], abs=1e-4)
    given = [((0, 60, 127), POSITIVE), ((10, 10, 10), BOX_LOW), ((90, 90, 90), BOX_HIGH)]
    points, labels = _moved(given, 128, torch.device("cpu"))
    assert points.shape == (4, 3, 3) and labels.tolist() == [POSITIVE, BOX_LOW, BOX_HIGH]
    assert points.min() >= 0 and points.max() <= 127
    sides = (points[:, 2] - points[:, 1])[:, 0].tolist()
    assert sides == [86, 74, 83, 77]  # the box grows, shrinks, and both by half


def test_a_patch_of_numbers_comes_back_to_its_voxels():
    from lib.sam.grid import Grid

    grid = Grid(SHAPE, AFFINE)
    frame = PatchFrame.around(grid, CENTRE, 48, 2.0)
    world = frame.grid.to_world(np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1).reshape(-1, 3))
    values = (world @ [1.0, 2.0, -0.5]).reshape(48, 48, 48).astype(np.float32)
    box, corner = frame.paste_values(values)
    index = np.argwhere(np.ones(box.shape, bool)) + corner
    expected = (grid.to_world(index) @ [1.0, 2.0, -0.5]).reshape(box.shape)
    inner = tuple(slice(1, -1) for _ in range(3))  # at the patch's faces values are repeated
    np.testing.assert_allclose(box[inner], expected[inner], atol=1e-3)
    with pytest.raises(ValueError, match="lattice"):
        frame.paste_values(values[1:])


def test_the_command_writes_it_beside_the_mask(scan, tmp_path, capsys):
    path, _ = scan
    click = ",".join(map(str, CENTRE))
    arguments = ["segment", str(path), "--click", f"{click},+", "--out", str(tmp_path / "m.nii.gz"), "--json"]
    assert main([*arguments, "--uncertainty", str(tmp_path / "u.nii.gz")]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = nib.load(tmp_path / "u.nii.gz")
    assert stored.shape == SHAPE and stored.get_data_dtype() == np.float32
    np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-4)
    peak = tuple(report["uncertainty"]["most_uncertain_ijk"])
    assert np.asarray(stored.dataobj)[peak] == np.asarray(stored.dataobj).max() > 0.5
    assert main([*arguments, "--uncertainty", str(tmp_path / "u.png")]) == 2
    assert "--uncertainty" in capsys.readouterr().err
