"""The rows of a run as bars in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..cli import UserError
from ..sam.benchmark_rows import BenchRow
from ..sam.files import whole_file

_WIDTH, _LABELS, _NUMBERS, _BAR, _GAP, _MARGIN = 1100, 160, 110, 16, 8, 14
_COLOURS = ("#1f77b4", "#d62728", "#ff9896", "#9467bd")


def check_plot(path: Path) -> None:
    """Whether a picture can be written there.

    Raises:
        UserError: if not.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot takes a file that ends in .png, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot: there is no folder {str(path.parent)!r}")


def draw(rows: Sequence[BenchRow], path: Path) -> None:
    """Writes the bars of all rows, those of a part to one scale, as a PNG."""
    bars = [(row, row.bars()) for row in rows]
    bars = [(row, values) for row, values in bars if values]
    largest: dict[str, float] = {}
    for row, values in bars:
        largest[row.part] = max(largest.get(row.part, 0.0), *values.values())
    font = ImageFont.load_default()
    line = _BAR + 2
    height = 2 * _MARGIN + sum(line * (1 + len(values)) + _GAP for _, values in bars)
    image = Image.new("RGB", (_WIDTH, max(height, 4 * _MARGIN)), "white")
    pen = ImageDraw.Draw(image)
    y, room = _MARGIN, _WIDTH - _LABELS - _NUMBERS - 2 * _MARGIN
    for row, values in bars:
        pen.text((_MARGIN, y), f"{row.part}: {row.case}", fill="black", font=font)
        y += line
        unit = "MB" if row.part == "memory" else "ms"
        for n, (name, value) in enumerate(values.items()):
            length = max(1, round(room * value / largest[row.part])) if largest[row.part] else 1
            left = _MARGIN + _LABELS
            pen.text((_MARGIN + 8, y + 1), name, fill="#444444", font=font)
            pen.rectangle((left, y, left + length, y + _BAR - 3), fill=_COLOURS[n % len(_COLOURS)])
            pen.text((left + length + 6, y + 1), f"{value:,.1f} {unit}", fill="black", font=font)
            y += line
        y += _GAP
    with whole_file(path) as file:
        image.save(file, format="PNG")
