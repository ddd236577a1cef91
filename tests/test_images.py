"""Which paths a request may make the server read."""

import errno
import http.server
import os
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from lib.images import resolve_image
from lib.security import dicom_store
from lib.uploads import UploadSessions
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.utils.others.generic import md5_digest

UID = "1.2.3.4"


def write(path):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), path)
    return str(path)


@pytest.fixture
def datastore(tmp_path):
    (tmp_path / "studies").mkdir()
    write(tmp_path / "studies" / "case1.nii.gz")
    return LocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])


@pytest.fixture
def sessions(tmp_path):
    return UploadSessions(str(tmp_path / "sessions"), 3600)


def status(request, datastore, sessions, uploaded=False) -> int:
    with pytest.raises(HTTPException) as caught:
        resolve_image(request, datastore, sessions, uploaded)
    return caught.value.status_code


def test_an_id_of_the_datastore(datastore, sessions, tmp_path):
    found = resolve_image({"image": "case1"}, datastore, sessions, False)
    assert found == ("case1", str(tmp_path / "studies" / "case1.nii.gz"))


def test_a_sessions_image(datastore, sessions, tmp_path):
    _, info = sessions.add_session(write(tmp_path / "upload.nii.gz"))
    found = resolve_image({"image": info.image}, datastore, sessions, False)
    assert found == (info.image, os.path.realpath(info.image))
    assert status({"image": info.image}, datastore, None) == 404


def test_other_paths_and_links_are_no_images(datastore, sessions, tmp_path):
    private = write(tmp_path / "private.nii.gz")
    _, info = sessions.add_session(write(tmp_path / "upload.nii.gz"))
    link = os.path.join(os.path.dirname(info.image), "link.nii.gz")
    os.symlink(private, link)
    for path in (private, link, str(tmp_path / "studies" / "case1.nii.gz"), sessions.store_path + "/../private.nii.gz"):
        assert status({"image": path}, datastore, sessions) == 404


def test_a_file_that_came_with_the_request_and_no_other_or_linked_one(datastore, sessions, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fresh = write(tmp_path / "tmpab12_xyz.nii.gz")
    assert resolve_image({"image": fresh}, datastore, sessions, True)[1] == fresh
    os.utime(fresh, (time.time() - 3600,) * 2)  # it waited for its turn, or the clock jumped
    assert resolve_image({"image": fresh}, datastore, sessions, True)[1] == fresh
    assert status({"image": fresh}, datastore, sessions, False) == 404  # somebody else's
    os.symlink(write(tmp_path / "private.nii.gz"), tmp_path / "tmpabcdefgh.nii.gz")
    assert status({"image": str(tmp_path / "tmpabcdefgh.nii.gz")}, datastore, sessions, True) == 404
    assert status({"image": str(tmp_path / "private.nii.gz")}, datastore, sessions, True) == 404


@pytest.mark.parametrize("image", [None, "", 5, ["case1"], "case1\0.nii.gz"])
def test_what_is_no_name(datastore, sessions, image):
    assert status({"image": image}, datastore, sessions) == 422


@pytest.fixture
def pacs(tmp_path):
    """A DICOMweb datastore whose server answers every question with `pacs.status`, or with no series if that is 200."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(made.status)
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = DICOMwebClientX(f"http://127.0.0.1:{server.server_port}")
        client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=1)
        made = DICOMWebDatastore(client, {"Modality": "CT"}, str(tmp_path / "cache"))
        yield made
        server.shutdown()


@pytest.mark.parametrize("status", [200, 400, 404, 410])
def test_a_series_that_the_pacs_does_not_have(pacs, status):
    pacs.status = status
    with pytest.raises(HTTPException) as caught:
        resolve_image({"image": UID}, pacs, None, False)
    assert caught.value.status_code == 404


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_pacs_that_refuses_or_fails_is_named_with_its_status(pacs, status):
    pacs.status = status
    with pytest.raises(HTTPException) as caught:
        resolve_image({"image": UID}, pacs, None, False)
    assert caught.value.status_code == 502
    assert f"it answers {status} " in caught.value.detail
    assert "127.0.0.1" not in caught.value.detail


@pytest.mark.parametrize("session_id", ["../victim", "..", "", "a/b", "a\0b", "x" * 65, None])
def test_a_session_id_is_a_plain_name(sessions, tmp_path, session_id):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "meta.info").write_text('{"name": "v", "image": "/nowhere", "expiry": 1}')
    assert sessions.get_session(session_id) is None
    assert victim.exists()


def test_broken_session_folders_do_not_stop_the_cleaning(sessions, tmp_path):
    old = time.time() - 2 * sessions.expiry
    for name, text in (("empty", None), ("broken", "{no json"), ("strange", '["a"]')):
        folder = tmp_path / "sessions" / name
        folder.mkdir(parents=True)
        if text:
            (folder / "meta.info").write_text(text)
        os.utime(folder, (old, old))
    alive, _ = sessions.add_session(write(tmp_path / "upload.nii.gz"))
    expired, info = sessions.add_session(write(tmp_path / "upload2.nii.gz"))
    info.last_access_ts = int(old)
    sessions._write_meta_info(expired, info)
    assert sessions.remove_expired() == 4
    assert os.listdir(sessions.store_path) == [alive]
    assert sessions.get_session(alive) is not None


def test_a_series_that_was_downloaded_by_half_is_not_there(tmp_path, monkeypatch):
    def half(study, series, folder, client, by_frame):
        (Path(folder) / "1.dcm").write_bytes(b"one of many")
        raise ConnectionResetError("the server went away")

    monkeypatch.setattr(dicom_store, "dicom_web_download_series", half)
    old = tmp_path / "cache" / md5_digest("http://127.0.0.1:1") / ".fetch-old.part"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    store = dicom_store.SafeDICOMWebDatastore(DICOMwebClientX("http://127.0.0.1:1"), {}, str(tmp_path / "cache"))
    with pytest.raises(ConnectionResetError):
        store.get_image_uri(UID)
    assert not [path for path in (tmp_path / "cache").rglob("*") if UID in path.name or ".fetch" in path.name]


def test_a_session_whose_last_use_cannot_be_noted_is_still_there(sessions, tmp_path, monkeypatch):
    session, info = sessions.add_session(write(tmp_path / "upload.nii.gz"))

    def full(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lib.uploads.write_text", full)
    assert sessions.get_session(session).image == info.image
