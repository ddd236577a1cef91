"""Make the README's picture: OHIF with a liver and a kidney of the demonstration's phantom, segmented by clicks.

    .venv/bin/python scripts/screenshot_ohif.py [--out docs/images/ohif.png]

Makes the phantom, starts Orthanc, the server and a headless Chromium, clicks as the click simulator says until the masks
are good, takes the picture and stops everything. Needs what `make test` installs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "apps" / "fastsam3d")]

from lib.sam.clicks import next_click  # noqa: E402
from lib.sam.evaluate import dice  # noqa: E402

from scripts import demo_ohif  # noqa: E402
from tests.clients import demo, ohif, phantom  # noqa: E402

MODEL = "fastsam3d"
ORGANS = ("right kidney", "liver")  # the points of the last one stay in sight
MAX_CLICKS = 4
PORT = 8000  # as in the documentation, where it is free
GOOD_DICE = 0.9
LARGEST_BYTES = 500_000


def segment(viewer: ohif.Viewer, case: phantom.Case, organ: str) -> tuple[float, tuple[int, int, int]]:
    """Clicks on an organ until its mask is good; returns the Dice and the first click's voxel."""
    target, mask, clicks = case.organ(organ), np.zeros(case.labels.shape, bool), []
    while len(clicks) < MAX_CLICKS and dice(mask, target) < GOOD_DICE:
        click = next_click(mask, target, None, "centre", case.spacing_mm)
        viewer.choose(organ if click.positive else "background")
        viewer.point(click.ijk)
        viewer.choose(organ)
        answer = viewer.run()
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status} to {answer.params}")
        clicks.append(click)
        mask = viewer.mask(organ)
        print(
            f"{organ}: click {len(clicks)} {click.ijk} {'+' if click.positive else '-'}, Dice {dice(mask, target):.3f}"
        )
    return dice(mask, target), clicks[0].ijk


def take(out: Path, folder: Path, min_dice: float) -> None:
    """Does it all.

    Raises:
        RuntimeError: something is missing, or a mask is not good enough for the picture.
    """
    lacking = demo.missing()
    if lacking:
        raise RuntimeError(lacking)
    phantom.make(folder / "sample", "--cases", "1", "--seed", "0", "--dicom", "1")
    case = phantom.dicom_series(folder / "sample")
    with demo.running(folder / "sample" / "dicom", folder / "demo", demo_ohif.free_port(PORT)) as running:
        with ohif.browser_page(demo.find_chromium(), 1600, 1000) as page:
            viewer = ohif.Viewer(page, running.url)
            viewer.open(case.study)
            viewer.connect(MODEL)
            viewer.hide_studies()
            shown = {}
            for organ in ORGANS:
                viewer.clear_points()  # those on the background count for all organs
                score, shown[organ] = segment(viewer, case, organ)
                if score < min_dice:
                    raise RuntimeError(
                        f"the {organ}'s Dice is {score:.3f}, below {min_dice}: no picture is made of that"
                    )
            viewer.show(shown["right kidney"], "mpr-axial")
            viewer.show(shown["liver"], "mpr-sagittal")
            viewer.show(shown["liver"], "mpr-coronal")
            viewer.wait_until_messages_are_gone()
            ohif.save_picture(page, out)
    if out.stat().st_size > LARGEST_BYTES:
        raise RuntimeError(f"{out} has {out.stat().st_size} bytes, more than {LARGEST_BYTES}")
    print(f"{out}: {out.stat().st_size} bytes")


def main() -> int:
    """Read the command line and make the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "ohif.png", help="the picture")
    parser.add_argument("--min-dice", type=float, default=0.8, help="of each mask; below it no picture is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="screenshot-") as folder:
        try:
            take(options.out.resolve(), Path(folder), options.min_dice)
        except RuntimeError as error:
            sys.stderr.write(f"screenshot_ohif: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
