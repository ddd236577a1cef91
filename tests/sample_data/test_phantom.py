"""The sample data: anatomy that can be trusted as ground truth, in files that every reader agrees on."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

REPO = Path(__file__).resolve().parents[2]
SAMPLE_DATA = REPO / "sample-data"
sys.path.insert(0, str(SAMPLE_DATA))

import make as make_script  # noqa: E402
from dicom_series import to_patient_order, write_series  # noqa: E402
from phantom import LABELS, PhantomSpec, make_phantom  # noqa: E402

COARSE = PhantomSpec(seed=5, shape=(116, 98, 60), spacing=(3.0, 3.0, 4.0))
SPECS = {
    "RAS": COARSE,
    "LPS": replace(COARSE, seed=6, patient=2, orientation="LPS"),
    "oblique": replace(COARSE, seed=7, patient=3, orientation="LPS", tilt=(7.0, -5.0, 9.0)),
}
# HU that a radiologist would expect in the portal venous phase, for the median of a label's inside.
INSIDE_HU = {
    "liver": (95, 125), "spleen": (105, 145), "left kidney": (155, 215), "right kidney": (155, 215), "aorta": (220, 280),
    "left lung": (-880, -780), "right lung": (-880, -780), "vertebra": (120, 320), "lesion": (40, 80),
}  # fmt: skip
VOLUME_ML = {
    "liver": (900, 1900), "spleen": (70, 300), "left kidney": (70, 220), "right kidney": (70, 220), "aorta": (40, 130),
    "left lung": (200, 1200), "right lung": (200, 1400), "vertebra": (25, 80), "lesion": (3, 66),
}  # fmt: skip


@pytest.fixture(scope="module")
def phantoms():
    return {name: make_phantom(spec) for name, spec in SPECS.items()}


@pytest.fixture(scope="module", params=list(SPECS))
def phantom(request, phantoms):
    return phantoms[request.param]


@pytest.fixture(scope="module")
def series(phantom, tmp_path_factory):
    """(folder of the DICOM series, labels (I, J, K) in its order, image likewise, affine ijk -> RAS mm)."""
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, phantom.image, phantom.affine, "case1", "test")
    labels, affine = to_patient_order(phantom.labels, phantom.affine)
    return folder, labels, to_patient_order(phantom.image, phantom.affine)[0], affine


def centre_mm(phantom, name):
    """Centre of mass of a label, RAS mm."""
    ijk = np.argwhere(phantom.labels == LABELS[name]).mean(axis=0)
    return phantom.affine[:3, :3] @ ijk + phantom.affine[:3, 3]


def test_same_spec_same_voxels_other_seed_other_patient(phantoms):
    again, other = make_phantom(COARSE), make_phantom(replace(COARSE, seed=8))
    assert np.array_equal(again.image, phantoms["RAS"].image)
    assert np.array_equal(again.labels, phantoms["RAS"].labels)
    assert np.array_equal(again.affine, phantoms["RAS"].affine)
    assert np.mean(other.labels != again.labels) > 0.02


def test_types_and_range(phantom):
    assert phantom.image.dtype == np.int16
    assert phantom.labels.dtype == np.uint8
    assert phantom.image.shape == phantom.labels.shape == phantom.spec.shape
    assert phantom.image.min() >= -1024
    assert phantom.image.max() <= 3071
    assert set(np.unique(phantom.labels)) == {0, *LABELS.values()}


@pytest.mark.parametrize("name", LABELS)
def test_each_label_is_one_component_of_plausible_size_and_hu(phantom, name):
    mask = phantom.labels == LABELS[name]
    assert label(mask)[1] == 1
    millilitres = mask.sum() * abs(np.linalg.det(phantom.affine[:3, :3])) / 1000
    assert VOLUME_ML[name][0] <= millilitres <= VOLUME_ML[name][1]
    inside = binary_erosion(mask)
    assert INSIDE_HU[name][0] <= np.median(phantom.image[inside if inside.any() else mask]) <= INSIDE_HU[name][1]


def test_lesion_lies_within_the_liver(phantom):
    lesion = phantom.labels == LABELS["lesion"]
    ring = binary_dilation(lesion) & ~lesion
    assert np.mean(phantom.labels[ring] == LABELS["liver"]) > 0.97


def test_sides_and_heights_in_ras(phantom):
    """RAS: x grows to the patient's right, where the liver lies; y to the front; z to the head."""
    at = {name: centre_mm(phantom, name) for name in LABELS}
    spine = at["vertebra"]
    for right in ("liver", "lesion", "right kidney", "right lung"):
        assert at[right][0] > spine[0] + 10, right
    for left in ("spleen", "left kidney", "left lung", "aorta"):
        assert at[left][0] < spine[0], left
    assert at["aorta"][1] > spine[1] + 5
    assert at["liver"][1] > spine[1] + 15
    assert min(at["left lung"][2], at["right lung"][2]) > at["liver"][2] > at["right kidney"][2]


def test_stored_orientation_is_the_one_asked_for(phantom):
    assert "".join(nib.aff2axcodes(phantom.affine)) == phantom.spec.orientation
    np.testing.assert_allclose(np.linalg.norm(phantom.affine[:3, :3], axis=0), phantom.spec.spacing)
    off_axis = np.abs(phantom.affine[:3, :3]) / phantom.spec.spacing
    assert (off_axis.max(axis=0) < 0.999).all() == any(phantom.spec.tilt)


@pytest.mark.parametrize("orientation", ["SAL", "PIR"])
def test_any_orientation_of_axes(orientation):
    tiny = PhantomSpec(shape=(16, 20, 24), spacing=(12.0, 11.0, 10.0), orientation=orientation)
    assert "".join(nib.aff2axcodes(make_phantom(tiny).affine)) == orientation


def test_boundaries_have_partial_volume(phantoms):
    """Between lung (-845 HU) and chest wall (50 HU) lie voxels of every value: the edge is not a step."""
    image = phantoms["RAS"].image
    lung = np.isin(phantoms["RAS"].labels, (LABELS["left lung"], LABELS["right lung"]))
    edge = image[lung & ~binary_erosion(lung)]
    counts, _ = np.histogram(edge, bins=np.arange(-800, -350, 90))
    assert (counts > 0.02 * edge.size).all()


def test_dicom_files_are_a_valid_uniform_series(series):
    folder, labels, _, affine = series
    files = sorted(folder.glob("*.dcm"))
    slices = [pydicom.dcmread(f) for f in files]
    assert len(slices) == labels.shape[2]
    assert [int(s.InstanceNumber) for s in slices] == list(range(1, len(slices) + 1))
    assert len({s.SOPInstanceUID for s in slices}) == len(slices)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        values = {s[keyword].value for s in slices}
        assert len(values) == 1
        uid = pydicom.uid.UID(values.pop())
        assert uid.is_valid
        assert uid.startswith("2.25.")
    first = slices[0]
    assert first.SOPClassUID == pydicom.uid.CTImageStorage == first.file_meta.MediaStorageSOPClassUID
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    assert str(first.PatientName) == "PHANTOM^CASE1"
    required = (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
        "AccessionNumber Modality SeriesNumber PositionReferenceIndicator PatientPosition Manufacturer ImageType "
        "SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored "
        "HighBit PixelRepresentation PixelSpacing SliceThickness KVP AcquisitionNumber RescaleSlope RescaleIntercept"
    )
    assert not [keyword for keyword in required.split() if keyword not in first]
    rows, columns = np.float64(first.ImageOrientationPatient[:3]), np.float64(first.ImageOrientationPatient[3:])
    assert abs(rows @ columns) < 1e-9
    along = [np.float64(s.ImagePositionPatient) @ np.cross(rows, columns) for s in slices]
    np.testing.assert_allclose(
        np.diff(along), np.linalg.norm(affine[:3, 2]), atol=1e-6
    )  # right-handed, ascending, uniform


def test_simpleitk_reads_the_same_voxels_and_place(series):
    sitk = pytest.importorskip("SimpleITK")
    folder, _, image, affine = series
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    read = sitk.ReadImage(names)
    assert np.array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), image)
    far = [n - 1 for n in image.shape]
    lps = np.array(read.TransformIndexToPhysicalPoint(far))
    np.testing.assert_allclose(lps * (-1, -1, 1), affine[:3, :3] @ far + affine[:3, 3], atol=1e-3)


def test_monai_loads_the_series_in_the_order_of_its_label_file(series):
    transforms = pytest.importorskip("monai.transforms")
    folder, _, image, affine = series
    read = transforms.LoadImage(reader="ITKReader", image_only=True)(str(folder))
    assert np.array_equal(np.asarray(read), image)
    np.testing.assert_allclose(np.asarray(read.affine), affine, atol=1e-3)


def test_make_writes_studies_once_and_drops_what_is_no_longer_asked_for(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--cases", "2", "--shape", "60,50,40", "--spacing", "6,6,6", "--jobs", "1"]
    assert make_script.main([*arguments, "--dicom"]) == 0
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    assert {str(p.relative_to(tmp_path)) for p in files} == {
        "dicom/case1.nii.gz",
        *(f"studies/{folder}{case}.nii.gz" for folder in ("", "labels/final/") for case in ("case1", "case2")),
    }
    assert json.loads((tmp_path / "labels.json").read_text())["1"] == "liver"
    about = json.loads((tmp_path / "dicom" / "case1.json").read_text())
    one = pydicom.dcmread(next((tmp_path / "dicom" / about["series"]).glob("*.dcm")))
    assert (one.StudyInstanceUID, one.SeriesInstanceUID) == (about["study_uid"], about["series_uid"])
    assert nib.load(tmp_path / "dicom" / about["labels"]).shape == tuple(about["shape_ijk"])
    image, labels = (nib.load(tmp_path / p) for p in ("studies/case2.nii.gz", "studies/labels/final/case2.nii.gz"))
    assert image.get_data_dtype() == np.int16
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, labels.affine)

    assert make_script.main([*arguments, "--dicom"]) == 0
    assert make_script.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")} == files
    assert "up to date" in capsys.readouterr().out

    assert make_script.main([*arguments[:3], "1", *arguments[4:]]) == 0
    assert sorted(p.name for p in (tmp_path / "studies").glob("*.nii.gz")) == ["case1.nii.gz"]
    assert not [p for p in tmp_path.rglob(".*") if p.name != make_script.RECORD]


@pytest.mark.parametrize(
    "wrong", [["--spacing", "1,2"], ["--shape", "4,4,4"], ["--cases", "0"], ["--spacing", "1,a,2"]]
)
def test_make_refuses_wrong_arguments(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make_script.main(["--out", str(tmp_path), *wrong])
    assert stop.value.code == 2
    assert "got" in capsys.readouterr().err


def test_the_app_never_imports_the_generator():
    """The weights that ship must not have seen these phantoms, so no code of the app may import what makes them."""
    ours = {p.stem for p in SAMPLE_DATA.glob("*.py")}
    for source in (REPO / "apps").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {n.split(".")[0] for n in names} & ours, source
