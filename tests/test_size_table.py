"""The script that measures objects of every size: what it asks of `evaluate`, and the lines it prints."""

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import size_table

    yield size_table
    sys.modules.pop("size_table", None)


def test_a_pair_of_lungs_is_measured_whole_and_small_structures_by_their_largest_part(
    script, monkeypatch, tmp_path, capsys
):
    asked = {}

    def call(*command, accepted=(0,)):
        command = [str(part) for part in command]
        if "evaluate" not in command:
            return
        out = Path(command[command.index("--out") + 1])
        asked[out.name] = command[command.index("--parts") + 1]
        out.mkdir(parents=True)
        rows = [{"volume_ml": ml, "dice": [0.5] * script.CLICKS, "box": None} for ml in (1.99, 2.0)]
        (out / "metrics.json").write_text(json.dumps(rows))
        (out / "problems.json").write_text("[]")
        (out / "metrics.csv").write_text("name,patch_ceiling\na,1.0\nb,1.0\n")

    monkeypatch.setattr(script, "call", call)
    assert script.main(["--out", str(tmp_path / "out"), "--small", str(tmp_path)]) == 0
    assert {name.split("_with")[0]: parts for name, parts in asked.items()} == {
        "body_as_one_label": "all",
        "both_lungs_as_one_label": "all",
        "structures_under_2_ml": "largest",
    }
    assert "| structures under 2 ml, 1 |" in capsys.readouterr().out
