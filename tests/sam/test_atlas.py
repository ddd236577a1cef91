"""Where annotated structures are looked for in another scan."""

import nibabel as nib
import numpy as np
import pytest
from lib.sam.atlas import Atlas
from lib.sam.geometry import Grid
from lib.sam.training.cases import LabelledCase

SPACING = np.array([3.0, 3.0, 4.0])
SHAPE = (64, 56, 48)


def patient(seed):
    """A body with a bright and a dark ball, shifted; the image and its label map."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1) * SPACING
    shift = rng.uniform(-12, 12, 3)
    body = (((axes - (96, 84, 96) - shift) / (80, 66, 400)) ** 2).sum(-1) < 1
    right = (((axes - (60, 84, 110) - shift) / 16) ** 2).sum(-1) < 1
    left = (((axes - (130, 90, 70) - shift) / 20) ** 2).sum(-1) < 1
    image = np.where(body, 40.0, -900.0) + 160 * right - 90 * left + rng.normal(0, 10, SHAPE)
    return image.astype(np.int16), (right + 2 * left).astype(np.uint8)


def affine(signs=(1, 1, 1)):
    matrix = np.diag([*(SPACING * signs), 1.0])
    matrix[:3, 3] = [0 if s > 0 else (n - 1) * d for s, n, d in zip(signs, SHAPE, SPACING)]
    return matrix


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder, cases = tmp_path_factory.mktemp("atlas"), []
    for seed in (1, 2):
        image, label = patient(seed)
        paths = folder / f"{seed}.nii.gz", folder / f"{seed}-label.nii.gz"
        for path, array in zip(paths, (image, label)):
            nib.save(nib.Nifti1Image(array, affine()), path)
        cases.append(LabelledCase(str(seed), *paths, {1: "bright", 2: "dark"}))
    learned = Atlas.learn(cases, ["bright", "dark"])
    learned.save(folder / "atlas.npz")
    return Atlas.load(folder / "atlas.npz")


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_structures_are_found_in_another_patient_however_it_is_stored(atlas, signs):
    image, label = patient(7)
    flips = tuple(slice(None, None, s) for s in signs)
    places = atlas.find(image[flips], Grid(SHAPE, affine(signs)))
    assert [p.structure for p in places] == ["bright", "dark"]
    for value, place in enumerate(places, start=1):
        assert label[flips][place.centre_ijk] == value
        assert place.volume_ml == pytest.approx((label == value).sum() * SPACING.prod() / 1000, rel=0.2)


def test_a_missing_or_damaged_file_is_an_error_of_its_own_kind(tmp_path):
    (tmp_path / "atlas.npz").write_bytes(b"no archive")
    for name in ("atlas.npz", "none.npz"):
        with pytest.raises((OSError, ValueError, KeyError)):
            Atlas.load(tmp_path / name)
