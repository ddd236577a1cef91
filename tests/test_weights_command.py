"""`python apps/fastsam3d weights ...`: what a user sees."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import cli
from lib.sam.registry import REGISTRY, SHIPPED

from tests.sam.checkpoint_samples import run_checkpoint, sample_state, save

COMPACT = "fastsam3d_compact"


@pytest.fixture
def model_dir(tmp_path, capsys) -> Iterator[Path]:
    """A folder of weights made by the command itself."""
    run = save(run_checkpoint(COMPACT), tmp_path / "checkpoint.pt")
    assert cli.main(["weights", "export-run", str(run), "--out", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out.count("bytes") == 2
    yield tmp_path / "model"
    shutil.rmtree(tmp_path)


def weights(*texts: object) -> int:
    return cli.main(["weights", *map(str, texts)])


def test_list_says_what_is_there_and_what_is_used(model_dir, capsys):
    assert weights("list", "--model-dir", model_dir) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in REGISTRY)
    assert f"fastsam3d uses {SHIPPED} (" in out
    assert "sam_med3d uses none: " in out
    assert weights("list", "--json", "--model-dir", model_dir) == 0
    content = json.loads(capsys.readouterr().out)
    states = {row["name"]: row["state"] for row in content["weights"]}
    assert states.pop(SHIPPED) == "verified"
    assert set(states.values()) == {"missing"}
    assert content["used"]["fastsam3d"]["origin"] == "shipped"


def test_import_verify_and_damage(model_dir, tmp_path, capsys):
    file = save(sample_state(COMPACT, 4), tmp_path / "own.pth")
    assert weights("import", file, "--name", "mine", "--model-dir", model_dir) == 0
    assert "fastsam3d now uses mine (" in capsys.readouterr().out
    assert weights("verify", "--model-dir", model_dir) == 0
    out = capsys.readouterr().out
    assert "mine: hash and tensors verified" in out
    assert "sam_med3d_turbo: not here" in out
    path = model_dir / "imported" / "mine.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert weights("verify", "mine", "--model-dir", model_dir) == 1
    assert "mine: FAILED: " in capsys.readouterr().out
    assert weights("list", "--json", "--model-dir", model_dir) == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    assert next(row["state"] for row in rows if row["name"] == "mine") == "damaged"


def test_errors_are_one_line_and_status_2(model_dir, tmp_path, capsys):
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"junk")
    for texts, what in (
        (("import", junk), "junk.pth cannot be read"),
        (("import", tmp_path / "none.pth"), "none.pth does not exist"),
        (("fetch", "nothing"), "no weights called 'nothing'"),
        (("verify", "nothing"), "no weights called 'nothing'"),
        (("export-run", junk, "--out", tmp_path / "out"), "junk.pth"),
    ):
        extra = () if texts[0] == "export-run" else ("--model-dir", model_dir)
        assert weights(*texts, *extra) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert what in err
    assert weights("verify", "sam_med3d_turbo", "--model-dir", model_dir) == 1
    assert "weights fetch sam_med3d_turbo" in capsys.readouterr().out


def test_the_action_must_be_named(capsys):
    with pytest.raises(SystemExit):
        weights()
    assert "ACTION" in capsys.readouterr().err
