"""Photographs in, PNG masks out."""

import numpy as np
import pytest
from lib.sam import photo_io
from lib.sam.photo_io import PhotoError, read_photo, write_photo_mask
from PIL import Image

GREY = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bits_are_read_as_they_are(tmp_path, suffix, pixels):
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}")
    assert np.array_equal(read_photo(tmp_path / f"x{suffix}"), pixels)


def test_a_jpeg(tmp_path):
    Image.fromarray(np.full((30, 40, 3), (200, 30, 60), np.uint8)).save(tmp_path / "x.JPG", format="JPEG")
    found = read_photo(tmp_path / "x.JPG")
    assert found.shape == (30, 40, 3)
    assert np.abs(found.mean(axis=(0, 1)) - (200, 30, 60)).max() < 5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_brought_to_eight_by_their_percentiles(tmp_path, suffix):
    deep = np.random.default_rng(0).integers(9_000, 30_000, (300, 400)).astype(np.uint16)
    deep[:100] = 0
    deep[0, 0] = 65535
    Image.fromarray(deep).save(tmp_path / f"x{suffix}")
    found = read_photo(tmp_path / f"x{suffix}")
    assert (found.dtype, found.shape) == (np.uint8, (300, 400))
    low, high = np.percentile(deep[deep > 0], (0.5, 99.5))
    expected = np.clip((deep[150:] - low) / (high - low), 0, 1) * 255
    assert np.abs(found[150:] - expected).max() < 1.5
    assert found[0, 0] == 255


def test_other_modes_become_grey_or_colour(tmp_path):
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "rgba.png")
    assert np.array_equal(read_photo(tmp_path / "rgba.png"), COLOUR)
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    assert read_photo(tmp_path / "palette.png").shape == (30, 40, 3)
    Image.fromarray(GREY > 99).save(tmp_path / "bits.png")
    assert set(np.unique(read_photo(tmp_path / "bits.png"))) == {0, 255}


def test_what_is_no_image_is_said(tmp_path, monkeypatch):
    with pytest.raises(PhotoError, match="no such image: none.png"):
        read_photo(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(PhotoError, match="must be a PNG, JPEG, TIFF or BMP"):
        read_photo(tmp_path / "text.png")
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PhotoError, match="half.png: not a whole image"):
        read_photo(tmp_path / "half.png")
    monkeypatch.setattr(photo_io, "MAX_PIXELS", 1000)
    with pytest.raises(PhotoError, match="may have 1000 pixels, got 40 x 30"):
        read_photo(tmp_path / "x.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_written_with_its_values(tmp_path, dtype):
    mask = np.arange(300 * 4).reshape(300, 4).astype(dtype)
    write_photo_mask(tmp_path / "mask.png", mask)
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")), mask)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]
