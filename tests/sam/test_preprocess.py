"""Scans from files, masks to files, and the published preprocessing."""

import gzip
import os
import stat
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from lib.sam import volume_io
from lib.sam.geometry import Grid, PatchFrame
from lib.sam.preprocess import (
    VolumeError,
    crop_or_pad,
    frame_around_mask,
    label_back,
    read_volume,
    resample_published,
    to_canonical,
    write_mask,
)
from monai.transforms import LoadImage
from scipy.spatial.transform import Rotation

SHAPE = (14, 11, 6)


def oblique(spacing=(0.8, 1.1, 3.0), angles=(8, -5, 12), origin=(-40, 33, 12)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def voxels(shape=SHAPE, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(dtype)


def save_nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, oblique() if affine is None else affine), path)
    return path


def itk_image(array, affine):
    image = sitk.GetImageFromArray(array.T)
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def save_dicom(folder, array, affine, series="1.2.826.0.1.3680043.10.1", skip=()):
    """A CT series, one file a slice, in a file order that is not the slice order."""
    folder.mkdir(exist_ok=True)
    image = itk_image(array, affine)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(array.shape[2]):
        if k in skip:
            continue
        one = image[:, :, k]
        position = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0008|0021": "20200101",
            "0008|0060": "CT",
            "0020|000d": "1.2.826.0.1.3680043.10.2",
            "0020|000e": series,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.8f}" for v in position),
            "0020|0037": "\\".join(f"{v:.8f}" for v in direction[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series[-1]}{(k * 7) % 31:03d}.dcm"))
        writer.Execute(one)
    return folder


def write_any(kind, tmp_path, array, affine):
    if kind == "dicom":
        return save_dicom(tmp_path / "series", array, affine)
    path = tmp_path / f"image{kind}"
    if kind.startswith(".nii"):
        return save_nifti(path, array, affine)
    sitk.WriteImage(itk_image(array, affine), str(path), useCompression=kind in (".nrrd", ".mha"))
    return path


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", "dicom"])
def test_index_order_and_affine_are_monais(kind, tmp_path):
    array = voxels()
    path = write_any(kind, tmp_path, array, oblique())
    volume = read_volume(path)
    reference = LoadImage(image_only=True)(str(path))
    np.testing.assert_array_equal(volume.array, reference.numpy())
    np.testing.assert_allclose(volume.grid.affine, reference.affine.numpy(), atol=1e-6)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.affine, oblique(), atol=1e-4)
    assert volume.array.dtype.kind == "i" and volume.array.dtype.itemsize <= 4  # a DICOM intercept may widen it
    assert volume.grid.shape == SHAPE and volume.warnings == () and volume.array.flags.writeable
    assert volume.nbytes == volume.array.nbytes


def test_real_volumes_are_read_as_monai_reads_them(shared_dir):
    found = 0
    for name in (
        "ct_abdomen_totalseg/image.nii.gz",
        "ct_vertebra_tptbox/image.nii.gz",
        "sts_001/pet_image.nii.gz",
        "dicom_sts_001/MR_T1/image",
        "dicom_sts_001/PET/image",
    ):
        path = shared_dir / "data" / name
        if not path.exists():
            continue
        found += 1
        volume, reference = read_volume(path), LoadImage(image_only=True)(str(path))
        np.testing.assert_array_equal(volume.array, reference.numpy())
        np.testing.assert_allclose(volume.grid.affine, reference.affine.numpy(), atol=1e-6)
    if not found:
        pytest.skip("the shared folder holds none of these volumes")


@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i2", "u2", "f4", ">f8", "u4"])
def test_stored_numbers_are_kept(dtype, tmp_path):
    array = (np.arange(120).reshape(4, 5, 6) * 2).astype(dtype)
    volume = read_volume(save_nifti(tmp_path / "a.nii", array))
    expected = np.float32 if np.dtype(dtype).kind == "f" else np.dtype(dtype).newbyteorder("=")
    assert volume.array.dtype == expected and volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, array)


def test_slope_and_intercept_give_float32(tmp_path):
    image = nib.Nifti1Image(voxels(), oblique())
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert stored.dataobj.slope == 0.5 and volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, np.asanyarray(stored.dataobj), rtol=1e-6)


def test_the_qform_is_used_when_only_it_fits_the_header(tmp_path):
    image = nib.Nifti1Image(voxels(), oblique())
    image.set_qform(oblique(), code=1)
    image.header["srow_x"] *= 3
    image.header["sform_code"] = 1
    path = tmp_path / "a.nii"
    with path.open("wb") as file:
        file.write(image.header.binaryblock + bytes(4) + voxels().tobytes(order="F"))
    np.testing.assert_allclose(read_volume(path).grid.affine, LoadImage(image_only=True)(str(path)).affine.numpy())


def test_two_dimensions_and_trailing_axes(tmp_path):
    flat = read_volume(save_nifti(tmp_path / "flat.nii.gz", voxels((9, 8))))
    assert flat.array.shape == flat.grid.shape == (9, 8, 1)
    single = read_volume(save_nifti(tmp_path / "single.nii.gz", voxels((*SHAPE, 1, 1))))
    np.testing.assert_array_equal(single.array, voxels())
    sitk.WriteImage(sitk.GetImageFromArray(voxels((9, 8)).T), str(tmp_path / "flat.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "flat.mha").array[..., 0], voxels((9, 8)))


def test_values_that_are_no_numbers_become_the_minimum(tmp_path):
    array = voxels(dtype=np.float32)
    array[0, 0, 0], array[1, 0, 0], array[2, 0, 0] = np.nan, np.inf, -np.inf
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", array))
    low = array[np.isfinite(array)].min()
    assert volume.array[:3, 0, 0].tolist() == [low] * 3 and "3 voxels were NaN or infinite" in volume.warnings[0]
    with pytest.raises(VolumeError, match="at least one finite value"):
        read_volume(save_nifti(tmp_path / "b.nii.gz", np.full((3, 3, 3), np.nan, np.float32)))


def test_numbers_beyond_float32_are_treated_as_infinite(tmp_path):
    array = voxels(dtype=np.float64)
    array[0, 0, 0] = 1e300
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", array))
    assert np.isfinite(volume.array).all() and len(volume.warnings) == 1


def test_a_constant_volume_carries_a_warning(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", np.full((3, 4, 5), -7, np.int16)))
    assert volume.warnings and "same value, -7" in volume.warnings[0]


def test_dicom_warnings(tmp_path):
    array = voxels((16, 16, 8))
    uneven = save_dicom(tmp_path / "uneven", array, oblique(), skip=(3,))
    assert any("apart" in w for w in read_volume(uneven).warnings)
    several = save_dicom(tmp_path / "several", array, oblique())
    save_dicom(several, voxels((16, 16, 5)), oblique(), series="1.2.826.0.1.3680043.10.9")
    volume = read_volume(several)
    assert "2 DICOM series" in volume.warnings[0]
    np.testing.assert_array_equal(volume.array, LoadImage(image_only=True)(str(several)).numpy())


def test_one_dicom_file(tmp_path):
    folder = save_dicom(tmp_path / "one", voxels((16, 12, 1)), oblique())
    (file,) = folder.iterdir()
    for path in (folder, file):
        np.testing.assert_array_equal(read_volume(path).array, voxels((16, 12, 1)))


# ---------------------------------------------------------------- files that are refused


def test_missing_unknown_and_empty(tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none.nii.gz", "no such image"),
        ("note.txt", r"must be one of \.nii"),
        ("empty", "DICOM series"),
    ):
        with pytest.raises(VolumeError, match=message):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm"])
@pytest.mark.parametrize("content", [b"", b"x", bytes(400), b"\x1f\x8b" + bytes(30), b"NRRD0004\n", os.urandom(2000)])
def test_rubbish_is_a_volume_error(suffix, content, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("with_isal", [True, False])
def test_gzip_with_and_without_isal(with_isal, tmp_path, monkeypatch):
    if not with_isal:
        monkeypatch.setattr(volume_io, "igzip", None)
    path = save_nifti(tmp_path / "a.nii.gz", voxels((40, 40, 20)))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, voxels((40, 40, 20)))
    assert volume.array.flags.writeable


@pytest.mark.skipif(volume_io.igzip is None, reason="isal is not installed; zlib's reader does not reach the checksum")
def test_damage_inside_a_gzip_file(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels((40, 40, 20)))
    whole = bytearray(path.read_bytes())
    for position in range(30, len(whole) // 2, len(whole) // 9):
        path.write_bytes(whole[:position] + b"\xff" * 9 + whole[position + 9 :])
        with pytest.raises(VolumeError):
            read_volume(path)


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_files(kind, kept, tmp_path):
    path = write_any(kind, tmp_path, voxels((40, 40, 20)), oblique())
    data = tmp_path / "image.raw" if kind == ".mhd" else path
    whole = data.read_bytes()
    data.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VolumeError):
        read_volume(path)


def test_several_volumes_colours_and_complex_numbers(tmp_path):
    with pytest.raises(VolumeError, match="one volume"):
        read_volume(save_nifti(tmp_path / "4d.nii.gz", voxels((*SHAPE, 3))))
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeError, match="colours"):
        read_volume(save_nifti(tmp_path / "rgb.nii.gz", colour))
    with pytest.raises(VolumeError, match="real numbers"):
        read_volume(save_nifti(tmp_path / "complex.nii.gz", voxels(dtype=np.complex64)))
    vectors = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True)
    for name in ("vector.nrrd", "vector.mha"):
        sitk.WriteImage(vectors, str(tmp_path / name))
        with pytest.raises(VolumeError, match="3 components"):
            read_volume(tmp_path / name)
    series = sitk.JoinSeries([sitk.Image(4, 4, 4, sitk.sitkInt16)] * 2)
    sitk.WriteImage(series, str(tmp_path / "4d.nrrd"))
    with pytest.raises(VolumeError, match="one volume"):
        read_volume(tmp_path / "4d.nrrd")


def nifti_bytes(dims, dtype=np.int16, data=b""):
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"][: len(dims)] = dims
    header["vox_offset"] = 352
    header.set_sform(np.eye(4), code=1)
    return header.binaryblock + bytes(4) + data


@pytest.mark.parametrize(
    "dims", [(3, 32767, 32767, 32767), (3, -5, 4, 4), (3, 0, 4, 4), (3, 100, 100, 100), (7, 9, 9, 9, 9, 9, 9, 9), (0,)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_lie(dims, packed, tmp_path):
    content = nifti_bytes(dims, data=bytes(64))
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("offset", [-1.0, 1e9, float("nan"), float("inf")])
def test_a_data_offset_that_lies(offset, tmp_path):
    content = bytearray(nifti_bytes((3, 4, 4, 4), data=bytes(128)))
    content[108:112] = struct.pack("<f", offset)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", "dicom"])
def test_the_budget_is_applied_before_reading(kind, tmp_path):
    path = write_any(kind, tmp_path, voxels(), oblique())
    needed = read_volume(path).nbytes
    read_volume(path, max_bytes=needed)
    with pytest.raises(VolumeError, match="its header asks for"):
        read_volume(path, max_bytes=needed // 2)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes((3, 2000, 2000, 2000), data=bytes(1 << 20))))
    with pytest.raises(VolumeError, match="its header asks for"):
        read_volume(path)
    with pytest.raises(VolumeError, match="the file ends before"):
        read_volume(path, max_bytes=1 << 40)


def test_an_affine_that_cannot_be_inverted(tmp_path):
    path = save_nifti(tmp_path / "a.nii", voxels(), np.diag([1, 1, 1, 1.0]))
    content = bytearray(path.read_bytes())
    content[280:328] = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()  # the rows of the sform
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="independent axes"):
        read_volume(path)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/hostname", "LIST", "secret%d.raw 1 3 1", "missing.raw", "."])
def test_a_header_reads_its_own_folder_only(name, tmp_path):
    (tmp_path / "secret.raw").write_bytes(bytes(2000))
    folder = tmp_path / "studies"
    folder.mkdir()
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: {}\n"
    for file, text in (("a.mhd", meta), ("a.mha", meta), ("a.nhdr", nrrd), ("b.nrrd", nrrd)):
        (folder / file).write_text(text.format(name))
        with pytest.raises(VolumeError, match="its voxels must lie"):
            read_volume(folder / file)
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "a.mhd").write_text(meta.format("link.raw"))
    with pytest.raises(VolumeError, match="own folder"):
        read_volume(folder / "a.mhd")


@pytest.mark.parametrize(
    "line",
    [
        "NDims = 83",
        "NDims = 3\nNDims = 9",
        "DimSize = 4 4 4 4 4 4 4",
        "Offset = 1",
        "no field",
        "TransformMatrix = 1 0",
    ],
)
def test_metaimage_lists_must_fit_their_dimensions(line, tmp_path):
    path = write_any(".mha", tmp_path, voxels(), oblique())
    key = line.split("=")[0].encode()
    lines = [line.encode() if old.startswith(key) else old for old in path.read_bytes().split(b"\n")]
    path.write_bytes(b"\n".join(lines if line.encode() in lines else [lines[0], line.encode(), *lines[1:]]))
    with pytest.raises(VolumeError, match="its NDims|must be|no field"):
        read_volume(path)


def patched(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    "old, new, message",
    [
        # Rows claims 4 GB; GDCM would allocate that
        (b"\x28\x00\x10\x00\x02\x00\x00\x00", b"\x28\x00\x10\x00\xf0\xff\xff\xff", "beyond the file"),
        (b"DICM\x02", b"DICM\x37", "transfer syntax"),
        (b"DICM", b"MCID", "no DICOM marker"),
    ],
)
def test_damaged_dicom_files_never_reach_itk(old, new, message, tmp_path):
    folder = save_dicom(tmp_path / "series", voxels((16, 12, 6)), oblique())
    last = max(folder.iterdir(), key=lambda p: sitk.ReadImage(str(p)).TransformIndexToPhysicalPoint((0, 0, 0))[2])
    with pytest.raises(VolumeError, match=message):
        read_volume(patched(last, old, new))
    volume = read_volume(folder)  # the rest of the series is read, and the user is told
    assert volume.array.shape == (16, 12, 5) and message in volume.warnings[0] and last.name in volume.warnings[0]


def test_other_files_beside_a_series_are_left_out(tmp_path):
    folder = save_dicom(tmp_path / "series", voxels(), oblique())
    for name in ("README.txt", "Thumbs.db", "a.json", "b.json"):
        (folder / name).write_bytes(b"READ ME " * 40)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, voxels())
    assert len(volume.warnings) == 4 and "1 more" in volume.warnings[-1]


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", "dicom"])
def test_changed_bytes_give_a_volume_or_a_volume_error(kind, tmp_path):
    path = write_any(kind, tmp_path, voxels(), oblique())
    file = min(path.iterdir()) if path.is_dir() else path
    whole, rng = file.read_bytes(), np.random.default_rng(11)
    for _ in range(40):
        changed = bytearray(gzip.decompress(whole) if kind == ".nii.gz" else whole)
        for at in rng.integers(0, min(len(changed), 900), rng.integers(1, 6)):
            changed[at] = rng.choice([0, 255, 48 + rng.integers(10), rng.integers(256)])
        file.write_bytes(gzip.compress(bytes(changed)) if kind == ".nii.gz" else bytes(changed))
        try:
            volume = read_volume(path, max_bytes=1 << 26)
        except VolumeError:
            continue
        assert volume.array.shape == volume.grid.shape and np.isfinite(volume.array).all()


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_a_written_mask_lies_where_its_scan_lies(suffix, compress, dtype, tmp_path):
    affine = oblique() @ np.diag([1, -1, 1, 1.0])
    mask = (voxels() > 500).astype(dtype)
    path = tmp_path / f"mask{suffix}"
    write_mask(path, mask, Grid(SHAPE, affine), compress)
    for read in (read_volume(path), read_volume_by_itk(path)):
        np.testing.assert_array_equal(read.array, mask)
        np.testing.assert_allclose(read.grid.affine, affine, atol=1e-4)
    reference = LoadImage(image_only=True)(str(path))
    np.testing.assert_array_equal(reference.numpy(), mask)
    np.testing.assert_allclose(reference.affine.numpy(), affine, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def read_volume_by_itk(path):
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return type("Read", (), {
        "array": sitk.GetArrayFromImage(image).T,
        "grid": Grid(image.GetSize(), np.diag([-1, -1, 1, 1.0]) @ lps),
    })  # fmt: skip


def test_a_sheared_grid_survives_in_nifti_and_nrrd(tmp_path):
    affine = oblique()
    affine[:3, 1] += 0.2 * affine[:3, 2]
    for name in ("a.nii.gz", "a.nrrd"):
        write_mask(tmp_path / name, np.ones(SHAPE, bool), Grid(SHAPE, affine))
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, affine, atol=1e-5)
    np.testing.assert_allclose(LoadImage(image_only=True)(str(tmp_path / "a.nrrd")).affine.numpy(), affine, atol=1e-6)


def test_writing_replaces_whole_files_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path, grid = tmp_path / "mask.nii.gz", Grid(SHAPE, np.eye(4))
    write_mask(path, np.zeros(SHAPE, bool), grid)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    before = path.read_bytes()

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_mask(path, np.ones(SHAPE, bool), grid)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_masks_that_are_refused(tmp_path):
    grid = Grid(SHAPE, np.eye(4))
    with pytest.raises(ValueError, match="shape"):
        write_mask(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), bool), grid)
    with pytest.raises(ValueError, match="bool or uint8"):
        write_mask(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16), grid)
    with pytest.raises(ValueError, match="must end in"):
        write_mask(tmp_path / "a.png", np.zeros(SHAPE, bool), grid)
    with pytest.raises(OSError):
        write_mask(tmp_path / "none" / "a.nii.gz", np.zeros(SHAPE, bool), grid)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- published preprocessing


def test_the_published_order_of_steps_equals_one_crop():
    grid = Grid((50, 40, 22), oblique((0.9, 1.2, 2.0)) @ np.diag([-1, 1, 1, 1.0]))
    image = voxels(grid.shape).astype(np.float32)
    label = np.zeros(grid.shape, np.uint8)
    label[8:20, 25:39, 3:15] = 1
    frame = frame_around_mask(label, grid, size=40)
    resampled, resampled_grid = resample_published(image, grid)
    canonical, canonical_grid = to_canonical(resampled, resampled_grid)
    first = canonical_grid.to_voxel(frame.patch_grid.to_world([[0, 0, 0]]))[0]
    begin = tuple(int(v) for v in np.rint(first))
    np.testing.assert_allclose(first, begin, atol=1e-6)
    np.testing.assert_allclose(crop_or_pad(canonical, begin, 40), frame.crop(image), atol=1e-3)
    patch = frame.crop(label, order=0)
    box = np.argwhere(patch)
    assert np.all(np.abs((box.min(0) + box.max(0)) / 2 - 20) <= 0.5)
    back = label_back(patch, frame)
    assert back.shape == grid.shape and 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.9


def test_crop_or_pad_beyond_the_array():
    array = np.arange(27).reshape(3, 3, 3)
    assert crop_or_pad(array, (-2, -2, -2), 4, 9)[2, 2, 2] == 0
    assert (crop_or_pad(array, (5, 0, 0), 2, 9) == 9).all() and (crop_or_pad(array, (0, -7, 0), 2, 9) == 9).all()
    np.testing.assert_array_equal(crop_or_pad(array, (1, 1, 1), 2), array[1:, 1:, 1:])


def test_a_mask_that_vanishes_is_named():
    label = np.zeros((40, 40, 40), np.uint8)
    with pytest.raises(ValueError, match="must keep a voxel"):
        frame_around_mask(label, Grid(label.shape, np.eye(4)))


def test_a_click_patch_of_the_same_scan_in_two_files(tmp_path):
    array, patches = voxels((30, 28, 12)), []
    for kind, turn in ((".nii.gz", np.eye(4)), (".nrrd", np.diag([1, -1, 1, 1.0]))):
        affine = oblique() @ turn
        if turn[1, 1] < 0:
            affine[:3, 3] = (oblique() @ [0, 27, 0, 1])[:3]
        stored = array if turn[1, 1] > 0 else array[:, ::-1]
        volume = read_volume(write_any(kind, tmp_path, np.ascontiguousarray(stored), affine))
        centre = volume.grid.to_voxel((oblique() @ [12, 9, 5, 1])[None, :3])[0]
        patches.append(PatchFrame.around(volume.grid, centre, 32).crop(volume.array))
    np.testing.assert_allclose(*patches, atol=0.05)
