"""Which files belong together."""

import json

import nibabel as nib
import numpy as np
import pytest
from lib.sam.evaluation.cases import (
    Case,
    find_cases,
    label_names,
    modality_name,
    pair_folders,
    parse_names,
    unique,
)
from lib.sam.evaluation.scans import flat_image, read_labels, read_scan
from lib.sam.volume_io import VolumeError
from PIL import Image


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_equal_names_are_pairs_and_lonely_files_are_said(tmp_path):
    images, labels = tmp_path / "i", tmp_path / "l"
    touch(images / "a.nii.gz", images / "b.v2.nrrd", images / "only.nii", labels / "a.nii.gz", labels / "b.v2.nii.gz")
    touch(labels / "lost.mha", images / "notes.txt")
    cases, problems = pair_folders(images, labels)
    assert [(c.name, c.image.name, c.labels.name) for c in cases] == [
        ("a", "a.nii.gz", "a.nii.gz"),
        ("b.v2", "b.v2.nrrd", "b.v2.nii.gz"),
    ]
    assert [p.case for p in problems] == ["only", "lost"] and not any(p.scored for p in problems)
    with pytest.raises(ValueError, match="same name"):
        pair_folders(images, tmp_path)


def test_a_name_that_two_scans_have_is_taken_once_and_hidden_files_never(tmp_path):
    images, labels = tmp_path / "i", tmp_path / "l"
    touch(images / "a.nii.gz", images / "a.nrrd", images / "._a.nii.gz", labels / "a.nii.gz", labels / "._a.nii.gz")
    found, problems = pair_folders(images, labels)
    cases, again = unique(found)
    assert [c.image.name for c in cases] == ["a.nii.gz"] and problems == []
    assert [p.case for p in again] == ["a"] and "a.nrrd is left out" in again[0].reason and not again[0].scored


def test_studies_of_monai_label(tmp_path):
    touch(tmp_path / "a.nii.gz", tmp_path / "labels" / "final" / "a.nii.gz")
    assert find_cases(tmp_path)[0] == [Case("a", tmp_path / "a.nii.gz", tmp_path / "labels" / "final" / "a.nii.gz")]


def test_nnunet(tmp_path):
    touch(tmp_path / "imagesTr" / "x_01_0000.nii.gz", tmp_path / "imagesTr" / "x_01_0001.nii.gz")
    touch(tmp_path / "imagesTr" / "x_02_0000.nii.gz", tmp_path / "labelsTr" / "x_01.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1, "whole": [1, 2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases, problems = find_cases(tmp_path)
    assert [(c.name, c.image.name, c.modality) for c in cases] == [("x_01", "x_01_0000.nii.gz", "MR")]
    assert [p.case for p in problems] == ["x_02"]
    assert label_names(cases, None, tmp_path) == ({1: "liver"}, [])


def test_four_digits_are_a_channel_only_where_the_label_map_lacks_them(tmp_path):
    """AMOS numbers its cases so."""
    images = [f"amos_{n}" for n in ("0001", "0004", "0507")] + ["x_0000", "x_0001"]
    touch(*(tmp_path / "imagesTr" / f"{name}.nii.gz" for name in images))
    touch(*(tmp_path / "labelsTr" / f"{name}.nii.gz" for name in ("amos_0001", "amos_0004", "x")))
    cases, problems = find_cases(tmp_path)
    assert [(c.name, c.image.name) for c in cases] == [
        ("amos_0001", "amos_0001.nii.gz"),
        ("amos_0004", "amos_0004.nii.gz"),
        ("x", "x_0000.nii.gz"),
    ]
    assert [p.case for p in problems] == ["amos_0507"]


def test_image_beside_label(tmp_path):
    touch(tmp_path / "ct_image.nii.gz", tmp_path / "ct_label.nii.gz", tmp_path / "image.nii", tmp_path / "label.nii")
    touch(tmp_path / "mr_image.nii", tmp_path / "pet_label.nii", tmp_path / "notes.nii")
    (tmp_path / "labels.json").write_text('{"1": "tumour"}')
    cases, problems = find_cases(tmp_path)
    assert [c.name for c in cases] == ["ct", tmp_path.name] and sorted(p.case for p in problems) == ["mr", "pet"]
    assert any("pet_label.nii has no image" in p.reason for p in problems) and not any(p.scored for p in problems)
    assert label_names(cases, None, tmp_path) == ({1: "tumour"}, [])


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="imagesTr"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"1": "a", "2": "b"},
        {"a": 1, "b": 2},
        {"labels": {"background": 0, "a": 1, "b": 2}},
        {"1": "a", "2": "b", "source": "hand", "3": None, "4": ["c"]},
    ],
)
def test_tables_of_names(content):
    assert parse_names(content) == {1: "a", 2: "b"}


def test_a_file_of_names_that_is_none(tmp_path):
    (tmp_path / "n.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"n\.json"):
        label_names([], tmp_path / "n.json", None)


@pytest.mark.parametrize("content", ['{"1": "liver",}', '["liver"]', '{"source": "hand"}', "\xff"])
def test_a_damaged_file_of_names_near_the_data_is_noted(tmp_path, content):
    (tmp_path / "labels.json").write_text(content, encoding="latin-1")
    (tmp_path / "dataset.json").write_text('{"release": "2"}')  # holds no names, and need not
    names, notes = label_names([], None, tmp_path)
    assert names == {} and len(notes) == 1 and "labels.json" in notes[0].reason and notes[0].scored


def test_modalities():
    assert [modality_name(n) for n in ("mri", "CT", "Ultrasound", "xray", "OCT")] == ["MR", "CT", "US", "X-ray", "OCT"]
    assert modality_name("Microscope") == "microscopy"


@pytest.mark.parametrize(
    "stem, modality",
    [
        ("CT_a", "CT"),
        ("3DBox_CT_0566", "CT"),
        ("2DBox_XRay_1", "X-ray"),
        ("2DBox_X-Ray_1", "X-ray"),
        ("2DBox_Microscope_7", "microscopy"),
        ("liver_CT_1", "unknown"),
        ("case1", "unknown"),
    ],
)
def test_archives_say_their_modality_in_one_folder_and_in_two(tmp_path, stem, modality):
    array = np.ones((2, 3, 4), np.uint8)
    for folder in ("i", "l", "both"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "both" / f"{stem}.npz", imgs=array, gts=array)
    np.savez(tmp_path / "i" / f"{stem}.npz", imgs=array)
    np.savez(tmp_path / "l" / f"{stem}.npz", gts=array)
    files = [tmp_path / folder / f"{stem}.npz" for folder in ("i", "l")]
    for cases, problems in (
        find_cases(tmp_path / "both"),
        pair_folders(tmp_path / "i", tmp_path / "l"),
        pair_folders(*files),
    ):
        assert [c.modality for c in cases] == [modality] and problems == []


def test_archives_that_cannot_be_used_are_said(tmp_path):
    array = np.ones((2, 3, 4), np.uint8)
    np.savez(tmp_path / "CT_a.npz", imgs=array, gts=array)
    np.savez(tmp_path / "CT_truth.npz", gts=array)
    np.savez(tmp_path / "CT_other.npz", x=array)
    (tmp_path / "CT_broken.npz").write_bytes(b"PK\x03\x04rubbish")
    (tmp_path / "._CT_a.npz").write_bytes(b"hidden")
    cases, problems = find_cases(tmp_path)
    assert [c.name for c in cases] == ["CT_a"] and not any(p.scored for p in problems)
    assert {p.case: p.reason for p in problems} == {
        "CT_truth": "CT_truth.npz holds no image (imgs)",
        "CT_other": "CT_other.npz holds no image (imgs) and no labels (gts)",
        "CT_broken": "CT_broken.npz is not a whole .npz archive",
    }


def test_archives_of_the_challenge(tmp_path):
    imgs = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)  # depth, height, width
    np.savez_compressed(tmp_path / "CT_a.npz", imgs=imgs, gts=(imgs > 9).astype(np.uint8), spacing=(0.5, 0.6, 5.0))
    np.savez_compressed(tmp_path / "MR_b.npz", imgs=imgs, spacing=(1, 1, 1))
    cases, problems = find_cases(tmp_path)
    assert [(c.name, c.modality) for c in cases] == [("CT_a", "CT")] and [p.case for p in problems] == ["MR_b"]
    scan, labels = read_scan(cases[0].image), read_labels(cases[0].labels)
    assert scan.array.shape == (4, 3, 2) and scan.array[3, 2, 1] == imgs[1, 2, 3]
    assert scan.grid.spacing_mm.tolist() == [0.5, 0.6, 5.0] and scan.grid == labels.grid


def test_archives_with_objects_are_never_unpickled(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "fired"), "w"))

    np.savez(tmp_path / "x.npz", imgs=np.array([Canary()], dtype=object), spacing=np.ones(3))
    with pytest.raises(VolumeError, match="plain array"):
        read_scan(tmp_path / "x.npz")
    assert not (tmp_path / "fired").exists()


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    array = np.ones((3, 3, 3), np.float32)
    array[0, 0, :2] = np.nan
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    np.savez(tmp_path / "a.npz", imgs=array)
    assert read_scan(tmp_path / "a.nii").nonfinite == 2 == read_scan(tmp_path / "a.npz").nonfinite


def test_flat_images_are_volumes_of_one_slice(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)  # height, width
    values = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "p.png")
    Image.fromarray(values).save(tmp_path / "v.png")
    np.savez(tmp_path / "p.npz", imgs=colours, gts=values)
    for scan, labels in (("p.png", "v.png"), ("p.npz", "p.npz")):
        grey, truth = read_scan(tmp_path / scan), read_labels(tmp_path / labels)
        assert grey.array.shape == (7, 5, 1) == truth.array.shape and grey.grid == truth.grid
        assert truth.array[6, 2, 0] == values[2, 6]
        assert abs(int(grey.array[6, 2, 0]) - colours[2, 6].mean()) <= 0.5
        np.testing.assert_array_equal(flat_image(tmp_path / scan), colours)
    with pytest.raises(VolumeError, match="one number"):
        read_labels(tmp_path / "p.png")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "v.nii")
    assert flat_image(tmp_path / "v.nii") is None
