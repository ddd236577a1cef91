"""The doctor reports on this real environment, on broken ones made here, and never ends by an exception."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lib import doctor_checks
from lib.doctor import main, report, run_checks
from lib.doctor_checks import (
    FAIL,
    OK,
    PINS,
    WARN,
    Check,
    Pin,
    check_dicom_tools,
    check_folder,
    check_monailabel_command,
    check_package,
    check_port,
    check_studies,
    version_tuple,
)

ROOT = Path(__file__).resolve().parent.parent


def run_doctor(*arguments, python=(sys.executable,)):
    command = [*python, str(ROOT / "apps" / "fastsam3d"), "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("1.26.4", (1, 26, 4)), ("5.0rc1", (5, 0)), ("", ()), ("unknown", ())],
)
def test_version_tuple(text, expected):
    assert version_tuple(text) == expected


def test_pins_admit_what_requirements_txt_installs():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    found = [re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    versions = {m[1].lower(): version_tuple(m[2]) for m in found if m}
    for pin in PINS:
        version = versions[pin.package.lower()]
        assert version >= version_tuple(pin.low), pin
        assert not pin.below or version < version_tuple(pin.below), pin


def test_this_environment_has_what_is_needed():
    checks = run_checks(port=0)
    assert [check for check in checks if check.status == FAIL and not check.name.startswith("weights")] == []
    assert {pin.package for pin in PINS} <= {check.name for check in checks}


def test_every_finding_that_is_not_ok_says_what_to_do():
    for check in run_checks(studies="http://127.0.0.1:9/dicom-web", port=0):
        assert check.status in (OK, WARN, FAIL)
        assert bool(check.remedy) == (check.status != OK), check


def test_missing_package_names_the_remedy():
    check = check_package(Pin("no-such-package-here", "no_such_package_here"))
    assert check.status == FAIL
    assert "not installed" in check.detail
    assert "make setup" in check.remedy


@pytest.mark.parametrize(("low", "below"), [("99", ""), ("0.1", "0.2")])
def test_version_out_of_range_says_why(low, below):
    check = check_package(Pin("numpy", "numpy", low, below, "because of this", WARN))
    assert check.status == WARN
    assert "because of this" in check.detail


def test_package_that_cannot_be_imported_is_a_finding(tmp_path, monkeypatch):
    (tmp_path / "broken_thing.py").write_text("raise RuntimeError('built for another torch')\n")
    info = tmp_path / "broken_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-thing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = check_package(Pin("broken-thing", "broken_thing"))
    assert check.status == FAIL
    assert "built for another torch" in check.detail


def test_port_in_use_is_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert check_port(port).status == WARN
    assert check_port(0).status == OK
    assert check_port(70000).status == WARN


def test_folder_that_does_not_exist_yet_is_fine_and_is_not_made(tmp_path):
    assert check_folder("studies", tmp_path / "new" / "studies").status == OK
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_folder("studies", tmp_path / "file" / "studies").status == FAIL


def test_dicomweb_store_that_answers_and_one_that_does_not():
    class Store(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/dicom-web/studies?limit=1" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert check_studies(f"{address}/dicom-web/").status == OK
        assert check_studies(f"{address}/other").status == FAIL
        server.shutdown()
    assert check_studies(f"{address}/dicom-web").status == FAIL


def test_launcher_that_runs_another_python_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    launcher = folder / "monailabel"
    launcher.write_text("#!/bin/bash\nPYEXE=${MONAILABEL_PYEXE:-python}\nexec ${PYEXE} -m monailabel.main $*\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(doctor_checks.sys, "executable", str(folder / "python"))
    assert check_monailabel_command().status == WARN
    launcher.write_text("#!/bin/sh\nexec /somewhere/bin/python -m monailabel.main\n")
    assert check_monailabel_command().status == OK
    launcher.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_monailabel_command().status == FAIL


def test_dicom_tool_missing_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor_checks.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(doctor_checks, "APP_DIR", tmp_path)
    check = check_dicom_tools()
    assert check.status == WARN
    assert "dcmqi" in check.remedy


def test_report_puts_the_remedy_below_its_finding():
    text = report([Check("a", OK, "fine"), Check("bb", FAIL, "broken", "mend it"), Check("c", WARN, "odd", "look")])
    lines = text.splitlines()
    assert lines[1].startswith("FAIL  bb")
    assert lines[2].strip() == "-> mend it"
    assert lines[-1] == "1 of 3 checks failed; 1 to look at"


def test_command_prints_json_and_its_status_agrees(tmp_path):
    done = run_doctor("--json", "--studies", str(tmp_path))
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert {"name", "status", "detail", "remedy"} == set(found["checks"][0])
    assert found["ok"] == all(check["status"] != FAIL for check in found["checks"])


def test_command_reports_where_no_package_is_installed():
    done = run_doctor("--json", python=(sys.executable, "-I", "-S"))
    assert done.returncode == 1, done.stderr
    status = {check["name"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert status["python"] == OK
    assert status["torch"] == status["monailabel"] == status["pydicom"] == FAIL


def test_main_in_text_form(capsys):
    import argparse

    status = main(argparse.Namespace(studies=None, port=0, json=False, strict=False))
    text = capsys.readouterr().out
    assert status in (0, 1)
    assert "pydicom" in text
    assert "attention" in text
