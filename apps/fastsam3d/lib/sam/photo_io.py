"""Photographs and other flat images: PNG, JPEG, TIFF, BMP in, PNG masks out."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .files import whole_file
from .intensity import grey_range, to_8bit

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 200_000_000
"""The most pixels of one image, checked before any is decoded."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L")  # grey with more than 8 bits


class PhotoError(ValueError):
    """An image that cannot be used; the message names the file, the rule and what was found."""


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Reads an image in 8 bits: (H, W) uint8 if it is grey, else (H, W, 3) uint8.

    Grey images of more than 8 bits (X-ray) are brought to 8 by their own percentiles (intensity.grey_range); transparency
    is dropped, and of a file with several pages the first is read. Pixels are in the order in which they are stored,
    whatever turn a camera noted.

    Raises:
        PhotoError: missing, of another format, damaged, or of more than MAX_PIXELS pixels.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked here
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise PhotoError(f"{path.name}: an image may have {MAX_PIXELS} pixels, got {size}; make it smaller")
                return _pixels(image)
    except PhotoError:
        raise
    except FileNotFoundError as error:
        raise PhotoError(f"no such image: {path.name}") from error
    except UnidentifiedImageError as error:
        raise PhotoError(f"{path.name}: an image must be a PNG, JPEG, TIFF or BMP file; convert it first") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path.name}: not a whole image file: {error}") from error


def write_photo_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """Writes a mask (H, W), uint8 or uint16, as a grey PNG of the same values; whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    with whole_file(Path(path)) as file:
        file.write(buffer.getbuffer())


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode in _DEEP:
        values = np.array(image)
        return to_8bit(values, *grey_range(np.nan_to_num(values, posinf=0, neginf=0)))
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    return np.array(image.convert("RGB"))
