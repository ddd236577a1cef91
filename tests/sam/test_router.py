"""Two networks in one version: which answers a click, that nothing else changes, and what a router is fitted to."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam import weights
from lib.sam.build import build_sam
from lib.sam.checkpoint_files import read_contents, read_header
from lib.sam.prompts import Box, Click, PromptError, Prompts
from lib.sam.router import RoutedSegmenter, Router, described, place_of
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.segmenters import load_segmenter
from lib.sam.session import SessionStore
from lib.sam.training.cases import LabelledCase
from lib.sam.training.routing import clicks_anywhere, clicks_around, clicks_on, fit_router
from lib.sam.uncertainty import uncertainty_map
from lib.sam.versions import write_candidate
from lib.sam.weights import ResolvedWeights, WeightsError
from lib.sam.weights_files import write_safetensors
from lib.sam.zoo import get_spec

from tests.sam.test_finetune import TINY

SPEC = TINY
BALL, AWAY = Prompts((Click((18, 20, 22)),)), Prompts((Click((36, 4, 5)),))


def clusters(rng, count=40):
    """Descriptions of clicks on something, and elsewhere, of three cases."""
    taught = np.arange(3 * count) % 2 == 0
    samples = rng.normal(0, 1, (3 * count, 12)) + np.where(taught, 1.5, -1.5)[:, None]
    return samples.astype(np.float32), taught, np.repeat(np.arange(3), count)


@pytest.fixture(scope="module")
def router():
    return Router.fit(*clusters(np.random.default_rng(0)))


def test_what_was_taught_is_told_from_the_rest_and_from_what_was_never_seen(router):
    samples, taught, _ = clusters(np.random.default_rng(1))
    told = np.array([router.taught_at(x) for x in samples])
    assert told[taught].mean() > 0.95
    assert told[~taught].mean() < 0.15
    rng = np.random.default_rng(2)
    strange = 1.5 + 30 * rng.normal(0, 1, (50, 12))
    assert not any(router.taught_at(x) for x in strange.astype(np.float32))


def test_the_least_score_lets_one_in_ten_stray(router):
    """Where the kinds overlap the threshold is low or high; where they do not it stays within its limits."""
    assert -0.7 <= float(router.least) <= 0.3
    samples, taught, cases = clusters(np.random.default_rng(3))
    mixed = Router.fit(samples * 0.2 + np.random.default_rng(4).normal(0, 1, samples.shape), taught, cases)
    assert float(mixed.least) > float(router.least)
    one = Router.fit(samples, taught, np.zeros(len(taught)))
    assert float(one.least) == pytest.approx(-0.45)


def test_a_router_needs_both_kinds():
    samples, taught, cases = clusters(np.random.default_rng(0))
    for kind in (taught, ~taught):
        with pytest.raises(ValueError, match="on what was taught and elsewhere, got"):
            Router.fit(samples[kind], taught[kind], cases[kind])


def test_the_same_descriptions_alone_make_a_router():
    """Nothing is near or far then; no division by zero."""
    router = Router.fit(np.ones((4, 3)), np.array([True, False, True, False]), np.zeros(4))
    assert np.isfinite(router.score(np.ones(3, np.float32)))


def test_tensors_that_make_no_router_are_refused(router):
    whole = router.tensors()
    assert torch.equal(Router.of(whole, "a").weight, router.weight)
    wrong = [
        {k: v for k, v in whole.items() if k != "least"},
        whole | {"more": torch.zeros(1)},
        whole | {"mean": whole["mean"][:-1]},
        whole | {"weight": whole["weight"] * torch.nan},
        whole | {"samples": whole["samples"][0]},
    ]
    for tensors in wrong:
        with pytest.raises(WeightsError, match=r"file: (a router has|the router's)"):
            Router.of(tensors, "file")
    with pytest.raises(WeightsError, match="descriptions of 12 numbers, got 5"):
        router.score(np.zeros(5, np.float32))


def test_where_prompts_are():
    first, second = Click((1, 2, 3), False), Click((4, 5, 6))
    assert place_of(Prompts((first, second))) == (4, 5, 6)
    assert place_of(Prompts((first,))) == (1, 2, 3)
    assert place_of(Prompts((second,), Box((0, 10, 3), (4, 13, 3)))) == (2, 11, 3)


# Clicks


def two_structures():
    label = np.zeros((40, 36, 20), np.uint8)
    label[5:15, 5:15, 4:10] = 1
    label[25:30, 20:30, 8:16] = 3
    return label


def test_clicks_on_are_on_every_structure_alike():
    label = two_structures()
    found = clicks_on(label, (1.0, 1.0, 3.0), 20, np.random.default_rng(0))
    assert np.bincount([label[p] for p in found]).tolist() == [0, 10, 0, 10]
    assert len(set(found)) > 10
    assert clicks_on(np.zeros((4, 4, 4), np.uint8), (1.0,) * 3, 5, np.random.default_rng(0)) == []
    assert len(clicks_on(label, (1.0,) * 3, 1, np.random.default_rng(0))) == 1


def test_clicks_around_are_near_and_on_nothing():
    label, spacing = two_structures(), np.array([2.0, 2.0, 4.0])
    found = clicks_around(label, spacing, 60, np.random.default_rng(0))
    assert len(found) == 60
    inside = np.argwhere(label > 0) * spacing
    apart = np.array([np.linalg.norm(inside - np.array(p) * spacing, axis=1).min() for p in found])
    assert all(label[p] == 0 for p in found)
    assert apart.max() < 44 and np.median(apart) < 20
    assert clicks_around(np.zeros((4, 4, 4), np.uint8), spacing, 5, np.random.default_rng(0)) == []
    assert clicks_around(np.ones((4, 4, 4), np.uint8), spacing, 5, np.random.default_rng(0)) == []


def test_clicks_anywhere_are_on_nothing():
    label = two_structures()
    found = clicks_anywhere(label, 50, np.random.default_rng(0))
    assert len(found) == 50 and all(label[p] == 0 for p in found)
    assert clicks_anywhere(np.ones((4, 4, 4), np.uint8), 5, np.random.default_rng(0)) == []


# Two networks in one file


def network(seed):
    torch.manual_seed(seed)
    return build_sam(SPEC).eval()


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Two scans with a bright ball each, and their label maps."""
    folder, axes = tmp_path_factory.mktemp("cases"), np.meshgrid(*(np.arange(40),) * 3, indexing="ij")
    made = []
    for n, centre in enumerate([(18, 20, 22), (22, 18, 19)]):
        ball = sum((g - c) ** 2 for g, c in zip(axes, centre)) <= 49
        image = np.where(ball, 800, -500) + np.random.default_rng(n).normal(0, 50, ball.shape)
        paths = folder / f"{n}.nii.gz", folder / f"{n}-label.nii.gz"
        for path, array in zip(paths, (image.astype(np.int16), ball.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1.0])), path)
        made.append(LabelledCase(str(n), *paths, {1: "ball"}))
    return made


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_candidate(network(0), path, {})
    return ResolvedWeights("base", (path,), SPEC, weights.version_of((path,)), "shipped")


def few(monkeypatch):
    for name, count in (("_ON", 5), ("_AROUND", 6), ("_ANYWHERE", 3)):
        monkeypatch.setattr(f"lib.sam.training.routing.{name}", count)


def version_of_two(folder, cases, served, seed=1):
    """A version whose taught network has random weights of another seed."""
    router = fit_router(cases, ["ball"], load_segmenter(served), folder / "routes", 1)
    beside = weights.load_beside(served)
    path = folder / "two.safetensors"
    base = beside.base if beside else weights.load_sam(served)
    write_candidate(network(seed), path, {weights.TAUGHT: '["The ball"]'}, base, router.tensors())
    return ResolvedWeights("two", (path,), SPEC, weights.version_of((path,)), "accepted")


@pytest.fixture(scope="module")
def two(tmp_path_factory, cases, served):
    with pytest.MonkeyPatch.context() as patched:
        few(patched)
        return version_of_two(tmp_path_factory.mktemp("two"), cases, served)


def answer(segmenter, case, prompts):
    with SessionStore(2**30).open(case.name, case.image) as session:
        return segmenter.segment(session, prompts)


def test_the_taught_network_answers_on_what_was_taught_and_the_old_one_as_before_elsewhere(cases, served, two):
    both, before = load_segmenter(two), load_segmenter(served)
    taught = VolumeSegmenter(network(1), SPEC, "taught", "1")
    assert isinstance(both, RoutedSegmenter)
    for prompts, which, expected in ((BALL, True, taught), (AWAY, False, before)):
        found, wanted = answer(both, cases[0], prompts), answer(expected, cases[0], prompts)
        assert found.taught is which
        assert (found.weights, found.version) == ("two", two.version)
        assert np.array_equal(found.full_mask(), wanted.full_mask()) and found.iou == wanted.iou
    assert answer(before, cases[0], BALL).taught is None


def test_the_first_click_decides_and_is_asked_about_once(cases, two, monkeypatch):
    both, asked = load_segmenter(two), []
    score = Router.score
    monkeypatch.setattr(Router, "score", lambda self, x: asked.append(1) or score(self, x))
    with SessionStore(2**30).open("0", cases[0].image) as session:
        for clicks in ((BALL.clicks), (*BALL.clicks, *AWAY.clicks), (Click((30, 30, 30), False), *BALL.clicks)):
            assert both.segment(session, Prompts(clicks)).taught
        assert len(asked) == 1
        assert not both.segment(session, Prompts((*AWAY.clicks, *BALL.clicks))).taught
        assert len(asked) == 2
        with pytest.raises(PromptError):
            both.segment(session, Prompts((Click((400, 0, 0)),)))


def test_prompts_that_name_what_was_taught_need_no_choice(cases, two):
    both = load_segmenter(two)
    with SessionStore(2**30).open("0", cases[0].image) as session:
        for name, taught in (("the  BALL", True), ("a ball", False), ("", False)):
            assert both.segment(session, replace(AWAY, structure=name)).taught is taught


def test_uncertainty_is_that_of_the_network_that_answers(cases, served, two):
    both, before = load_segmenter(two), load_segmenter(served)
    with SessionStore(2**30).open("0", cases[0].image) as session:
        found, wanted = uncertainty_map(both, session, AWAY), uncertainty_map(before, session, AWAY)
    assert np.array_equal(found.values, wanted.values)


def test_the_next_training_keeps_the_base_and_adds_to_what_was_taught(cases, served, two, tmp_path, monkeypatch):
    few(monkeypatch)
    (tmp_path / "next").mkdir()
    third = version_of_two(tmp_path / "next", cases[1:], two, seed=2)
    first, base = weights.load_sam(served).state_dict(), weights.load_beside(third).base.state_dict()
    assert all(torch.equal(first[k], base[k]) for k in first)
    router, older = (load_segmenter(v).router for v in (third, two))
    assert int(router.taught.sum()) == 5 + int(older.taught.sum())
    assert int((router.taught == 0).sum()) < int((older.taught == 0).sum())


def test_what_loads_a_network_alone_gets_the_taught_one(two):
    loaded, own = weights.load_sam(two).state_dict(), network(1).state_dict()
    assert all(torch.equal(loaded[k], own[k].half().float()) for k in own if k.startswith("mask_decoder"))


def test_a_published_network_describes_clicks_too(cases):
    """It has no features but its embedding, and does not zoom."""
    spec = get_spec("fastsam3d_published_h6")
    segmenter = VolumeSegmenter(build_sam(spec), spec, "random", "0")
    with SessionStore(2**30).open("0", cases[0].image) as session:
        found = described(segmenter, session, (18, 20, 22), {})
    assert found.shape == (4 * spec.encoder.out + 2,)
    assert np.isfinite(found).all()


def test_a_version_with_a_damaged_base_is_refused(two, tmp_path):
    content, about = read_contents(two.paths[0]).value, read_header(two.paths[0])[1]
    key = next(k for k in content if k.startswith("base.image_encoder"))
    for name, state in (
        ("missing", {k: v for k, v in content.items() if k != key}),
        ("router.weight", content | {"router.weight": content["router.weight"] * torch.nan}),
    ):
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(state, path, about)
        with pytest.raises(WeightsError, match=name):
            load_segmenter(replace(two, paths=(path,), version=weights.version_of((path,))))


def test_where_every_voxel_is_annotated_there_is_nothing_to_choose(cases, served, tmp_path, monkeypatch):
    few(monkeypatch)
    path = tmp_path / "all.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((40, 40, 40), np.uint8), np.diag([1.5, 1.5, 1.5, 1.0])), path)
    case = replace(cases[0], label=path)
    assert fit_router([case], ["ball"], load_segmenter(served), tmp_path, 1) is None


def test_a_header_that_names_nothing_readable_is_refused(two, tmp_path):
    path = tmp_path / "names.safetensors"
    about = read_header(two.paths[0])[1] | {weights.TAUGHT: "ball, liver"}
    write_safetensors(read_contents(two.paths[0]).value, path, about)
    with pytest.raises(WeightsError, match="must be a JSON list of names"):
        load_segmenter(replace(two, paths=(path,), version=weights.version_of((path,))))


def test_descriptions_are_made_once(cases, served, tmp_path, monkeypatch):
    few(monkeypatch)
    segmenter, said = load_segmenter(served), []
    first = fit_router(cases[:1], ["ball"], segmenter, tmp_path, 1, said.append)
    assert len(said) == 1 and len(list(tmp_path.glob("*.npz"))) == 1
    monkeypatch.setattr("lib.sam.training.routing.described", None)
    again = fit_router(cases[:1], ["ball"], segmenter, tmp_path, 1)
    assert torch.equal(first.weight, again.weight)
