"""Protocols and summaries computed a second time, from the saved masks and the archives alone, in the challenge's axes.

The model is one whose answers are known: the truth, shifted less with every click.
"""

import json
from contextlib import contextmanager
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from lib.sam.evaluation.cases import find_cases
from lib.sam.evaluation.interface import Answer
from lib.sam.evaluation.report import html_report
from lib.sam.evaluation.scans import read_scan
from lib.sam.evaluation.score import Settings, examine, score
from lib.sam.evaluation.summary import challenge_metrics
from lib.sam.session import SessionStore
from monai.metrics import compute_surface_dice
from scipy import ndimage
from torch import from_numpy

SPACING = (0.9, 1.1, 3.0)  # x, y, z
SHIFTS = {"CT_one": (6, 5, 3, 2, 1, 1), "MR_two": (40, 40, 9, 4, 2, 0)}  # of the box's answer and after each click
MASKS = {1: ((3, 9), (8, 30), (10, 28)), 5: ((5, 12), (30, 44), (26, 40))}  # z, y, x


class Shifted:
    name, version, clicks, boxes, automatic = "shifted", "1", True, True, False

    def __init__(self):
        self.asked = []

    @contextmanager
    def open(self, session, path, wanted):
        truth = np.load(path)["gts"].T == wanted.label

        def ask(prompts):
            self.asked.append((path.stem, wanted.label, prompts))
            return Answer(np.roll(truth, SHIFTS[path.stem][len(prompts.clicks)], axis=0), 0.1)

        yield ask

    def uncertainty(self, session, prompts):
        return None


@pytest.fixture(scope="module", params=["cvpr25", "box2d"])
def scored(request, tmp_path_factory):
    """Rows, extras, what was asked, and the folder, of two archives with two structures each."""
    folder = tmp_path_factory.mktemp(request.param)
    for name in SHIFTS:
        gts = np.zeros((16, 48, 52), np.uint8)
        for label, box in MASKS.items():
            gts[tuple(slice(*b) for b in box)] = label
        gts[MASKS[1][0][0], 8:12] = 0  # the largest slice is not the first one
        np.savez(folder / f"{name}.npz", imgs=gts * 40, gts=gts, spacing=SPACING)
    rule = "cvpr25" if request.param == "cvpr25" else "centre"
    settings = Settings(protocol=request.param, clicks=5, rule=rule, masks=folder / "masks")
    settings.masks.mkdir()
    model, store = Shifted(), SessionStore(2**28, read=read_scan)
    structures = [s for case in find_cases(folder)[0] for s in examine(case, settings, {})[0]]
    results = [score(model, structure, store, settings) for structure in structures]
    assert all(r.row is not None and not r.problems for r in results)
    return request.param, [r.row for r in results], [r.extra for r in results], model.asked, folder


def saved(folder, row, step):
    """(z, y, x) bool: a mask as it was saved."""
    name = f"{row['case']}_{row['label']}_shifted_{step}.nii.gz"
    return np.asarray(nib.load(folder / "masks" / name).dataobj).T > 0


def truth_of(folder, row):
    return np.load(folder / f"{row['case']}.npz")["gts"] == row["label"]


def overlap(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def surface(a, b):
    """NSD in the axes of the archive."""
    pair = [from_numpy(m)[None, None] for m in (a, b)]
    found = compute_surface_dice(*pair, [2.0], include_background=True, spacing=SPACING[::-1], use_subvoxels=True)
    return float(found[0, 0])


def box_in(plane, first, last):
    """Corners (x, y, z) of the tight box of a slice, from one slice to another."""
    ys, xs = np.nonzero(plane)
    return (int(xs.min()), int(ys.min()), int(first)), (int(xs.max()), int(ys.max()), int(last))


def steps_of(row):
    return ["box", *(f"click{n}" for n in row["clicks"])]


def test_every_score_is_that_of_the_saved_mask(scored):
    protocol, rows, _, _, folder = scored
    assert len(rows) == 4 and {r["modality"] for r in rows} == {"CT", "MR"}
    for row in rows:
        assert row["protocol"] == protocol and row["clicks"] == ([] if protocol == "box2d" else [1, 2, 3, 4, 5])
        assert row["volume_ml"] == pytest.approx(truth_of(folder, row).sum() * np.prod(SPACING) / 1000, rel=1e-4)
        values = [(row["box"]["dice"], row["box"]["nsd"]), *zip(row["dice"], row["nsd"])]
        for step, (dice, nsd) in zip(steps_of(row), values, strict=True):
            mask, truth = saved(folder, row, step), truth_of(folder, row)
            assert overlap(mask, truth) == pytest.approx(dice, abs=1e-5)
            assert surface(mask, truth) == pytest.approx(nsd, abs=1e-4)


def test_the_prompts_are_those_of_the_protocol(scored):
    protocol, rows, extras, asked, folder = scored
    for row, extra in zip(rows, extras):
        truth = truth_of(folder, row)
        prompts = [p for case, label, p in asked if (case, label) == (row["case"], row["label"])]
        boxes = [(p.box.low_ijk, p.box.high_ijk) for p in prompts]
        slices = np.flatnonzero(truth.any(axis=(1, 2)))
        if protocol == "box2d":
            assert boxes == [box_in(truth[z], z, z) for z in slices] and not any(p.clicks for p in prompts)
            continue
        largest = int(np.argmax(truth.sum(axis=(1, 2))))
        assert set(boxes) == {box_in(truth[largest], slices[0], slices[-1])}  # it stays
        for n, (i, j, k, positive) in enumerate(extra["clicks"]):
            wrong = saved(folder, row, steps_of(row)[n]) ^ truth
            parts, count = ndimage.label(wrong, np.ones((3, 3, 3)))
            sizes = ndimage.sum_labels(wrong, parts, range(1, count + 1))
            assert sizes[parts[k, j, i] - 1] == sizes.max()
            depth = ndimage.distance_transform_edt(np.pad(parts == parts[k, j, i], 1))[1:-1, 1:-1, 1:-1]
            assert depth[k, j, i] == depth.max() and positive == truth[k, j, i]


def test_the_challenges_metrics_and_the_modalities(scored):
    protocol, rows, extras, _, folder = scored
    report = Tables()
    report.feed(html_report(rows, extras, [], {}, 0.9))
    shown = {line[0]: line for line in report.tables["By modality"][1:]}
    assert [m for m, line in shown.items() if line[1] == "no data"] == [
        "PET", "US", "X-ray", "dermoscopy", "endoscopy", "fundus", "microscopy",
    ]  # fmt: skip
    per_case = {}
    for case, modality in (("CT_one", "CT"), ("MR_two", "MR")):
        chosen = [row for row in rows if row["case"] == case]
        steps = steps_of(chosen[0])
        masks = [[(saved(folder, row, step), truth_of(folder, row)) for row in chosen] for step in steps]
        dsc = [np.mean([overlap(*pair) for pair in pairs]) for pairs in masks]
        nsd = [np.mean([surface(*pair) for pair in pairs]) if d > 0.2 else 0.0 for d, pairs in zip(dsc, masks)]
        of_box = np.mean([surface(*pair) for pair in masks[0]])
        assert shown[modality][1:3] == ["shifted", "2"] and shown[modality][-2:] == [f"{dsc[0]:.2f}", f"{of_box:.2f}"]
        if protocol == "box2d":
            assert report.tables["By modality"][0] == ["modality", "model", "structures", "box Dice", "box NSD"]
            continue
        assert shown[modality][3:5] == [f"{dsc[1]:.2f}", f"{dsc[-1]:.2f}"]
        areas = [sum((a + b) / 2 for a, b in zip(values[1:], values[2:])) for values in (dsc, nsd)]
        per_case[case] = (*areas, dsc[-1], nsd[-1])
    found = challenge_metrics(rows)
    if protocol == "box2d":
        assert found is None
        return
    assert list(found.values()) == pytest.approx(np.mean(list(per_case.values()), axis=0), abs=1e-4)
    assert list(found) == ["DSC_AUC", "NSD_AUC", "DSC_Final", "NSD_Final"] and json.dumps(found)
    assert min(d for row in rows for d in row["dice"]) < 0.2  # so that the rule about low Dice was needed


def test_the_report_says_of_every_structure_how_soon_and_how_fast(scored):
    protocol, rows, extras, _, _ = scored
    report = Tables()
    report.feed(html_report(rows, extras, [], {}, 0.9))
    head, *lines = report.tables["By structure"]
    for line in lines:
        cells = dict(zip(head, line, strict=True))
        chosen = [n for n, row in enumerate(rows) if row["name"] == cells["structure"]]
        assert len(chosen) == 2 == int(cells["n"])
        assert cells["box s"] == f"{np.median([extras[n]['box_seconds'] for n in chosen]):.2f}"
        if protocol == "box2d":
            assert not any(name.startswith(("Dice ", "NSD ", "clicks", "first", "later")) for name in head)
            continue
        areas = [sum((a + b) / 2 for a, b in zip(rows[n]["dice"], rows[n]["dice"][1:])) / 4 for n in chosen]
        assert cells["Dice area"] == f"{np.mean(areas):.2f}" and cells["NSD area"]
        first = [next((c for c, d in zip(rows[n]["clicks"], rows[n]["dice"]) if d >= 0.9), None) for n in chosen]
        soon = [c for c in first if c is not None]
        assert cells["clicks to Dice 0.9"] == (f"{np.median(soon):g}" if soon else "-")
        assert (cells["first click s"], cells["later s"]) == ("0.10", "0.10")


class Tables(HTMLParser):
    """The cells of every table by the heading before it."""

    def __init__(self):
        super().__init__()
        self.tables, self._heading, self._cell = {}, "", None

    def handle_starttag(self, tag, attrs):
        if tag in ("h2", "td", "th"):
            self._cell = ""
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append([])

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag == "h2":
            self._heading = self._cell
        elif tag in ("td", "th"):
            self.tables[self._heading][-1].append(self._cell)
        if tag in ("h2", "td", "th"):
            self._cell = None
