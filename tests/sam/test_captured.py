"""Steps as CUDA graphs: what can be tested without a GPU, which is all but the recording itself.

The networks run here on the "meta" device, a second one beside the CPU whose tensors have no values: whatever looks at a value,
moves a tensor from one device to another, or mixes both, is an error there, as it is while a CUDA graph is recorded.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from lib.sam.build import build_sam
from lib.sam.captured import CapturedSteps, flat
from lib.sam.networks.layers import trilinear
from lib.sam.segmenter import VolumeSegmenter
from lib.sam.zoo import get_spec
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.sam.test_finetune import TINY

SPECS = ("fastsam3d_compact", "fastsam3d_compact_normed", "fastsam3d_published_h6", "sam_med3d")


class OneDevice(TorchDispatchMode):
    """Refuses what asks for a value or works on tensors of two devices; a number that torch made a tensor of is none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in given if x.device.type != "cpu" or x.ndim}
        if len(devices) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError(f"{func} on {sorted(devices)}")
        out = func(*args, **kwargs)
        made = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        if given and devices and made - devices:
            raise AssertionError(f"{func} from {sorted(devices)} to {sorted(made)}")
        return out


def on_another_device(spec, boxes):
    """All that a click runs on a GPU, its first call, which fills tables, before it is watched."""
    network = build_sam(spec).eval().requires_grad_(False).to("meta")
    network.prompt_encoder.keep_position()
    patch = torch.zeros(1, spec.encoder.channels, *(spec.patch_size,) * 3, device="meta")
    labels = torch.ones(1, 2 if boxes else 3, dtype=torch.long, device="meta")
    points = torch.zeros(1, labels.shape[1], 3, device="meta")
    zeros = torch.zeros(1, 1, *(spec.mask_size,) * 3, device="meta")

    def click():
        embedding = network.encode(patch)
        logits, _ = network.decode(embedding, (points, labels), zeros)
        return trilinear(network.sharpen(embedding, logits)[0, 0].float(), spec.patch_size)

    click()
    with OneDevice():
        return click()


@pytest.mark.parametrize("name", SPECS)
def test_a_click_looks_at_no_value_and_stays_on_its_device(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which that device does not have
    spec = get_spec(name)
    with torch.inference_mode():
        assert on_another_device(spec, spec.decoder.boxes).shape == (spec.patch_size,) * 3


def test_a_look_at_a_value_would_be_found():
    x = torch.zeros(2, device="meta")
    with OneDevice():
        with pytest.raises((AssertionError, RuntimeError)):
            bool(x.any())
        with pytest.raises(AssertionError, match="on"):
            x + torch.zeros(2)
        with pytest.raises(AssertionError, match="from"):
            torch.zeros(2).to("meta")


def recorder(wrong=False, fails=False):
    """Records as CUDA does: the work runs once, and each replay writes into the outputs of that time."""

    def record(work):
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = tuple(x.clone() for x in work())

        def replay():
            record.replays += 1
            for place, value in zip(outputs, work()):
                place.copy_(value + 1 if wrong else value)

        return replay, outputs

    record.replays = 0
    return record


def double(x, y):
    return x * 2 + y, x.sum()[None]


def test_a_recorded_step_says_the_same_of_new_values_and_keeps_old_answers():
    record = recorder()
    steps = CapturedSteps(record)
    assert steps.record_all(lambda: steps("double", double, torch.zeros(3), torch.ones(3))) == 1
    first = steps("double", double, torch.full((3,), 2.0), torch.ones(3))
    before = record.replays
    second = steps("double", double, torch.full((3,), 5.0), torch.zeros(3))
    assert record.replays == before + 1
    assert first[0].tolist() == [5.0] * 3 and first[1].tolist() == [6.0]
    assert second[0].tolist() == [10.0] * 3 and second[1].tolist() == [15.0]


def test_other_shapes_and_names_run_as_they_are():
    record = recorder()
    steps = CapturedSteps(record)
    steps.record_all(lambda: steps("double", double, torch.zeros(3), torch.ones(3)))
    before = record.replays
    assert steps("double", double, torch.ones(4), torch.ones(4))[0].tolist() == [3.0] * 4
    assert steps("triple", lambda x, y: (3 * x,), torch.ones(3), torch.ones(3))[0].tolist() == [3.0] * 3
    assert record.replays == before


@pytest.mark.parametrize("record", [recorder(wrong=True), recorder(fails=True)])
def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_the_log_says_so(record, caplog):
    steps = CapturedSteps(record)
    assert steps.record_all(lambda: steps("double", double, torch.zeros(3), torch.ones(3))) == 0
    assert "no CUDA graph of double" in caplog.text
    before = record.replays
    assert steps("double", double, torch.ones(3), torch.ones(3))[0].tolist() == [3.0] * 3
    assert record.replays == before


def test_a_segmenter_answers_by_graphs_as_without_them():
    torch.manual_seed(3)
    network = build_sam(TINY)
    plain = VolumeSegmenter(network, TINY, "a", "a")
    graphs = VolumeSegmenter(network, TINY, "b", "b")
    graphs._steps = CapturedSteps(record := recorder())
    assert graphs.record_graphs() >= 8  # encode, sharpen, and the decoder with up to six prompts
    before = record.replays
    patch = torch.rand(1, TINY.encoder.channels, *(TINY.patch_size,) * 3)
    points = plain._points([((5, 9, 11), 1), ((20, 9, 11), 0)])
    answers = []
    for segmenter in (plain, graphs):
        embedding = segmenter.encode(patch)
        logits, iou = segmenter.decode(embedding, points)
        again, _ = segmenter.decode(embedding, points, logits)
        answers.append((*flat(embedding), logits, iou, again, segmenter.sharpen(embedding, again)))
    assert record.replays == before + 4
    for x, y in zip(*answers, strict=True):
        torch.testing.assert_close(x, y)


def test_work_that_fails_while_it_is_recorded_leaves_no_graph_and_later_work_is_done(caplog):
    steps = CapturedSteps(recorder())

    def work():
        steps("double", double, torch.zeros(3), torch.ones(3))
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert steps.record_all(work) == 0 and "out of memory" in caplog.text
    assert steps("double", double, torch.ones(3), torch.ones(3))[0].tolist() == [3.0] * 3


def test_without_cuda_nothing_is_recorded():
    segmenter = VolumeSegmenter(build_sam(TINY), TINY, "a", "a")
    assert segmenter.record_graphs() == 0
