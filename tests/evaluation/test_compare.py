"""Paired differences of two evaluations."""

import json

import numpy as np
import pytest
from lib.cli import main
from lib.sam.evaluation.compare import by_model, differences, pairs, read_rows, regressions
from lib.sam.evaluation.summary import challenge_metrics


def row(case, label, scores, model="m", box=None, protocol="points"):
    return {
        "case": case, "label": label, "name": f"n{label}", "volume_ml": 1.0, "model": model,
        "clicks": list(range(1, len(scores) + 1)), "dice": list(scores), "nsd": [s / 2 for s in scores],
        "seconds": [0.1] * len(scores), "protocol": protocol, "modality": "CT", "box": box,
    }  # fmt: skip


def evaluation(shift, cases=12, seed=0):
    rng = np.random.default_rng(seed)
    return [row(f"c{n}", 1, np.clip(rng.uniform(0.4, 0.6, 3) + shift, 0, 1).round(4).tolist()) for n in range(cases)]


def test_a_steady_gain_is_clear_and_noise_is_not():
    found, _ = pairs(evaluation(0.0), evaluation(0.1))
    gain = {d.metric: d for d in differences(found)}["Dice after 3 clicks"]
    assert gain.mean == pytest.approx(0.1, abs=1e-6) and gain.low == pytest.approx(0.1, abs=1e-3) and gain.clear
    found, _ = pairs(evaluation(0.0), evaluation(0.0, seed=1))
    noise = {d.metric: d for d in differences(found)}["Dice after 3 clicks"]
    assert noise.low < noise.mean < noise.high and not noise.clear


def test_intervals_are_about_right():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        deltas = rng.normal(0.05, 0.1, 30)
        both = [(row(f"c{i}", 1, [0.5]), row(f"c{i}", 1, [0.5 + d])) for i, d in enumerate(deltas)]
        d = differences(both, seed)[0]
        covered += d.low <= 0.05 <= d.high
    assert 33 <= covered <= 40


def test_regressions_are_listed_worst_first():
    first = [row("a", 1, [0.9]), row("a", 2, [0.9]), row("b", 1, [0.5], box={"dice": 0.9, "nsd": 0.9})]
    second = [row("a", 1, [0.8]), row("a", 2, [0.89]), row("b", 1, [0.6], box={"dice": 0.2, "nsd": 0.2})]
    fallen = regressions(pairs(first, second)[0])
    assert [(r.case, r.label, r.model, r.metric) for r in fallen] == [
        ("b", 1, "m", "Dice of a box"),
        ("b", 1, "m", "NSD of a box"),
        ("a", 1, "m", "Dice after 1 click"),
        ("a", 1, "m", "NSD after 1 click"),
    ]


def test_areas_are_those_under_the_clicks_that_both_have():
    curve = [0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9, 0.9]
    for first, second in ((curve, curve[:5]), (curve[:5], curve)):
        found, _ = pairs([row("a", 1, first)], [row("a", 1, second)])
        compared = {d.metric: d for d in differences(found)}
        assert compared["Dice, area over clicks"].mean == 0 == compared["NSD, area over clicks"].mean
        assert compared["Dice, area over clicks"].first == pytest.approx((0.15 + 0.5 + 0.6 + 0.7 + 0.375) / 4)
        assert "Dice after 5 clicks" in compared and "Dice after 10 clicks" not in compared


def test_several_models_are_not_pooled():
    first = [row(f"c{n}", 1, [0.8], model) for n in range(4) for model in ("x", "y")]
    second = [row(f"c{n}", 1, [0.9 if model == "x" else 0.7], model) for n in range(4) for model in ("x", "y")]
    found, _ = pairs(first, second)
    means = {model: differences(chosen)[0].mean for model, chosen in by_model(found).items()}
    assert means == {"x": pytest.approx(0.1), "y": pytest.approx(-0.1)}
    assert {r.model for r in regressions(found)} == {"y"}
    assert list(by_model([(row("a", 1, [1.0], "x"), row("a", 1, [1.0], "y"))])) == ["x, then y"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"dice": None}, "dice"),
        ({"nsd": [0.1, 0.2]}, "nsd"),
        ({"dice": ["much"]}, "dice"),
        ({"dice": [float("nan")]}, "dice"),
        ({"clicks": 1}, "clicks"),
        ({"box": {"dice": 0.5}}, "box"),
        ({"case": ["a"]}, "case"),
        ({"label": "1"}, "label"),
    ],
)
def test_a_row_of_another_form_is_refused(tmp_path, change, said):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([row("a", 1, [0.5]), row("b", 1, [0.5]) | change]))
    with pytest.raises(ValueError, match=rf"m\.json.*row 2 {said}"):
        read_rows(path)


def test_pairs_need_something_in_common():
    a = [row("a", 1, [0.5], "x"), row("b", 1, [0.5], "x")]
    found, notes = pairs(a, [row("a", 1, [0.6], "y")])  # one model each: taken as the same thing twice
    assert len(found) == 1 and notes == ["only in A: b, n1 (1), x, points"]
    _, notes = pairs(a, [row("a", 1, [0.6], "x"), row("a", 1, [0.6], "y")])
    assert notes == ["only in A: b, n1 (1), x, points", "only in B: the model y"]
    with pytest.raises(ValueError, match="in common"):
        pairs(a, [row("z", 1, [0.6], "x")])
    with pytest.raises(ValueError, match="share a model"):
        pairs([*a, row("a", 1, [0.5], "v")], [row("a", 1, [0.6], "y")])


def test_the_command_compares(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rows in zip(paths, (evaluation(0.0), evaluation(-0.1))):
        path.write_text(json.dumps(rows))
    assert main(["evaluate", "--compare", *map(str, paths)]) == 0
    text = capsys.readouterr().out
    assert "-0.1000" in text and "worse" in text and "24 regressions" in text
    assert "m: 12 structures" in text and "c0, n1 (1), m, Dice after 3 clicks" in text
    paths[1].write_text('[{"case": "a"}]')
    assert main(["evaluate", "--compare", *map(str, paths)]) == 2
    assert "row 1 the keys" in capsys.readouterr().err


def test_the_challenges_metrics_by_hand():
    rows = [row("a", 1, [0.1, 0.3], protocol="cvpr25"), row("a", 2, [0.2, 0.7], protocol="cvpr25")]
    rows += [row("b", 1, [1.0, 1.0], protocol="cvpr25")]
    found = challenge_metrics(rows)
    assert found["DSC_Final"] == pytest.approx((0.5 + 1.0) / 2) and found["DSC_AUC"] == pytest.approx((0.325 + 1.0) / 2)
    # in case a the mean Dice after the first click is 0.15, so that its NSD counts as nothing
    assert found["NSD_AUC"] == pytest.approx(((0 + 0.25) / 2 + 0.5) / 2) and found["NSD_Final"] == pytest.approx(0.375)
    assert challenge_metrics([row("a", 1, [0.1])]) is None
