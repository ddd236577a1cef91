"""Every published case at its own tolerance, where the conformance set is present."""

import importlib.util
import json
import sys

import pytest

from tests.conformance import adapter
from tests.conftest import find_shared

INFORMATIONAL = {"mask_decoder3d_flash_bug"}  # a variant that is not to be copied


def _conformance_dir():
    shared = find_shared()
    folder = shared / "conformance" if shared else None
    return folder if folder and (folder / "verify.py").is_file() else None


FOLDER = _conformance_dir()


def _case_names() -> list[str]:
    if FOLDER is None:
        return []
    files = sorted((FOLDER / "cases").glob("*.json"))
    return [name for file in files for name in json.loads(file.read_text())["cases"]]


@pytest.fixture(scope="module")
def verify():
    if FOLDER is None:
        pytest.skip("no conformance set: set FASTSAM3D_SHARED or put the shared folder beside the checkout")
    sys.path.insert(0, str(FOLDER))  # verify.py imports recipe.py from its own folder
    try:
        module_spec = importlib.util.spec_from_file_location("conformance_verify", FOLDER / "verify.py")
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def reference(verify):
    return verify.load(str(FOLDER))


def test_the_set_is_present():
    if FOLDER is None:
        pytest.skip("no conformance set: set FASTSAM3D_SHARED or put the shared folder beside the checkout")
    assert any(name.startswith("student3d") for name in _case_names())


@pytest.mark.parametrize("case", [name for name in _case_names() if name not in INFORMATIONAL])
def test_case(case, verify, reference):
    cases, arrays = reference
    spec = cases[case]
    inputs = {key: verify.recipe.make_input(value, spec["input_seed"]) for key, value in spec["inputs"].items()}
    got = adapter.run(case, spec, verify.weight_loader(str(FOLDER), spec), inputs)
    assert got is not None, "the adapter must handle every case"
    rows = verify.compare(case, spec, arrays, got, spec.get("tol", 5e-5))
    assert [row for row in rows if not row[4]] == []
    facts = got.get("__facts__", {})
    assert spec["outputs"] or set(facts) & set(spec.get("facts", {})), "a case without outputs needs facts"
    assert verify.compare_facts(spec.get("facts", {}), facts, spec.get("facts_tol", 1e-6)) == []
