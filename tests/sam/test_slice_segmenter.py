"""Scans, images and stacks through the real network (untrained: what is compared here does not need good masks)."""

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.sam.build import build_sam2d
from lib.sam.lungs import lung_clicks
from lib.sam.prompts import Box, Click, PromptError, Prompts
from lib.sam.session import SessionStore
from lib.sam.slice_network import SliceNetwork, SlicePrompt
from lib.sam.slice_segmenter import SliceOptions, SliceSegmenter
from lib.sam.slice_source import Memory
from lib.sam.slices import SliceFrame
from lib.sam.zoo import get_spec2d

from tests.sam.models2d import SMALL, small_state

SHAPE = (50, 44, 9)
BOX = Box((10, 8, 2), (34, 30, 6))
ONE = SliceOptions(single=True)


@pytest.fixture(scope="module")
def model():
    model = build_sam2d(get_spec2d(SMALL))
    model.load_state_dict(small_state())
    return model


@pytest.fixture(scope="module")
def segmenter(model):
    return SliceSegmenter(model, "untrained", "0" * 12)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    values = np.random.default_rng(0).normal(300, 60, SHAPE)
    values[12:30, 10:28, 2:7] += 300
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def session(path):
    with SessionStore(2**30).open("scan", path) as session:
        yield session


def thin(k: int) -> Box:
    return Box((10, 8, k), (34, 30, k))


def same(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a > 0, b > 0
    return 1.0 if not (a.any() or b.any()) else 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_slice_is_answered_in_that_slice_only(segmenter, session):
    for k in (0, 4, 8):
        answer = segmenter.segment(session, Prompts(box=thin(k)), ONE)
        mask = answer.full_mask()
        assert mask.shape == SHAPE
        assert set(np.flatnonzero(mask.any(axis=(0, 1)))) <= {k}
    assert 0 <= answer.iou <= 1
    assert (answer.weights, answer.version) == ("untrained", "0" * 12)


def test_a_slice_is_encoded_once_for_all_prompts(segmenter, session):
    first = segmenter.segment(session, Prompts(box=thin(4)), ONE)
    second = segmenter.segment(session, Prompts((Click((20, 20, 4)), Click((5, 5, 4), False)), thin(4)), ONE)
    assert "encode" in first.timings_ms
    assert "encode" not in second.timings_ms
    other_window = segmenter.segment(session, Prompts(box=thin(4)), SliceOptions(single=True, window="lung"))
    assert "encode" in other_window.timings_ms


def test_a_box_bounds_a_stack(segmenter, session):
    mask = segmenter.segment(session, Prompts(box=BOX)).full_mask()
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) <= set(range(2, 7))
    again = segmenter.segment(session, Prompts(box=BOX))
    assert "encode" not in again.timings_ms
    assert np.array_equal(again.full_mask(), mask)


def test_the_answer_does_not_depend_on_what_was_asked_before(segmenter, session, path):
    for prompts in (Prompts(box=thin(3)), Prompts((Click((20, 20, 5)),)), Prompts(box=BOX)):
        segmenter.segment(session, prompts)
    request = Prompts((Click((20, 20, 5)), Click((30, 30, 5), False)), BOX)
    with SessionStore(2**30).open("scan", path) as fresh:
        expected = segmenter.segment(fresh, request).full_mask()
    # Batches of other sizes round differently in half precision.
    assert same(segmenter.segment(session, request).full_mask(), expected) > 0.995


def test_a_store_without_room_for_embeddings_changes_only_the_time(segmenter, session, path):
    with SessionStore(2 * int(np.prod(SHAPE)) + 4096).open("scan", path) as small:
        mask = segmenter.segment(small, Prompts(box=BOX)).full_mask()
    assert same(mask, segmenter.segment(session, Prompts(box=BOX)).full_mask()) > 0.995


@pytest.mark.parametrize("axis", range(3))
def test_the_same_scan_stored_another_way_gives_the_same_mask(segmenter, tmp_path, axis):
    """A slice along any axis comes back to its own voxels: the volume is stored with its axes turned."""
    image = np.random.default_rng(1).integers(0, 900, (40, 36)).astype(np.int16)  # x, y
    order = [a for a in range(3) if a != axis] + [axis]
    volume = np.zeros((40, 36, 3), np.int16)
    volume[:] = image[..., None]
    stored = np.transpose(volume, np.argsort(order))
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "turned.nii")
    low, high = np.array([6, 5, 1])[np.argsort(order)], np.array([30, 20, 1])[np.argsort(order)]
    with SessionStore(2**30).open("x", tmp_path / "turned.nii") as session:
        answer = segmenter.segment(session, Prompts(box=Box(tuple(low), tuple(high))), ONE)
    mask = np.transpose(answer.full_mask(), order)
    direct = segmenter.segment_image(_to_8bit(volume[:, :, 1].T, volume), np.array([[6, 5, 30, 20]]))[0]
    expected = np.zeros((36, 40), bool)
    (y, x), (h, w) = direct.corner, direct.mask.shape
    expected[y : y + h, x : x + w] = direct.mask
    assert not mask[:, :, [0, 2]].any()
    assert np.array_equal(mask[:, :, 1].T > 0, expected)


def _to_8bit(image, volume):
    from lib.sam.intensity import grey_range, to_8bit

    return to_8bit(image, *grey_range(volume))


def test_lung_is_shown_in_the_lung_window_and_the_rest_in_that_of_soft_tissue(segmenter, tmp_path):
    volume = np.random.default_rng(2).normal(40, 20, (60, 60, 3)).astype(np.int16)
    volume[:8] = -1000
    volume[30:55, 10:50] = np.random.default_rng(3).normal(-850, 30, (25, 40, 3))
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "chest.nii")
    box, click = Box((28, 8, 1), (56, 52, 1)), Prompts((Click((40, 30, 1)), Click((20, 20, 1), False)))
    with SessionStore(2**30).open("x", tmp_path / "chest.nii") as session:

        def mask(prompts, window):
            return segmenter.segment(session, prompts, SliceOptions(single=True, window=window)).full_mask()

        for prompts in (Prompts(box=box), click):
            assert np.array_equal(mask(prompts, "auto"), mask(prompts, "lung"))
            assert not np.array_equal(mask(prompts, "auto"), mask(prompts, "soft tissue"))
        elsewhere = Prompts(box=Box((10, 10, 1), (28, 50, 1)))
        assert np.array_equal(mask(elsewhere, "auto"), mask(elsewhere, "soft tissue"))


def test_a_box_around_a_crescent_of_lung_is_asked_with_clicks_on_it_and_beside_it(segmenter, tmp_path):
    i, j = np.mgrid[:64, :60]
    plane = np.full((64, 60), 40, np.int16)
    plane[:3] = -1000
    plane[np.hypot(i - 34, j - 30) < 24] = -850
    plane[np.hypot(i - 34, j - 30) < 15] = 60  # the dome
    nib.save(nib.Nifti1Image(np.repeat(plane[..., None], 3, axis=2), np.eye(4)), tmp_path / "chest.nii")
    box = Box((11, 7, 1), (57, 53, 1))
    told = tuple(Click((x, y, 1), on_lung) for x, y, on_lung in lung_clicks(plane.T, (11, 7, 57, 53)))
    with SessionStore(2**30).open("x", tmp_path / "chest.nii") as session:

        def mask(prompts, window="auto"):
            return segmenter.segment(session, prompts, SliceOptions(single=True, window=window)).full_mask()

        assert {click.positive for click in told} == {True, False}
        assert np.array_equal(mask(Prompts(box=box)), mask(Prompts(told, box), "lung"))
        on_dome = Prompts((Click((34, 30, 1)),), box)  # the user means the dome
        assert np.array_equal(mask(on_dome), mask(on_dome, "lung"))
        thick = Prompts(box=Box((11, 7, 0), (57, 53, 2)))
        assert np.array_equal(mask(thick), mask(thick, "lung"))


def test_clicks_for_one_slice_must_lie_in_one(segmenter, session):
    with pytest.raises(PromptError, match="one slice"):
        segmenter.segment(session, Prompts((Click((3, 4, 5)), Click((9, 8, 7)))), ONE)
    with pytest.raises(PromptError, match="at least one click on the object"):
        segmenter.segment(session, Prompts((Click((3, 4, 5), False),)), ONE)


def test_many_boxes_on_one_image_are_answered_as_each_alone(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    boxes = np.array([[x, y, x + 30, y + 20] for x in range(0, 80, 20) for y in range(0, 60, 20)])
    together = segmenter.segment_image(image, boxes)
    assert len(together) == len(boxes)
    for box, found in list(zip(boxes, together))[::5]:
        alone = segmenter.segment_image(image, box[None])[0]
        assert found.corner == alone.corner or abs(found.mask.sum() - alone.mask.sum()) < 0.01 * alone.mask.sum() + 5


def test_a_stack_of_boxes_is_answered_within_each(segmenter):
    stack = np.random.default_rng(0).integers(0, 256, (7, 40, 44), dtype=np.uint8)
    found = segmenter.segment_stack(stack, np.array([[5, 5, 0, 30, 30, 2], [8, 8, 4, 30, 33, 6]]))
    assert [sorted(masks) for masks in found] == [[0, 1, 2], [4, 5, 6]]


def test_fused_and_half_precision_agree_with_the_trained_form_in_float32(model):
    images = np.random.default_rng(0).random((2, 3, 256, 256)).astype(np.float32)
    prompts = [SlicePrompt((40.0, 30.0, 180.0, 200.0)), SlicePrompt((10.0, 60.0, 100.0, 140.0), ((50.0, 90.0, 1),))]
    reference = SliceNetwork(model, fused=False, half=False)
    expected, _ = reference.decode(list(reference.encode(images)), prompts)
    for fused, half, least in ((True, False, 0.9999), (True, True, 0.97)):
        network = SliceNetwork(model, fused=fused, half=half)
        logits, _ = network.decode(list(network.encode(images)), prompts)
        assert same(logits > 0, expected > 0) > least
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "image_encoder.neck.0.weight" in dict(model.named_parameters())


def test_a_disagreeing_fused_form_is_not_used(caplog):
    model = build_sam2d(get_spec2d(SMALL))
    with torch.no_grad():
        for module in model.image_encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.fill_(1e-30)
                module.weight.fill_(1e15)
    network = SliceNetwork(model, half=False)
    assert "fused encoder must agree" in caplog.text
    assert network.model.image_encoder.state_dict().keys() == model.image_encoder.state_dict().keys()


def test_the_memory_of_a_stack_is_bounded():
    memory = Memory(1000)
    for n in range(20):
        memory.put(n, np.zeros(100, np.uint8))
        memory.get(0)
    assert [n for n in range(20) if memory.get(n) is not None] == [0, *range(11, 20)]
    memory.put(19, np.zeros(100, np.uint8))
    assert memory.get(0) is not None


def test_pixels_of_a_large_box_do_not_overflow_eight_bits(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (300, 600), dtype=np.uint8)
    whole = segmenter.segment_image(image, np.array([[0, 0, 599, 299]]))[0]
    assert SliceFrame((300, 600)).boxes_to_model(np.array([0, 0, 599, 299])).max() == 255
    assert whole.mask.shape[0] <= 300
