"""What a client can do wrong: a 4xx that says what, and a server that lives on (checked after each test)."""

import pytest
import requests
from lib.sam.prompts import MAX_CLICKS

from tests.app.volumes import CENTRE_IJK, SHAPE, save, scan

pytestmark = pytest.mark.e2e

CLICK = list(CENTRE_IJK)
GOOD = {"foreground": [CLICK]}


def refused(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text[:300]
    detail = answer.json()["detail"]
    for word in words:
        assert word in detail


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ["at least one foreground click or a box"]),
        ({"foreground": [], "background": [], "roi": []}, ["at least one foreground click or a box"]),
        ({"background": [CLICK]}, ["only 1 background clicks"]),
        ({"foreground": [[SHAPE[0], 0, 0]]}, ["96 x 80 x 64"]),
        ({"foreground": [[-1, 0, 0]]}, ["96 x 80 x 64"]),
        ({"foreground": [["ten", "20", "30"]]}, ["foreground[0] must hold numbers", "ten"]),
        ({"foreground": "10,20,30"}, ["foreground must be a list"]),
        ({"foreground": [[1, 2]]}, ["foreground[0] must be a point of three"]),
        ({"foreground": [[1, 2, 2.5]]}, ["whole voxel indices"]),
        ({"foreground": [[1, 2, None]]}, ["must hold numbers"]),
        ({"roi": [1, 2, 3]}, ["roi must be"]),
        ({"roi": [500, 600, 0, 1, 0, 1]}, ["roi must touch the image"]),
        ({**GOOD, "result_extension": ".exe"}, ["result_extension must be one of"]),
        ({**GOOD, "result_dtype": "object"}, ["result_dtype must be one of"]),
        ({**GOOD, "label": {"a": 1}}, ["label must be a name"]),
    ],
)
def test_bad_prompts(server, params, words):
    refused(server.infer("case1", params), 422, *words)


@pytest.mark.parametrize("text", ['{"foreground": [[NaN, 1, 2]]}', '{"foreground": [[1e999, 1, 2]]}'])
def test_numbers_that_are_none(server, text):
    refused(server.infer("case1", text), 422, "whole voxel indices")


def test_too_many_clicks(server):
    refused(server.infer("case1", {"foreground": [[1, 2, 3]] * 20_000}), 422, f"at most {MAX_CLICKS} clicks, got 20000")


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_so_many_clicks_that_they_are_not_even_parsed(server, count):
    refused(server.infer("case1", {"foreground": [[1, 2, 3]] * count}), 400, f"at most {MAX_CLICKS} clicks")


def test_broken_json(server):
    refused(server.infer("case1", '{"foreground": [[1, 2'), 400, "params must be a JSON object")


@pytest.mark.parametrize("text", ["[1, 2]", '[["image", "case2"]]', '"text"', "5", "null", "[" * 100_000])
def test_json_that_is_no_object(server, text):
    refused(server.infer("case1", text), 400, "params must be a JSON object")


def test_no_params_at_all_are_no_prompts(server):
    answer = requests.post(f"{server.url}/infer/fastsam3d", params={"image": "case1"}, timeout=60)
    refused(answer, 422, "at least one foreground click or a box")


@pytest.mark.parametrize("image", ["nothing", "case1.nii.gz", "../studies/case1", "..%2fcase1", "case1/../case1"])
def test_an_unknown_image(server, image):
    refused(server.infer(image, GOOD), 404, "There is no image")


def test_a_path_of_the_server_is_not_an_image(server, studies, tmp_path):
    private = save(tmp_path / "private.nii.gz", scan(9))
    for path in (studies / "case1.nii.gz", private, "/etc/passwd", "/dev/zero", "/"):
        refused(server.infer(str(path), GOOD), 404, "There is no image")
        refused(server.infer("case1", {**GOOD, "image": str(path)}), 404, "There is no image")


def test_params_may_not_fake_a_session(server, tmp_path):
    private = save(tmp_path / "private.nii.gz", scan(9))
    faked = {**GOOD, "image": str(private), "session": {"image": str(private)}}
    refused(server.infer("case1", faked), 404, "There is no image")


@pytest.mark.parametrize("image", [["case1"], {"id": "case1"}, 5, "case1\0", ""])
def test_an_image_that_is_no_name(server, image):
    refused(server.infer("case1", {**GOOD, "image": image}), 422, "image must be the id")


@pytest.mark.parametrize("session", ["../../../etc", "nothing", "..", "a" * 300, "%2e%2e"])
def test_a_click_on_an_unknown_session_is_not_answered_on_another_image(server, session):
    refused(
        server.infer("case1", GOOD, session_id=session), 404, "has expired or was never here", "send the volume again"
    )


@pytest.mark.parametrize("session", ["nothing", "%2e%2e%2fvictim", "..%5cvictim", "a" * 300])
def test_an_unknown_session_is_a_404(server, session):
    assert server.get(f"/session/{session}").status_code == 404


@pytest.mark.parametrize(
    ("image", "status"),
    [
        ("four_d", 422),
        ("all_nan", 422),
        ("truncated", 422),
        ("text", 422),
        ("zero_size", 422),
        ("huge_header", 413),
    ],
)
def test_an_unusable_image(server, studies, image, status):
    answer = server.infer(image, {"foreground": [[1, 2, 3]]})
    refused(answer, status, image)
    assert str(studies) not in answer.text
    assert str(studies / image) in server.log.read_text()


def test_a_constant_image_is_answered_or_refused_in_words(server):
    answer = server.infer("constant", GOOD, output="json")
    assert answer.status_code in (200, 422)
    assert answer.json().get("warnings") or answer.json().get("detail")


def test_an_unknown_model(server):
    refused(server.infer("case1", GOOD, model="unet"), 404, "no model 'unet'", "fastsam3d")
    refused(server.infer("case1", {**GOOD, "model": ["x"]}), 404, "no model")


@pytest.mark.parametrize("label_info", [[{"name": "x"}], None, [], "liver", ["liver"]])
def test_a_dicom_segmentation_of_files_is_refused_before_the_inference(server, label_info):
    request = {**GOOD, "label_info": label_info}
    refused(server.infer("case1", request, output="dicom_seg"), 422, "non-DICOM datastore")
    assert server.infer("case1", request, output="image").status_code == 200


def test_a_refused_request_leaves_no_file(server):
    before = set(server.temporary.glob("fastsam3d-*"))
    server.infer("case1", {"foreground": [[-1, 0, 0]]})
    assert set(server.temporary.glob("fastsam3d-*")) <= before
