"""The report of a run: a page that needs nothing else, and a picture."""

from lib.sam.training.report import charts, write_report
from PIL import Image

ROWS = {"candidate": [{"epoch": n, "loss": 1 / n, "dice": 1 - 1 / n} for n in range(1, 6)]}
METRICS = {"held_out": {"served": [0.2, 0.4, 0.5], "candidate": [0.5, 0.6, 0.7]}, "generated": {}}
PAIRS = [{"case": "<b>", "structure": "liver", "served": [0.2, 0.4, 0.5], "candidate": [0.5, 0.6, 0.7]}]


def test_the_page_holds_curves_figures_and_no_foreign_markup(tmp_path):
    verdict = {"metrics": METRICS, "held_out": PAIRS, "generated": []}
    page = write_report(tmp_path, "Training <1>", {"state": "published"}, ROWS, verdict).read_text()
    assert page.count("<svg") == 3
    assert "0.20 / 0.40 / 0.50" in page
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "http-equiv" not in page and "src=" not in page
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (3 * 460, 300)
        assert len(picture.convert("RGB").getcolors(10_000)) > 4


def test_a_live_page_reloads_itself_and_may_be_empty(tmp_path):
    assert "http-equiv" in write_report(tmp_path, "t", {}, {}, live=True).read_text()
    assert not (tmp_path / "report.png").exists()


def test_curves_go_up_where_figures_do():
    dice = charts(ROWS, METRICS)[1]
    line = next(mark for mark in dice.marks() if mark[0] == "line" and len(mark[2]) == 5)
    heights = [y for _, y in line[2]]
    assert heights == sorted(heights, reverse=True)  # pixels count downwards
