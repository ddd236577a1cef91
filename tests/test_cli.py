"""The command line: errors in one line, status 2, from any folder."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from lib import cli
from lib.cli import COMMANDS, UserError
from lib.commands import segment

APP = Path(__file__).resolve().parents[1] / "apps" / "fastsam3d"


def arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    segment.add_arguments(parser)
    return parser.parse_args(["image.nii.gz", "--out", "mask.nii.gz", *texts])


def test_usage_lists_every_command(capsys):
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in COMMANDS)


def test_an_unknown_command_is_one_line_and_status_2(capsys):
    assert cli.main(["fly"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no command 'fly'" in err
    assert "segment" in err


def test_importing_the_commands_table_imports_no_torch():
    code = f"import sys; sys.path.insert(0, {str(APP)!r}); import lib.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_it_runs_as_a_folder_from_anywhere(tmp_path):
    done = subprocess.run([sys.executable, str(APP), "segment", "-h"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "--click" in done.stdout


def test_clicks_and_box_become_a_request():
    request = segment.parse_arguments(
        arguments("--click", "120,96,40,+", "--click", "90, 96, 40, -", "--box", "1,20,3,4,50,6")
    )
    assert request == {"foreground": [[120, 96, 40]], "background": [[90, 96, 40]], "box": [1, 20, 3, 4, 50, 6]}


@pytest.mark.parametrize("text", ["1,2,3", "1,2,+", "a,b,c,+", "1,2,3,4,+", "1.5,2,3,+", ""])
def test_a_malformed_click_is_refused(text):
    with pytest.raises(UserError, match="--click takes"):
        segment.parse_arguments(arguments("--click", text))


def test_a_malformed_box_or_out_is_refused():
    with pytest.raises(UserError, match="--box takes"):
        segment.parse_arguments(arguments("--box", "1,2,3"))
    with pytest.raises(UserError, match="--out must end in"):
        segment.parse_arguments(argparse.Namespace(out="mask.png", click=[], box=None))


def test_a_missing_image_is_one_line_and_status_2(capsys, tmp_path):
    out = tmp_path / "mask.nii.gz"
    assert cli.main(["segment", str(tmp_path / "none.nii.gz"), "--click", "1,2,3,+", "--out", str(out)]) == 2
    assert "none.nii.gz" in capsys.readouterr().err
    assert not out.exists()


def test_a_volume_is_segmented(tmp_path):
    affine = np.array([[0, -1.5, 0, 9], [2, 0, 0, 8], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).normal(0, 50, (40, 36, 30)).astype(np.int16)
    values[10:26, 10:26, 8:22] += 300
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "image.nii.gz")
    words = ["image.nii.gz", "--click", "18,18,15,+", "--click", "2,2,2,-", "--box", "9,27,9,27,7,23"]
    words += ["--out", "mask.nii.gz", "--json"]
    done = subprocess.run([sys.executable, str(APP), "segment", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    assert mask.shape == values.shape
    assert mask.get_data_dtype() == np.uint8
    assert int(np.asarray(mask.dataobj).sum()) == report["voxels"]
    assert report["millilitres"] == pytest.approx(report["voxels"] * 7.5 / 1000, abs=1e-3)
    assert report["weights"]["version"]
    assert {"crop", "encode", "decode", "paste"} <= set(report["timings_ms"])


@pytest.mark.parametrize("click", ["99,1,1,+", "1,1,1,-"])
def test_an_unusable_click_is_one_line_and_status_2(capsys, tmp_path, click):
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), tmp_path / "image.nii")
    words = ["segment", str(tmp_path / "image.nii"), "--click", click, "--out", str(tmp_path / "mask.nrrd")]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "mask.nrrd").exists()
