"""The same scan, stored in every way: the same mask. With the weights that ship."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from lib.sam import weights
from lib.sam.evaluate import dice
from lib.sam.prompts import Box, Click, Prompts
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.session import SessionStore
from nibabel.orientations import apply_orientation, inv_ornt_aff

SHAPE, SPACING = (70, 64, 50), (1.8, 2.0, 2.6)
CENTRE, RADII = (33, 30, 24), (16, 12, 9)
ORIENTATIONS = [
    np.array(list(zip(axes, flips))) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def segmenter(app_dir):
    resolved = weights.resolve("fastsam3d", app_dir / "model")
    return VolumeSegmenter(weights.load_sam(resolved, "cpu"), resolved.spec, resolved.name, resolved.version)


def _oblique(affine):
    a, b = 0.35, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    out = affine.copy()
    out[:3, :3] = turn @ affine[:3, :3]
    return out


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    inside = (((grid - CENTRE) / RADII) ** 2).sum(-1) <= 1
    image = np.where(inside, 140, 40) + rng.normal(0, 12, SHAPE)
    return image.astype(np.int16), inside, np.diag([*SPACING, 1.0])


def _segment(segmenter, tmp_path, image, affine, prompts):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), path)
    with SessionStore(2**30).open("scan", path) as session:
        return segmenter.segment(session, prompts).full_mask().astype(bool)


def _stored(ornt, image, affine, points):
    """The scan and voxel indices in another storage order."""
    moved = np.ascontiguousarray(apply_orientation(image, ornt))
    to_old = inv_ornt_aff(ornt, image.shape)  # new voxel -> old voxel
    new = np.linalg.inv(to_old) @ np.c_[np.asarray(points, float), np.ones(len(points))].T
    return moved, affine @ to_old, [tuple(int(round(v)) for v in p) for p in new[:3].T], to_old


def _undo(mask, to_old, shape):
    index = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    old = (np.c_[index, np.ones(len(index))] @ to_old.T)[:, :3].round().astype(int)
    out = np.zeros(shape, bool)
    out[tuple(old.T)] = mask.reshape(-1)
    return out


POINTS = [CENTRE, (36, 34, 26), (5, 8, 6)]


@pytest.mark.parametrize("oblique", [False, True])
def test_every_orientation_gives_the_same_mask(segmenter, tmp_path, scan, oblique):
    image, truth, affine = scan
    affine = _oblique(affine) if oblique else affine
    prompts = Prompts(tuple(Click(p, i < 2) for i, p in enumerate(POINTS)))
    reference = _segment(segmenter, tmp_path, image, affine, prompts)
    assert dice(reference, truth) > 0.7  # a mask worth comparing
    for ornt in ORIENTATIONS[:: 7 if oblique else 1]:  # 7 meets every order and every flip
        moved, new_affine, points, to_old = _stored(ornt, image, affine, POINTS)
        prompts = Prompts(tuple(Click(p, i < 2) for i, p in enumerate(points)))
        mask = _segment(segmenter, tmp_path, moved, new_affine, prompts)
        assert dice(_undo(mask, to_old, SHAPE), reference) >= 0.99, ornt.tolist()


def test_a_box_gives_the_same_mask_in_every_orientation(segmenter, tmp_path, scan):
    image, truth, affine = scan
    corners = [(16, 17, 14), (50, 43, 34)]
    reference = _segment(segmenter, tmp_path, image, affine, Prompts((), Box(*corners)))
    assert dice(reference, truth) > 0.7
    for ornt in ORIENTATIONS[1::7]:
        moved, new_affine, points, to_old = _stored(ornt, image, affine, corners)
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        mask = _segment(segmenter, tmp_path, moved, new_affine, Prompts((), Box(tuple(low), tuple(high))))
        assert dice(_undo(mask, to_old, SHAPE), reference) >= 0.99, ornt.tolist()
