"""`doctor --strict`: each finding on a machine made for it."""

from __future__ import annotations

import os
import socket

import pytest
from lib.doctor import run_checks
from lib.doctor_checks import FAIL, OK
from lib.doctor_security import (
    check_listening,
    check_login,
    check_origins,
    check_pacs,
    check_private,
    check_temporary,
    check_user,
    kept_images,
    strict_checks,
)


def test_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert check_user().status == FAIL
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert check_user().status == OK


@pytest.mark.parametrize(("mode", "readable", "status"), [(0o700, False, OK), (0o750, False, OK), (0o755, False, FAIL),
                                                          (0o755, True, OK), (0o777, True, FAIL), (0o751, False, FAIL)])  # fmt: skip
def test_folders(tmp_path, mode, readable, status):
    tmp_path.chmod(mode)
    found = check_private("x", tmp_path, readable)
    assert found.status == status
    assert ("chmod" in found.remedy) == (status == FAIL)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(("mask", "status"), [(0o022, FAIL), (0o027, OK), (0o077, OK)])
def test_a_folder_that_is_not_there_yet(tmp_path, mask, status):
    before = os.umask(mask)
    try:
        assert check_private("x", tmp_path / "later").status == status
    finally:
        os.umask(before)


def test_temporary_files(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o1777)
    assert "TMPDIR" in check_temporary().remedy
    tmp_path.chmod(0o700)
    assert check_temporary().status == OK


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", OK), ("0.0.0.0", FAIL), ("::1", OK), ("::", FAIL)])
def test_a_port_that_is_open(host, status):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listening.listen()
        assert check_listening(listening.getsockname()[1]).status == status


@pytest.mark.parametrize(
    ("check", "value", "status"),
    [
        (check_pacs, None, OK),
        (check_pacs, "/studies", OK),
        (check_pacs, "http://127.0.0.1:8042/dicom-web", OK),
        (check_pacs, "https://pacs.example.org/dicom-web", OK),
        (check_pacs, "http://pacs.example.org/dicom-web", FAIL),
        (check_pacs, "https://me:secret@pacs.example.org/dicom-web", FAIL),
        (check_login, {}, OK),
        (check_login, {"MONAI_LABEL_AUTH_ENABLE": "true"}, OK),
        (
            check_login,
            {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": "http://login.example.org/r"},
            FAIL,
        ),
        (
            check_login,
            {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": "https://login.example.org/r"},
            OK,
        ),
        (check_origins, {}, OK),
        (check_origins, {"MONAI_LABEL_CORS_ORIGINS": '["https://viewer.example.org"]'}, OK),
        (check_origins, {"MONAI_LABEL_CORS_ORIGINS": '["http://viewer.example.org"]'}, FAIL),
        (check_origins, {"MONAI_LABEL_CORS_ORIGINS": '["*"]'}, FAIL),
    ],
)
def test_settings(check, value, status):
    found = check(value)
    assert found.status == status
    assert bool(found.remedy) == (status == FAIL)
    assert "secret" not in found.detail


def test_images_that_are_kept_elsewhere_are_looked_for_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    usual, sessions, cache = tmp_path / "home" / ".cache" / "monailabel", tmp_path / "sessions", tmp_path / "cache"
    both = {"MONAI_LABEL_SESSION_PATH": f" {sessions} ", "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(cache)}
    assert kept_images({}) == [usual]
    assert kept_images({**both, "MONAI_LABEL_SESSION_PATH": ""}) == [usual, cache]
    assert kept_images(both) == [sessions, cache]
    for folder in (sessions, cache):
        folder.mkdir()
        folder.chmod(0o755)
    for name, value in both.items():
        monkeypatch.setenv(name, value)
    failed = [check.detail for check in strict_checks(None, 1) if check.name == "sessions and cache"]
    assert [str(folder) in text and "755" in text for folder, text in zip((sessions, cache), failed)] == [True, True]


def test_strict_adds_to_the_report(tmp_path):
    tmp_path.chmod(0o755)
    names = [check.name for check in run_checks(str(tmp_path), strict=True)]
    plain = [check.name for check in run_checks(str(tmp_path))]
    assert set(names) - set(plain) >= {"user", "listening", "login", "origins", "studies' privacy", "temporary files"}
