"""The script that writes the tables of docs/models.md: its tables, and where they go."""

import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import model_tables

    yield model_tables
    for name in ("model_tables", "size_table"):
        sys.modules.pop(name, None)


def row(case, name, ml, dice, box):
    clicks = list(range(1, len(dice) + 1))
    return {"case": case, "name": name, "volume_ml": ml, "clicks": clicks, "dice": dice, "box": box and {"dice": box}}


def test_a_table_shows_some_clicks_and_means_of_what_was_measured(script):
    dice = [0.1, 0.0, 0.3, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.904]
    rows = [row("CT", "kidney_left", 137.44, dice, 0.5), row("CT", "rib", 2, dice[::-1], None)]
    assert script.table(rows).splitlines() == [
        "| scan | structure | ml | 1 click | 3 clicks | 5 clicks | 10 clicks | box |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| CT | kidney left | 137.4 | 0.10 | 0.30 | 0.50 | 0.90 | 0.50 |",
        "| CT | rib | 2.0 | 0.90 | 0.00 | 0.00 | 0.10 | - |",
        "| **mean of 2** |  |  | 0.50 | 0.15 | 0.25 | 0.50 | 0.50 |",
    ]


def test_boxes_alone_have_one_column(script):
    assert script.table([row("a", "b", 1, [], 0.25)]).splitlines()[2] == "| a | b | 1.0 | 0.25 |"


def test_tables_without_boxes_and_without_rows(script):
    lines = script.table([row("a", "b", 1, [0.5] * 10, None), row("a", "c", 1, [], None)]).splitlines()
    assert lines[2:] == [
        "| a | b | 1.0 | 0.50 | 0.50 | 0.50 | 0.50 | - |",
        "| a | c | 1.0 | - | - | - | - | - |",
        "| **mean of 2** |  |  | 0.50 | 0.50 | 0.50 | 0.50 | - |",
    ]
    assert script.table([]).splitlines()[2:] == ["| **mean of 0** |  |  | - |"]


def test_what_was_not_scored_is_printed_and_an_empty_table_replaces_none(script, monkeypatch, tmp_path, capsys):
    problem = {"case": "a", "model": "m", "label": 3, "reason": "its image is damaged", "scored": False}

    def call(*command, accepted=(0,)):
        if "evaluate" in command:
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "metrics.json").write_text("[]")
            (out / "problems.json").write_text(json.dumps([problem, problem | {"scored": True, "case": "noted"}]))

    monkeypatch.setattr(script, "call", call)
    monkeypatch.setattr(script, "put", lambda *a: pytest.fail("an empty table was written"))
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "phantom", "--write"]
    assert script.main(arguments) == 0
    assert capsys.readouterr().err == "not scored: a, m, label 3: its image is damaged\n"


def test_a_table_takes_the_place_of_its_name_alone(script, tmp_path):
    document = tmp_path / "models.md"
    document.write_text(
        "x\n\n<!-- table a -->\n\\1 old\n<!-- end of table -->\n\n<!-- table b -->\nb\n<!-- end of table -->\n"
    )
    script.put(document, "a", "| \\1 new |")
    assert document.read_text() == (
        "x\n\n<!-- table a -->\n| \\1 new |\n<!-- end of table -->\n\n<!-- table b -->\nb\n<!-- end of table -->\n"
    )
    with pytest.raises(ValueError, match="no place for the table 'c'"):
        script.put(document, "c", "")


def test_the_document_has_a_place_for_every_table(script):
    text = script.DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in script.SETS if f"<!-- table {name} -->" not in text] == []
