"""The inference task in process, with the real network (untrained: what is compared here does not need good masks)."""

import json
import threading

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from lib.http_errors import as_http
from lib.infers.interactive import InteractiveInfer
from lib.infers.request import RequestError
from lib.sam.build import build_sam
from lib.sam.preprocess import VolumeError
from lib.sam.prompts import PromptError
from lib.sam.router import RoutedSegmenter, Router
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.session import SessionStore
from lib.sam.zoo import get_spec

SHAPE = (40, 44, 36)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    spec = get_spec("fastsam3d_compact")
    return VolumeSegmenter(build_sam(spec), spec, "untrained", "0" * 12, "cpu")


@pytest.fixture
def task(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = InteractiveInfer("fastsam3d", {"liver": 1}, str(tmp_path / "none"), SessionStore(2**30), description="test")
    made._segmenter = segmenter
    return made


@pytest.fixture
def images(tmp_path):
    paths = []
    for seed in range(2):
        path = tmp_path / f"{seed}.nii.gz"
        values = np.random.default_rng(seed).normal(0, 100, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 2.0, 1.0])), path)
        paths.append(str(path))
    return paths


def requests_for(images):
    clicks = [[20, 20, 18], [10, 30, 9], [30, 12, 25]]
    return [
        {"image": image, "image_id": image, "foreground": clicks[: n + 1], "background": [[3, 3, 3]][: n % 2]}
        for image in images
        for n in range(3)
    ]


def mask_of(answer) -> np.ndarray:
    file, _ = answer
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


def test_constructing_loads_nothing(tmp_path):
    made = InteractiveInfer("fastsam3d", {"liver": 1}, str(tmp_path), SessionStore(2**30), description="test")
    assert made._segmenter is None
    assert made.info() == {
        "type": "deepgrow",
        "labels": {"liver": 1},
        "dimension": 3,
        "description": "test",
        "config": {},
    }


def test_threads_equal_serial(task, images):
    requests = requests_for(images)
    alone = [mask_of(task(request)) for request in requests]
    task.store = SessionStore(2**30)
    together = [None] * len(requests)

    def work(n):
        together[n] = mask_of(task(requests[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in reversed(range(len(requests)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
    assert len(task.store) == 2


def test_history_does_not_change_an_answer(task, images):
    request = requests_for(images)[1]
    fresh = mask_of(task(request))
    task.store = SessionStore(2**30)
    for other in requests_for(images):
        task(other)
    assert np.array_equal(mask_of(task(request)), fresh)


def test_a_store_too_small_for_embeddings_changes_only_the_time(task, images):
    requests = requests_for(images)
    roomy = [mask_of(task(request)) for request in requests]
    task.store = SessionStore(int(np.prod(SHAPE)) * 2 + 1)
    assert all(np.array_equal(mask_of(task(request)), mask) for request, mask in zip(requests, roomy))


def test_a_refused_request_leaves_the_task_ready(task, images):
    good = {"image": images[0], "image_id": "a", "foreground": [[20, 20, 18]]}
    for bad, error in (
        ({**good, "foreground": []}, RequestError),
        ({**good, "foreground": [[99, 0, 0]]}, PromptError),
        ({**good, "image": "/nowhere/x.nii.gz"}, VolumeError),
        ({**good, "result_extension": ".exe"}, RequestError),
    ):
        with pytest.raises(error):
            task(bad)
    file, params = task(good)
    assert params["label_names"] == {"foreground": 1}
    assert {"open", "crop", "encode", "decode", "paste", "write", "total"} <= set(params["latencies"])
    assert params["latencies"]["total"] >= params["latencies"]["encode"]
    assert file.endswith(".nii.gz")


class FullGpu(VolumeSegmenter):
    """The segmenter on a GPU whose memory is full the first `failures` times; it answers as usual afterwards."""

    failures = 1
    cached = None

    def segment(self, session, prompts):
        if self.failures:
            self.failures -= 1
            session.put("embedding", "x", nbytes=64)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.cached = session.get("embedding")
        return super().segment(session, prompts)


@pytest.fixture
def full_gpu(task, segmenter):
    task._segmenter = FullGpu(segmenter.model, segmenter.spec, "untrained", "0" * 12, "cpu")
    return task


def test_when_the_gpu_is_full_it_is_tried_again_without_what_was_cached(full_gpu, segmenter, images):
    request = requests_for(images)[1]
    mask = mask_of(full_gpu(request))
    assert full_gpu._segmenter.failures == 0
    assert full_gpu._segmenter.cached is None
    full_gpu._segmenter = segmenter
    full_gpu.store = SessionStore(2**30)
    assert np.array_equal(mask_of(full_gpu(request)), mask)


def test_when_the_gpu_stays_full_the_answer_is_a_503_that_says_so(full_gpu, images):
    full_gpu._segmenter.failures = 2
    with pytest.raises(torch.OutOfMemoryError) as caught:
        full_gpu(requests_for(images)[0])
    answer = as_http(caught.value)
    assert answer.status_code == 503
    assert "GPU has not enough memory" in answer.detail
    assert "--conf device cpu (CUDA out of memory. Tried" in answer.detail
    assert mask_of(full_gpu(requests_for(images)[0])).shape == SHAPE[::-1]


def test_a_read_is_timed_only_where_there_was_one(task, images):
    request = {"image": images[0], "foreground": [[20, 20, 18]], "result_write_to_file": False}
    first, second = (task(request)[1]["latencies"] for _ in range(2))
    assert {"read", "encode"} <= set(first)
    assert not {"read", "encode"} & set(second)


def test_params_survive_json_without_nan(task, images):
    _, params = task({"image": images[0], "foreground": [[20, 20, 18]], "result_write_to_file": False})
    json.dumps(params, allow_nan=False)


def test_how_unsure_a_mask_is_comes_instead_of_it_when_asked(task, images):
    request = requests_for(images)[1]
    _, plain = task({**request, "result_write_to_file": False})
    file, params = task({**request, "uncertainty": True, "result_extension": ".nrrd"})
    values = sitk.ReadImage(file)
    array = sitk.GetArrayFromImage(values).T
    assert values.GetPixelID() == sitk.sitkFloat32 and array.shape == SHAPE and 0 <= array.min() < array.max() <= 1
    assert array[tuple(params["most_uncertain_ijk"])] == array.max()
    assert params["voxels"] == plain["voxels"] and "most_uncertain_ijk" not in plain
    with pytest.raises(RequestError, match="uncertainty"):
        task({**request, "uncertainty": "yes"})


def test_the_label_says_which_network_and_the_answer_which_it_was(task, segmenter, images):
    """Of weights with two networks, and a router for which nothing was ever taught."""
    image, skips = segmenter.encode(torch.zeros(1, 2, 128, 128, 128))
    width = 4 * sum(features.shape[1] for features in (image, *skips)) + 2
    samples, taught = np.random.default_rng(0).normal(1e4, 1, (4, width)), np.array([True, False] * 2)
    router = Router.fit(samples, taught, np.zeros(4))
    task._segmenter = RoutedSegmenter(segmenter.model, segmenter, router, ["Left kidney"], "two", "1" * 12)
    asked = {"image": images[0], "foreground": [[20, 20, 18]], "result_write_to_file": False}
    for label, network in (({"label": "left  KIDNEY"}, "taught"), ({"label": "liver"}, "base"), ({}, "base")):
        _, params = task(asked | label)
        assert params["weights"] == {"name": "two", "version": "1" * 12, "network": network}
