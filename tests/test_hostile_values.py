"""Property-based: whatever clients send is taken within its rules or refused in words, never anything else."""

# ruff: noqa: PT017 - a drawn value may be taken or refused, and both are checked

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lib.dicom_seg import names_of
from lib.infer_route import parse_params
from lib.infers.request import RequestError, parse_answer, parse_prompts, parse_slice_prompts
from lib.sam.geometry import Grid
from lib.sam.prompts import PromptError
from lib.sam.series_check import _check_positions
from lib.sam.volume_io import VolumeError, read_grid, read_volume
from lib.security.archives import ArchiveError, unpack_zip
from lib.security.dicom_proxy import _stays_below
from lib.security.labels import check_label
from lib.security.log_filter import HIDDEN, without_identifiers
from lib.security.names import UnsafeNameError, check_image_id, check_info, check_tag, is_uid, parse_info

GRID = Grid((20, 15, 9), np.diag([1.0, 2.0, 3.0, 1.0]))
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**31, 1e300, "10", [1]])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
points = st.lists(st.integers(-3, 25), min_size=3, max_size=3) | anything
prompts = st.fixed_dictionaries(
    {},
    optional={
        "foreground": st.lists(points, max_size=5) | anything,
        "background": st.lists(points, max_size=5) | anything,
        "liver": st.lists(points, max_size=3),
        "label": st.sampled_from(["liver", "x" * 500, "a\nb"]) | anything,
        "points": st.lists(points, max_size=3) | st.text(max_size=8) | anything,
        "point_labels": st.lists(st.sampled_from([0, 1]), max_size=3) | anything,
        "roi": st.lists(st.integers(-5, 25), min_size=6, max_size=6) | anything,
        "box": anything,
        "slice": st.integers(-2, 12) | anything,
        "window": anything,
        "extent": anything,
        "result_extension": st.sampled_from([".nrrd", ".nii.gz", ".exe"]) | anything,
        "result_dtype": anything,
        "result_write_to_file": anything,
    },
)


@QUICK
@given(prompts)
def test_prompts_lie_in_the_image_or_are_refused(request):
    for parse in (
        lambda: parse_prompts(request, GRID),
        lambda: parse_slice_prompts(request, GRID, True)[0],
        lambda: parse_slice_prompts(request, GRID, False)[0],
    ):
        try:
            found = parse()
        except (RequestError, PromptError) as error:
            assert 0 < len(str(error)) < 1000
            continue
        assert found.clicks or found.box is not None
        for click in found.clicks:
            assert all(0 <= c < n for c, n in zip(click.ijk, GRID.shape))
        if found.box is not None:
            assert all(0 <= a <= b < n for a, b, n in zip(found.box.low_ijk, found.box.high_ijk, GRID.shape))


@QUICK
@given(prompts)
def test_answer_options_are_known_ones_or_refused(request):
    try:
        found = parse_answer(request)
    except RequestError as error:
        assert len(str(error)) < 1000
        return
    assert found.extension in (".nrrd", ".nii.gz", ".nii")
    assert found.label.isprintable()
    assert isinstance(found.write, bool)


@QUICK
@given(st.text(max_size=300) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_params_are_an_object_or_a_400(text):
    from fastapi import HTTPException

    try:
        assert isinstance(parse_params(text), dict)
    except HTTPException as error:
        assert error.status_code == 400


names = st.text(max_size=40) | st.lists(
    st.sampled_from(["..", ".", "/", "\\", "a", "\0", "%2e", " ", "é"]), max_size=6
).map("".join)


@QUICK
@given(names)
def test_a_name_that_is_taken_is_one_file_of_its_folder(name):
    for check in (check_image_id, check_tag):
        try:
            check(name)
        except UnsafeNameError:
            continue
        assert os.path.dirname(os.path.normpath(os.path.join("/studies", name + ".nii.gz"))) == "/studies"
        assert os.path.normpath(os.path.join("/studies", name)) == f"/studies/{name}"
        assert len(os.fsencode(f".{name}.json.0123456789abcdef.part")) <= 255
    assert not is_uid(name) or set(name) <= set("0123456789.")


@QUICK
@given(anything)
def test_metadata_that_is_taken_can_be_given_out_again(value):
    try:
        check_info(value)
    except UnsafeNameError:
        return
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert parse_info(text) == value


@QUICK
@given(names)
def test_a_path_for_the_dicomweb_server_stays_below_its_address(path):
    from urllib.parse import unquote

    import requests

    if not _stays_below(path):
        return
    url = requests.Request("GET", f"http://pacs/dicom-web/{path}").prepare().url
    assert url.startswith("http://pacs/dicom-web/")
    assert ".." not in unquote(unquote(url)).split("/")


KEYS = st.sampled_from(
    ["PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate", "ReferringPhysicianName"]
)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_characters="\\'\"", exclude_categories=["C", "Z"]), min_size=4, max_size=20
)


@QUICK
@given(
    KEYS,
    VALUES.filter(lambda v: v not in "Info more Number of images" and HIDDEN not in v),
    st.sampled_from([repr, json.dumps]),
)
def test_identifiers_do_not_reach_the_log(key, value, write):
    text = without_identifiers(f"Info: {write({'Modality': 'CT', key: value, 'more': 1})}")
    assert value not in text or value in "Info: Modality CT more" + key
    assert "'CT'" in text or '"CT"' in text


@pytest.mark.parametrize(
    "text", ["Patient segmentation of 5 images", "StudyInstanceUID: 1.2.3", "took 3 s; image case1"]
)
def test_other_words_stay_in_the_log(text):
    assert without_identifiers(text) == text


@QUICK
@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), max_size=12), st.integers(0, 400))
def test_a_damaged_header_is_read_alike_or_refused(tmp_path, changes, cut):
    raw = bytearray(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([1.0, 2, 3, 1])).to_bytes())
    for at, value in changes:
        raw[at] = value
    path = Path(tmp_path, "x.nii.gz")
    path.write_bytes(gzip.compress(bytes(raw[: len(raw) - (cut if cut < 100 else 0)]), 1))
    try:
        with np.errstate(all="ignore"):
            volume = read_volume(path, 1 << 20)
    except VolumeError as error:
        assert len(str(error)) < 2000
        return
    finally:
        try:
            header = read_grid(path)
        except VolumeError:
            header = None
    assert volume.nbytes <= 1 << 20
    assert np.isfinite(volume.array).all()
    assert header == volume.grid
    with contextlib.suppress(VolumeError):
        check_label(path, path, 1 << 20)


@pytest.mark.parametrize("quaternion", [(1.0, 1.0, 1.0), (np.nan, 0.0, 0.0), (np.inf, 0.0, 0.0)])
def test_a_label_of_an_image_whose_unused_grid_is_damaged(tmp_path, quaternion):
    raw = bytearray(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([1.0, 2, 3, 1])).to_bytes())
    raw[256:268] = np.array(quaternion, "<f4").tobytes()
    path = Path(tmp_path, "x.nii")
    path.write_bytes(raw)
    check_label(path, path, 1 << 20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.integers(0, 4000)), max_size=5), st.binary(max_size=80), st.integers(0, 500))
@example([("", 0), ("", 0)], b"\x00\x01", 176)  # a member before the file's begin
def test_an_archive_unpacks_into_its_folder_within_bounds_or_is_refused(tmp_path, members, noise, at):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in members:
            archive.writestr(name.replace("\0", "") or "x", bytes(size))
    raw = bytearray(made.getvalue())
    raw[at : at + len(noise)] = noise
    folder = Path(tmp_path, f"{os.urandom(8).hex()}")
    folder.mkdir()
    (tmp_path / "x.zip").write_bytes(bytes(raw))
    before = sorted(p for p in tmp_path.iterdir() if p != folder)
    try:
        count = unpack_zip(tmp_path / "x.zip", folder, 8000)
    except ArchiveError:
        count = None
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 8000
    assert count in (None, len(files))
    assert sorted(p for p in tmp_path.iterdir() if p != folder) == before


@QUICK
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8, unique=True), st.floats(-3, 3), st.floats(-3, 3))
def test_slices_stack_or_are_refused(heights, along_row, along_column):
    heights = np.array(heights)
    axes = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    positions = np.stack([along_row * heights, along_column * heights, heights], axis=1)
    reach = np.ptp(heights) * max(abs(along_row), abs(along_column))
    gaps = np.diff(np.sort(heights))
    try:
        warnings = _check_positions(positions, axes, np.array([1.0, 1.0]), "x")
    except VolumeError as error:
        assert "gantry" in str(error) and reach > 0.49 or "same one" in str(error)
        return
    assert reach <= 0.51
    assert bool(warnings) == (np.ptp(gaps) > 0.01 * gaps.max())


@QUICK
@given(
    st.dictionaries(st.integers(1, 9), st.text(min_size=1, max_size=5), max_size=6),
    st.sets(st.integers(1, 9), min_size=1),
)
def test_each_value_has_its_own_name_or_is_refused(known, values):
    info = {"label_info": [{"name": name, "idx": value} for value, name in known.items()]}
    values = sorted(values)
    try:
        found = names_of(info, values)
    except VolumeError:
        assert not set(values) <= set(known)
        return
    assert [entry["name"] for entry in found] == [known[value] for value in values]
