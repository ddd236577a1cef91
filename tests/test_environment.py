"""The requirement files are complete and safe pins, and the environment that runs these tests is the one they describe."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
FILES = ("requirements.txt", "requirements-dev.txt")
OTHER_HOST = re.compile(r"https?://(?!127\.0\.0\.1\b)", re.IGNORECASE)


def read(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_one_exact_pin(name):
    for requirement in read(name):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert requirement.url is None


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_a_package_is_pinned_once_for_each_python(python):
    facts = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    names = [r.name.lower() for name in FILES for r in read(name) if r.marker is None or r.marker.evaluate(facts)]
    assert sorted(names) == sorted(set(names))
    assert {"torch", "monai", "monailabel", "scipy", "scikit-image", "pillow", "pytest", "hypothesis"} <= set(names)


def test_security_floors():
    pinned = {r.name: Version(next(iter(r.specifier)).version) for r in read("requirements.txt")}
    assert pinned["torch"] >= Version("2.10")
    assert pinned["monai"] >= Version("1.5.2")
    assert pinned["pydicom"] < Version("3")


@pytest.mark.parametrize("name", [*FILES, "Makefile", "pyproject.toml", ".pre-commit-config.yaml", ".ci/run"])
def test_no_other_host_is_named(name):
    assert not OTHER_HOST.search((ROOT / name).read_text())


def test_installed_packages_are_the_pinned_ones():
    wrong = {}
    for requirement in [r for name in FILES for r in read(name)]:
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                installed = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                installed = "missing"
            if installed.split("+")[0] != next(iter(requirement.specifier)).version:
                wrong[requirement.name] = installed
    assert wrong == {}, "run: make setup-dev"


def test_monailabel_command_needs_nothing_on_path(tmp_path):
    command = Path(sys.executable).parent / "monailabel"
    if not command.exists() or "setup_env" not in command.read_text(errors="replace"):
        pytest.skip("this environment was not made by `make setup`")
    # An app folder with a space in its name, a shell that knows neither this environment nor any `python`.
    app = tmp_path / "my app"
    app.mkdir()
    arguments = ["start_server", "--app", str(app), "--studies", str(tmp_path / "studies"), "--dryrun"]
    env = {"PATH": "/nonexistent", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["/bin/sh", str(command), *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "studies").is_dir()
    assert str(app) in (tmp_path / ".env").read_text()


def test_dicom_seg_tool_is_installed():
    tool = shutil.which("itkimage2segimage", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert tool
    done = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=60)
    assert "--inputDICOMDirectory" in done.stdout + done.stderr
