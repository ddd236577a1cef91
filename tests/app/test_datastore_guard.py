"""Hostile names and files over HTTP: nothing outside the datastore is read, written or removed; nothing is left behind."""

from __future__ import annotations

import gzip
import io
import os
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.app.serving import shipped_model, start, stop, within
from tests.app.trees import tree_hash
from tests.app.volumes import AFFINE, CENTRE_IJK, SHAPE, save, scan, target

pytestmark = pytest.mark.e2e

CLICK = {"foreground": [list(CENTRE_IJK)]}
HOSTILE_NAMES = [
    "../outside",
    "../../outside",
    "..",
    ".",
    "/tmp/outside",
    "a/b",
    "a\\b",
    ".hidden",
    "x" * 300,
    "a\nb",
    " ",
]
LIMIT = 0.02  # GiB for one upload


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return gzip.compress(nib.Nifti1Image(array, affine).to_bytes(), 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder that holds the studies and, beside them, what nobody may touch."""
    world = tmp_path_factory.mktemp("world")
    (world / "studies").mkdir()
    (world / "archive").mkdir()
    for n in (1, 2, 3):
        save(world / "studies" / f"case{n}.nii.gz", scan(n))
    save(world / "archive" / "linked.nii.gz", scan(4))
    (world / "studies" / "linked.nii.gz").symlink_to(world / "archive" / "linked.nii.gz")
    (world / "victim").mkdir()
    (world / "victim" / "meta.info").write_text('{"name": "v", "image": "/nowhere", "expiry": 1}')
    (world / "secret.nii.gz").write_bytes((world / "archive" / "linked.nii.gz").read_bytes())
    return world


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    running = start(
        world / "studies",
        tmp_path_factory.mktemp("guarded"),
        *shipped_model(),
        "upload_gb",
        str(LIMIT),
        "cache_gb",
        "0.5",
    )
    yield running
    stop(running)


@pytest.fixture(autouse=True)
def _nothing_outside_changed(server, world):
    """Around each test: the world beside the studies is the same, and no file of an upload is left."""
    before = tree_hash(world, [world / "studies"])
    yield
    assert tree_hash(world, [world / "studies"]) == before
    deadline = time.monotonic() + 5  # MONAI Label removes an answer's file after it is out
    while (left := [path.name for path in server.temporary.iterdir() if path.suffix != ".json"]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not left
    assert not [path for path in (world / "studies").rglob("*.part")]


def put_label(server, image="case1", tag="final", content=None, name="label.nii.gz", params="{}"):
    content = nifti(target().astype(np.uint8)) if content is None else content
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": tag},
        files={"label": (name, content), "params": (None, params)},
        timeout=60,
    )


def put_image(server, image, content=None, name="new.nii.gz", params="{}"):
    content = nifti(scan(7)) if content is None else content
    query = {} if image is None else {"image": image}
    files = {"file": (name, content), "params": (None, params)}
    return requests.put(f"{server.url}/datastore/image", params=query, files=files, timeout=60)


def images(server) -> set[str]:
    return set(server.get("/datastore/?output=all").json()["objects"])


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_an_image_id_is_a_plain_name(server, name):
    known = images(server)
    assert put_image(server, name).status_code == 422
    assert requests.put(f"{server.url}/datastore/", params={"image": name}, files={"file": ("a.nii.gz", nifti(scan(7)))},
                        timeout=60).status_code == 422  # fmt: skip
    assert images(server) == known


@pytest.mark.parametrize("name", ["../x.nii.gz", "..\\x.nii.gz", "/etc/x.nii.gz", ".nii.gz", "%2e%2e%2fx.nii.gz"])
def test_a_file_name_that_becomes_an_id(server, name, world):
    answer = put_image(server, None, name=name)
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:  # the multipart parser or the escape left a plain name
        assert (world / "studies" / f"{answer.json()['image']}.nii.gz").is_file()
        assert requests.delete(f"{server.url}/datastore/image", params={"id": answer.json()["image"]}, timeout=60).ok


@pytest.mark.parametrize("tag", ["../../../x", "/tmp/x", "..", "a/b", "a\\b", "%2e%2e", ".x", "x" * 100, "final/../x"])
def test_a_label_tag_is_a_plain_name(server, tag):
    assert put_label(server, tag=tag).status_code == 422
    for method in (requests.head, requests.get):
        answer = method(
            f"{server.url}/datastore/label", params={"label": "case1", "image": "case1", "tag": tag}, timeout=60
        )
        assert answer.status_code == 404
    assert requests.delete(f"{server.url}/datastore/label", params={"id": "case1", "tag": tag}, timeout=60).ok


@pytest.mark.parametrize("image", ["../secret", "/etc/passwd", "..%2fsecret", "secret"])
def test_only_images_of_the_datastore_are_given_out_or_labelled(server, image):
    assert server.get(f"/datastore/image?image={image}").status_code == 404
    assert put_label(server, image=image).status_code == 404
    assert requests.delete(f"{server.url}/datastore/image", params={"id": image}, timeout=60).status_code == 404


@pytest.mark.parametrize("path", ["/datastore/image?image=a%00b", "/session/a%00b", "/ohif/%00", "/infer/a%00b"])
def test_a_nul_is_no_part_of_an_address(server, path):
    assert server.get(path).status_code == 400


def test_a_linked_image_is_read_and_never_written_through_or_removed(server, world):
    assert server.infer("linked", CLICK, output="json").status_code == 200
    assert put_image(server, "linked").status_code == 200
    assert not (world / "studies" / "linked.nii.gz").is_symlink()
    (world / "studies" / "link2.nii.gz").symlink_to(world / "archive" / "linked.nii.gz")
    put_image(server, "anything")
    assert within(10, lambda: "link2" in images(server))  # the watcher sees the link
    assert requests.delete(f"{server.url}/datastore/image", params={"id": "link2"}, timeout=60).status_code == 200
    assert not os.path.lexists(world / "studies" / "link2.nii.gz")


def test_an_image_with_labels_is_not_replaced(server):
    assert put_label(server, "case3").status_code == 200
    assert put_image(server, "case3").status_code == 409
    assert server.infer("case3", CLICK, output="json").status_code == 200


@pytest.mark.parametrize("text", ["[]", "5", '{"a": NaN}', '{"a": 1e999}', "{", '{"a": "\\ud800"}', '{"strategy": 5}', '{"strategy": null}',
                                  '{"a": ' + "[" * 50 + "]" * 50 + "}", '{"a": ' + "9" * 5000 + "}"])  # fmt: skip
def test_metadata_that_could_not_be_given_out_again(server, text):
    assert put_label(server, params=text).status_code == 422
    assert put_image(server, "meta", params=text).status_code == 422
    for path in ("/datastore/image/info?image=case1", "/datastore/label/info?label=case3&tag=final"):
        assert requests.put(server.url + path, files={"info": (None, text)}, timeout=60).status_code in (400, 404, 422)
    assert server.get("/datastore/?output=all").status_code == 200
    assert requests.post(f"{server.url}/activelearning/first", json={}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "label"),
        (b"no image", "label"),
        (nifti(target().astype(np.uint8))[:-200], "label"),
        (nifti(np.zeros((3, 3, 3), np.uint8)), "sizes"),
        (nifti(target().astype(np.uint8), np.diag([-1.2, -1.2, 1.8, 1.0])), "lie on its image"),
        (nifti(target().astype(np.uint8), AFFINE @ np.diag([-1, 1, 1, 1])), "lie on its image"),
        (nifti(np.full(SHAPE, 0.5, np.float32)), "whole numbers"),
        (nifti(np.full(SHAPE, -1, np.int16)), "whole numbers"),
    ],
    ids=["empty", "text", "truncated", "other sizes", "elsewhere", "flipped", "fractions", "negative"],
)
def test_a_label_that_cannot_be_one_leaves_the_old_one(server, content, words, world):
    assert put_label(server, "case2").status_code == 200
    before = (world / "studies" / "labels" / "final" / "case2.nii.gz").read_bytes()
    answer = put_label(server, "case2", content=content)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert (world / "studies" / "labels" / "final" / "case2.nii.gz").read_bytes() == before


def test_an_ending_that_is_no_volume(server):
    assert put_image(server, "x", name="x.exe").status_code == 422
    assert put_label(server, name="x.pkl").status_code == 422
    assert put_image(server, "x", name="a" * 5000 + ".nii.gz.exe").status_code in (400, 422)


class Stream:
    """A body of unknown length: sent in chunks, without Content-Length."""

    def __init__(self, head: bytes, size: int) -> None:
        self.head, self.left = head, size

    def __iter__(self):
        yield self.head
        while self.left > 0:
            self.left -= 1 << 20
            yield bytes(1 << 20)


@pytest.mark.parametrize("path", ["/datastore/image?image=big", "/session/", "/infer/fastsam3d", "/model/fastsam3d"])
def test_a_body_beyond_the_limit_is_413_whether_it_says_so_or_not(server, path):
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    method = "POST" if path.startswith("/infer") else "PUT"
    for body in (Stream(head, 64 << 20), head + bytes(24 << 20)):
        try:
            answer = requests.request(method, server.url + path, data=body, headers=kind, timeout=60)
        except requests.ConnectionError:
            continue  # the server closed the connection while this was still sending
        assert answer.status_code == 413
    assert server.alive()


def test_a_volume_that_inflates_beyond_memory_is_413_and_costs_none(server):
    import psutil

    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 2048))
    header.set_data_dtype(np.int32)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=9) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(100):
            stream.write(bytes(1 << 20))
    process = psutil.Process(server.process.pid)
    family = [process, *process.children(recursive=True)]
    before = sum(p.memory_info().rss for p in family)
    for answer in (
        put_image(server, "bomb", bomb.getvalue()),
        put_label(server, content=bomb.getvalue()),
        requests.post(
            f"{server.url}/infer/fastsam3d",
            files={"file": ("a.nii.gz", bomb.getvalue()), "params": (None, '{"foreground": [[1, 2, 3]]}')},
            timeout=60,
        ),  # fmt: skip
    ):
        assert answer.status_code in (413, 422), answer.text
    assert sum(p.memory_info().rss for p in family) - before < 300 << 20


def session(server, content: bytes, name: str, **query):
    return requests.put(f"{server.url}/session/", params=query, files={"files": (name, content)}, timeout=60)


def zipped(*members: tuple[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def test_archives_are_bounded_and_their_names_are_not_used(server):
    assert session(server, zipped(("big", bytes(64 << 20))), "a.zip", uncompress=True).status_code == 413
    assert session(server, b"PK\x03\x04 nothing", "a.zip", uncompress=True).status_code == 422
    assert session(server, zipped(), "a.zip", uncompress=True).status_code == 422
    assert session(server, b"x" * 600, "a.tar.gz", uncompress=True).status_code == 422
    sent = session(server, zipped(("../../../outside", b"x"), ("/tmp/outside", b"y")), "a.zip", uncompress=True)
    assert sent.status_code == 200
    folder = sent.json()["session_info"]["image"]
    assert sorted(os.listdir(folder)) == ["000000", "000001"]
    assert requests.delete(f"{server.url}/session/{sent.json()['session_id']}", timeout=60).status_code == 200


def test_a_patients_name_in_a_file_name_is_not_kept(server):
    sent = session(server, nifti(scan(1)), "DOE^JANE_19700101.nii.gz")
    assert sent.status_code == 200
    assert "DOE" not in sent.text
    assert "DOE" not in server.log.read_text()
    requests.delete(f"{server.url}/session/{sent.json()['session_id']}", timeout=60)


@pytest.mark.parametrize("name", ["..", "../x.nii.gz", "x" * 400 + ".nii.gz", "a.exe", ""])
def test_session_file_names(server, name):
    answer = session(server, nifti(scan(1)), name)
    assert answer.status_code in (200, 400, 422)
    if answer.status_code == 200:
        requests.delete(f"{server.url}/session/{answer.json()['session_id']}", timeout=60)


def test_a_click_on_a_session_that_is_gone_says_what_to_do(server):
    sent = session(server, nifti(scan(1)), "volume.nii.gz").json()["session_id"]
    assert server.infer("case1", CLICK, session_id=sent, output="json").status_code == 200
    requests.delete(f"{server.url}/session/{sent}", timeout=60)
    answer = server.infer("case1", CLICK, session_id=sent, output="json")
    assert answer.status_code == 404
    assert "send the volume again" in answer.json()["detail"]
    for method in ("GET", "DELETE"):
        same = requests.request(method, f"{server.url}/session/{sent}", timeout=60)
        assert (same.status_code, same.json()) == (404, answer.json())


def test_the_dataset_is_given_out_once_and_its_archive_removed(server):
    put_label(server, "case2")
    answer = server.get("/datastore/dataset")
    assert answer.status_code == 200
    assert any("case2" in name for name in zipfile.ZipFile(io.BytesIO(answer.content)).namelist())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/reload", 403),
        ("POST", "/infer/wsi/fastsam3d?image=/etc/passwd", 404),
        ("POST", "/infer/wsi_v2/fastsam3d?image=/etc/passwd", 404),
        ("POST", "/train/nothing", 404),
        ("POST", "/scoring/nothing", 404),
        ("POST", "/batch/infer/nothing", 404),
        ("GET", "/proxy/dicom/wado/studies", 404),
        ("POST", "/proxy/dicom/stow/studies", 404),
        ("HEAD", "/datastore/image?image=case1&check_sum=CRC:1", 422),
        ("GET", "/ohif/%2e%2e", 404),
        ("GET", "/ohif/assets", 404),
        ("POST", "/infer/fastsam3d", 422),
        ("DELETE", "/model/fastsam3d", 403),
        ("GET", "/model/nothing", 404),
    ],
)
def test_routes_that_fail_in_monai_label(server, method, path, status):
    assert requests.request(method, server.url + path, timeout=60).status_code == status


@pytest.mark.parametrize(
    "path", ["/train/", "/train/fastsam3d", "/scoring/", "/scoring/uncertainty", "/batch/infer/fastsam3d"]
)
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"bundle_path": "/tmp"}, "bundle_path"),
        ({"bundle_path": None}, "bundle_path"),
        ({"gpus": "0;1"}, "gpus"),
        ({"gpus": "\u0660"}, "gpus"),
        ({"gpus": 0}, "gpus"),
        ({"gpus": ["0"]}, "gpus"),
        ({"model_filename": "../x"}, "model_filename"),
    ],
)
def test_a_task_in_the_background_is_told_nothing_that_becomes_code(server, path, told, said):
    task = "uncertainty" if path.startswith("/scoring") else "fastsam3d"
    for params in (told, {task: told}):
        answer = requests.post(server.url + path, json=params, timeout=60)
        assert answer.status_code == 422, answer.text
        assert said in answer.json()["detail"]
    assert requests.post(server.url + path, json={task: "x"}, timeout=60).status_code == 422
    nobody = {"method" if path.startswith("/scoring") else "model": "nothing"}
    assert requests.post(server.url + path, json=nobody, timeout=60).status_code == 404


@pytest.mark.parametrize(
    "path", ["/train/", "/train/fastsam3d", "/scoring/", "/scoring/uncertainty", "/batch/infer/fastsam3d"]
)
def test_no_task_runs_where_requests_are_answered(server, path):
    answer = requests.post(f"{server.url}{path}?run_sync=true", json={}, timeout=60)
    assert answer.status_code == 422
    assert "leave it out" in answer.json()["detail"]


@pytest.mark.parametrize("body", ['"\\ud800"', "[NaN]", "[1e999]", '"x"', "{", "[" * 100_000])
def test_a_body_of_the_wrong_kind_is_a_4xx(server, body):
    answer = requests.post(
        f"{server.url}/activelearning/first", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_a_page_of_another_site_may_not_change_or_read_anything(server):
    evil = {"Origin": "https://evil.example"}
    answer = requests.post(f"{server.url}/activelearning/first", json={}, headers=evil, timeout=60)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in requests.get(f"{server.url}/info/", headers=evil, timeout=60).headers
    for own in (server.url, "http://localhost:3000"):
        assert requests.post(f"{server.url}/activelearning/first", json={}, headers={"Origin": own}, timeout=60).ok
