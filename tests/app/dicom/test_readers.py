"""What programs that know nothing of the app read in its DICOM SEGs: highdicom, dcmqi, pydicom's and dicom3tools' checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.app.dicom.world import NAMES, WHOLE
from tests.app.orthanc import instance_uid
from tests.needs import need

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("name", WHOLE)
def test_highdicom_finds_each_slices_pixels_by_the_slice_that_a_frame_refers_to(labelled, name):
    from highdicom.seg import Segmentation

    found = labelled[name]
    # dcmqi does not say that the frames are the slices' own pixels, so highdicom asks to be told; that they are is tested
    how = {"assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    seg = Segmentation.from_dataset(found.seg)
    assert seg.segmentation_type.value == "BINARY"
    sources = [instance_uid(found.uid, k) for k in range(found.label.shape[2])]
    for value, text in NAMES.items():
        (number,) = seg.get_segment_numbers(segment_label=text)
        frames = seg.get_pixels_by_source_instance(sources, segment_numbers=[number], **how)
        assert np.array_equal(frames[..., 0].transpose(2, 1, 0), found.label == value)


@pytest.mark.parametrize("name", WHOLE)
def test_every_element_is_what_the_standard_allows_there(labelled, name, tmp_path, monkeypatch):
    """pydicom refuses values that break the rules of their type; dciodvfy compares with the definition of a SEG."""
    path = tmp_path / "seg.dcm"
    labelled[name].seg.save_as(path)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    elements = [element for element in pydicom.dcmread(path).iterall()]
    assert len(elements) > 100
    tool = shutil.which("dciodvfy")
    need(None if tool else "dciodvfy (Debian's package dicom3tools) is not there")
    said = subprocess.run([tool, path], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("name", ["oblique", "oblique, other spacing"])
def test_dcmqi_counts_the_same_voxels_under_the_same_names(labelled, name, tmp_path):
    tool = Path(sys.executable).with_name("segimage2itkimage")
    need(None if tool.exists() else "segimage2itkimage (package dcmqi) is not there")
    labelled[name].seg.save_as(tmp_path / "seg.dcm")
    subprocess.run([tool, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    meta = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    counts = {}
    for entry in (e for group in meta for e in group):
        voxels = np.asarray(nib.load(tmp_path / f"{entry['labelID']}.nii.gz").dataobj)
        counts[entry["SegmentLabel"]] = int((voxels > 0).sum())
    assert counts == {text: int((labelled[name].label == value).sum()) for value, text in NAMES.items()}
