"""Images into the 2D models' frame and back, area interpolation, and boxes from slice to slice."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.sam.area_resize import resize_area
from lib.sam.slices import SliceFrame, next_slice_box2d, plane_axes, preprocess_image, slice_image


def pattern(height, width, channels=1):
    y, x, k = np.ogrid[:height, :width, :channels]
    image = ((7 * y * y + 13 * x + 31 * (k + 1) * y + x * y) % 251).astype(np.uint8)
    return image if channels > 1 else image[..., 0]


@pytest.mark.parametrize(
    ("old", "new", "checksum"),
    [  # made with OpenCV 4.10 (5.0 gives the same): crc32 of cv2.resize(pattern(*old), ..., INTER_AREA)
        ((320, 640, 3), (128, 256), 0xC4EA427B),
        ((512, 512, 1), (256, 256), 0xB10D673E),
        ((768, 768, 1), (256, 256), 0x3B911C5C),
        ((300, 200, 3), (256, 171), 0xFE62A7C3),
        ((290, 320, 1), (232, 256), 0xC1A6EB41),
        ((757, 1001, 3), (194, 256), 0xCD0C5A91),
        ((181, 143, 3), (256, 202), 0x93D61F4A),
        ((1, 100, 1), (3, 256), 0xC04EAC92),
        ((300, 100, 1), (200, 150), 0xDEC16454),
        ((257, 256, 1), (256, 255), 0xB863E7E5),
    ],
)
def test_area_interpolation_is_opencvs(old, new, checksum):
    image = pattern(*old)
    result = resize_area(image, *new)
    assert result.dtype == np.uint8 and result.shape == new + image.shape[2:]
    assert zlib.crc32(result.tobytes()) == checksum


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 2**32 - 1))
def test_shrinking_averages_the_covered_area(sizes, seed):
    height, width = max(sizes[0], sizes[2]), max(sizes[1], sizes[3])
    new = min(sizes[0], sizes[2]), min(sizes[1], sizes[3])
    image = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)

    def cover(old, count):
        edges = np.arange(count + 1) * old / count
        pixel = np.arange(old)
        part = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
        return part.clip(0) * count / old

    expected = cover(height, new[0]) @ image @ cover(width, new[1]).T
    assert np.abs(resize_area(image, *new) - expected).max() <= 0.51 + 255 * 2e-3


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4), st.integers(0, 255))
def test_an_even_image_stays_even(sizes, value):
    height, width, *new = sizes
    assert np.abs(resize_area(np.full((height, width), value, np.uint8), *new).astype(int) - value).max() <= 1


def test_no_resize_gives_a_copy():
    image = pattern(8, 9)
    same = resize_area(image, 8, 9)
    assert np.array_equal(same, image) and not np.shares_memory(same, image)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4), np.uint16), (2, 2)),
        (np.zeros((4, 4), np.float32), (2, 2)),
        (np.zeros(4, np.uint8), (2, 2)),
        (np.zeros((0, 4), np.uint8), (2, 2)),
        (np.zeros((4, 4), np.uint8), (0, 2)),
    ],
)
def test_what_cannot_be_resized_is_refused(image, size):
    with pytest.raises(ValueError, match="uint8 image|at least 1"):
        resize_area(image, *size)


def test_preprocessing_scales_by_the_resized_image_and_pads():
    image = pattern(320, 640, 3)
    result = preprocess_image(image)
    resized = resize_area(image, 128, 256).astype(float)
    assert result.shape == (3, 256, 256) and result.dtype == np.float32
    assert not result[:, 128:].any() and result[:, :128].min() == 0 and result.max() == 1
    scaled = (resized - resized.min()) / (resized.max() - resized.min())
    assert np.array_equal(result[:, :128], np.moveaxis(scaled, -1, 0).astype(np.float32))


def test_grey_images_give_three_equal_channels():
    grey = preprocess_image(pattern(300, 200))
    assert np.array_equal(grey, preprocess_image(np.repeat(pattern(300, 200)[..., None], 3, axis=-1)))
    assert np.array_equal(grey[0], grey[2]) and not grey[:, :, 171:].any()


def test_an_image_of_one_value_gives_zeros():
    assert not preprocess_image(np.full((30, 40), 200, np.uint8)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 700)])
def test_extreme_shapes_keep_a_pixel(shape):
    frame = SliceFrame(shape)
    assert min(frame.resized) >= 1 and max(frame.resized) == 256
    assert preprocess_image(pattern(*shape)).shape == (3, 256, 256)
    assert frame.logits_to_source(torch.zeros(1, 1, 256, 256)).shape[-2:] == shape


@pytest.mark.parametrize("shape", [(8,), (8, 8, 1), (8, 8, 4), (2, 8, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="grey or"):
        preprocess_image(np.zeros(shape, np.uint8))


def test_boxes_are_cut_to_whole_pixels_as_published():
    assert SliceFrame((181, 143)).boxes_to_model([28, 30, 123, 145]).tolist() == [39, 42, 173, 205]
    many = SliceFrame((512, 300)).boxes_to_model(np.array([[0, 0, 299, 511], [1, 3, 512, 512]], dtype=np.uint16))
    assert many.dtype == np.int64 and many.tolist() == [[0, 0, 149, 255], [0, 1, 256, 256]]
    assert SliceFrame((256, 256)).boxes_to_model(np.array([256, 0, 256, 256])).max() == 256


@pytest.mark.parametrize("box", [[0, 0, 1], [0, 0, float("nan"), 2], [0, 0, float("inf"), 2], 3.0])
def test_bad_boxes_are_refused(box):
    with pytest.raises(ValueError, match="a box must be 4 finite numbers"):
        SliceFrame((10, 10)).boxes_to_model(box)


def test_points_keep_their_place_in_the_image():
    frame = SliceFrame((320, 640))
    assert frame.points_to_model([[-0.5, -0.5], [639.5, 319.5]]).tolist() == [[-0.5, -0.5], [255.5, 127.5]]
    odd = SliceFrame((300, 200))
    assert odd.points_to_model([199.5, 299.5]).tolist() == [170.5, 255.5]
    with pytest.raises(ValueError, match="a point"):
        odd.points_to_model([[1, float("nan")]])


def test_a_point_and_the_logits_there_meet():
    """A bump of logits at a point's model pixel comes back at the point."""
    for shape in ((320, 640), (300, 200), (181, 143)):
        frame = SliceFrame(shape)
        x, y = frame.points_to_model([100, 80])
        rows, columns = torch.arange(256.0)[:, None], torch.arange(256.0)[None]
        bump = -((rows - y) ** 2) - (columns - x) ** 2
        back = frame.logits_to_source(bump[None, None])[0, 0]
        peak = divmod(int(back.argmax()), shape[1])
        assert abs(peak[0] - 80) <= 1 and abs(peak[1] - 100) <= 1


def test_small_logits_are_resized_before_the_padding_is_cut():
    frame = SliceFrame((320, 512))
    small = torch.randn(2, 1, 64, 64)
    large = torch.nn.functional.interpolate(small, (256, 256), mode="bilinear", align_corners=False)
    assert torch.equal(frame.logits_to_source(small), frame.logits_to_source(large))
    padding = large.clone()
    padding[..., 160:, :] = 1e6
    assert torch.equal(frame.logits_to_source(padding), frame.logits_to_source(large))
    assert torch.equal(SliceFrame((256, 256)).logits_to_source(large), large)


def ellipse(shape=(320, 500), centre=(150, 230), radii=(37, 81)):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


def test_the_published_box_depends_on_the_objects_number():
    boxes = {label: next_slice_box2d(ellipse(), published_label=label).tolist() for label in (1, 2, 6)}
    assert boxes == {1: [74, 55, 161, 98], 2: [73, 55, 162, 98], 6: [73, 55, 162, 99]}


def test_our_box_does_not():
    mask = ellipse()
    box = next_slice_box2d(mask)
    assert box.tolist() == [73, 54, 162, 98] and box.dtype == np.int64
    for value in (1, 2, 6, 255):
        assert np.array_equal(next_slice_box2d(mask.astype(np.uint8) * value), box)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    drawn = SliceFrame(mask.shape).boxes_to_model([columns[0], rows[0], columns[-1], rows[-1]])
    assert np.array_equal(box, drawn + [-3, -3, 3, 3])


def test_boxes_stay_in_the_image_and_do_not_overflow():
    whole = np.ones((512, 512), np.uint8)
    assert next_slice_box2d(whole).tolist() == [0, 0, 256, 256]
    assert next_slice_box2d(whole, published_label=255).tolist() == [0, 0, 256, 256]


def test_a_thin_object_is_not_lost():
    mask = np.zeros((1024, 1024), bool)
    mask[400:600, 511] = True
    assert next_slice_box2d(mask, published_label=1) is None  # rounded away, as published
    assert next_slice_box2d(mask).tolist() == [124, 97, 130, 152]


def test_nothing_to_propagate():
    assert next_slice_box2d(np.zeros((20, 30))) is None
    assert next_slice_box2d(np.zeros((20, 30)), published_label=3) is None


@pytest.mark.parametrize(("mask", "label"), [(np.ones((2, 2, 2)), None), (np.ones((4, 4)), 0), (np.ones((4, 4)), 256)])
def test_bad_masks_are_refused(mask, label):
    with pytest.raises(ValueError, match="two axes|1 to 255"):
        next_slice_box2d(mask, published_label=label)


# ------------------------------------------------------------------ masks back on the image, slices of volumes


@pytest.mark.parametrize("source", [(40, 37), (512, 300), (256, 256), (130, 700), (2000, 31), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_a_pasted_mask_is_that_of_the_whole_image(source, seed):
    frame = SliceFrame(source)
    draw = torch.Generator().manual_seed(seed)
    logits = (
        torch.nn.functional.interpolate(torch.randn(1, 1, 12, 12, generator=draw), (256, 256), mode="bicubic") - 1.2
    )
    whole = (frame.logits_to_source(logits)[0, 0] > 0).numpy()
    mask, (y, x) = frame.paste(logits[0, 0].numpy())
    found = np.zeros(source, dtype=bool)
    found[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert np.array_equal(found, whole)
    if mask.size:  # and nothing beside it
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_nothing_positive_gives_an_empty_mask():
    mask, corner = SliceFrame((30, 40)).paste(np.full((256, 256), -1.0, np.float32))
    assert (mask.shape, corner) == ((0, 0), (0, 0))
    beside = np.full((256, 256), -1.0, np.float32)
    beside[200:, :] = 1  # below the image, whose shorter side ends at 192
    assert SliceFrame((30, 40)).paste(beside)[0].shape == (0, 0)


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_shows_the_earlier_axis_along_x(axis):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    x, y = plane_axes(axis)
    image = slice_image(volume, axis, 1)
    assert image.shape == (volume.shape[y], volume.shape[x])
    at = [0, 0, 0]
    at[axis], at[x], at[y] = 1, volume.shape[x] - 1, 0
    assert image[0, volume.shape[x] - 1] == volume[tuple(at)]
