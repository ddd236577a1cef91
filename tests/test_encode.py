"""Answer files: what readers get back from them."""

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from lib import encode
from lib.encode import EXTENSIONS, _crc32_of_appended_zeros, write_answer
from lib.sam.geometry import Grid


@dataclass
class Mask:
    """The part of a segmentation that an answer is made of."""

    mask_box: np.ndarray
    corner_ijk: np.ndarray
    grid: Grid

    def full(self) -> np.ndarray:
        full = np.zeros(self.grid.shape, np.uint8)
        full[tuple(slice(c, c + n) for c, n in zip(self.corner_ijk, self.mask_box.shape, strict=True))] = self.mask_box
        return full


def oblique_grid(shape) -> Grid:
    angle = np.deg2rad(17)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-0.7, 0.8, 2.5])
    affine[:3, 3] = [12.5, -100.25, 33.125]
    return Grid(shape, affine)


def some_mask(shape=(37, 41, 23), box=(11, 9, 7), corner=(20, 3, 16), seed=0) -> Mask:
    voxels = (np.random.default_rng(seed).random(box) < 0.6).astype(np.uint8)
    voxels[:, :, 1] = 0
    return Mask(voxels, np.array(corner), oblique_grid(shape))


MASKS = {
    "inner": some_mask(),
    "whole": some_mask(box=(37, 41, 23), corner=(0, 0, 0)),
    "last voxel": Mask(np.ones((1, 1, 1), np.uint8), np.array([36, 40, 22]), oblique_grid((37, 41, 23))),
    "first voxel": Mask(np.ones((1, 1, 1), np.uint8), np.array([0, 0, 0]), oblique_grid((37, 41, 23))),
    "empty": Mask(np.zeros((0, 0, 0), np.uint8), np.array([0, 0, 0]), oblique_grid((37, 41, 23))),
    "nothing set": Mask(np.zeros((3, 4, 5), np.uint8), np.array([1, 1, 1]), oblique_grid((37, 41, 23))),
    "one slice": Mask(np.ones((5, 6, 1), np.uint8), np.array([3, 3, 0]), oblique_grid((30, 20, 1))),
}


@pytest.fixture(params=MASKS, ids=lambda name: name.replace(" ", "-"))
def mask(request) -> Mask:
    return MASKS[request.param]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_simpleitk_reads_the_same_voxels_in_the_same_place(mask, extension, tmp_path):
    image = sitk.ReadImage(write_answer(mask, extension, folder=str(tmp_path)))
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), mask.full())
    assert image.GetPixelID() == sitk.sitkUInt8
    corners = np.array([[0, 0, 0], [5, 0, 0], [0, 7, 0], [4, 3, 0]])
    world = [image.TransformIndexToPhysicalPoint(c.tolist()) for c in corners]
    np.testing.assert_allclose(np.array(world) * [-1, -1, 1], mask.grid.to_world(corners), atol=1e-4)


def test_nibabel_reads_the_affine(mask, tmp_path):
    image = nib.load(write_answer(mask, ".nii.gz", folder=str(tmp_path)))
    np.testing.assert_allclose(image.affine, mask.grid.affine, atol=1e-5)
    assert np.array_equal(np.asarray(image.dataobj), mask.full())
    assert image.get_data_dtype() == np.uint8


def test_pynrrd_reads_gzip_text_header(mask, tmp_path):
    data, header = nrrd.read(write_answer(mask, ".nrrd", folder=str(tmp_path)))
    assert np.array_equal(data, mask.full())
    assert header["encoding"] == "gzip"
    assert header["space"] == "left-posterior-superior"
    lps = np.diag([-1, -1, 1]) @ mask.grid.affine[:3]
    np.testing.assert_array_equal(header["space directions"], lps[:, :3].T)
    np.testing.assert_array_equal(header["space origin"], lps[:, 3])


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_without_isal_the_voxels_are_the_same(mask, extension, tmp_path, monkeypatch):
    fast = write_answer(mask, extension, folder=str(tmp_path))
    monkeypatch.setattr(encode, "isal_zlib", None)
    slow = write_answer(mask, extension, folder=str(tmp_path))
    assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in (fast, slow)))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_other_voxel_types(dtype, extension, tmp_path):
    mask = some_mask()
    image = sitk.ReadImage(write_answer(mask, extension, dtype, folder=str(tmp_path)))
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert array.dtype == dtype
    assert np.array_equal(array, mask.full())


def test_a_sheared_grid_keeps_its_place_as_nifti(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0.3, 0], [0, 1, 0], [0, 0, 2]]
    mask = Mask(np.ones((2, 2, 2), np.uint8), np.array([1, 1, 1]), Grid((6, 7, 8), affine))
    np.testing.assert_allclose(nib.load(write_answer(mask, ".nii.gz", folder=str(tmp_path))).affine, affine, atol=1e-6)


def test_what_is_not_offered_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.nrrd, \.nii\.gz, \.nii, got '\.png'"):
        write_answer(some_mask(), ".png", folder=str(tmp_path))
    with pytest.raises(ValueError, match="uint8.*got 'complex64'"):
        write_answer(some_mask(), ".nrrd", "complex64", folder=str(tmp_path))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("count", [0, 1, 2, 255, 4096, 1_000_003, 2**33])
def test_checksum_of_zeros_follows_from_arithmetic(count):
    start = zlib.crc32(b"something before")
    if count > 2**30:
        half = _crc32_of_appended_zeros(start, count // 2)
        assert _crc32_of_appended_zeros(start, count) == _crc32_of_appended_zeros(half, count - count // 2)
    else:
        assert _crc32_of_appended_zeros(start, count) == zlib.crc32(bytes(count), start)


def test_a_large_answer_is_small_and_only_the_masks_rows_are_compressed(tmp_path, monkeypatch):
    compressed = []

    def counted(data):
        compressed.append(len(data))
        return deflate(data)

    deflate = encode._deflate
    monkeypatch.setattr(encode, "_deflate", counted)
    ball = (np.square(np.mgrid[-1:1:120j, -1:1:120j, -1:1:60j]).sum(0) < 1).astype(np.uint8)
    mask = Mask(ball, np.array([200, 190, 100]), Grid((512, 512, 300), np.diag([0.7, 0.7, 1.0, 1.0])))
    path = write_answer(mask, ".nrrd", folder=str(tmp_path))
    data = Path(path).read_bytes()
    assert gzip.decompress(data[data.index(b"\n\n") + 2 :]) == mask.full().tobytes("F")
    assert len(data) < 200_000
    assert sum(compressed) <= 60 * 120 * 512  # of 512 x 512 x 300 voxels
