"""The OHIF viewer that MONAI Label ships, in a headless Chromium, driven as a user would: connect, choose, click, run.

Voxels are [i, j, k] of the series as it is loaded. What the browser holds is read from its own memory (cornerstone).
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Response, Route

WAIT_MS = 180_000
PANES = ("mpr-axial", "mpr-sagittal", "mpr-coronal")
FAILED = "Failed to Run Inference for Point Prompts"

_FLAGS = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing, not even the browser's own, leaves this machine
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)

_VOLUME_IS_LOADED = """() => {
    if (!window.cornerstone?.cache || !window.services) return false;
    const volumes = [...cornerstone.cache.getVolumes()].filter(v => v.volumeId.startsWith('cornerstoneStreaming'));
    return volumes.length > 0 && volumes.every(v => v.loadStatus?.loaded);
}"""

# Brings a pane to the plane of a voxel, without turning or zooming it; returns the voxel's place on the page.
_SHOW_VOXEL = """([pane, ijk]) => {
    const viewport = cornerstone.getRenderingEngines()[0].getViewport(pane);
    const volume = [...cornerstone.cache.getVolumes()].find(v => v.volumeId.startsWith('cornerstoneStreaming'));
    const world = volume.imageData.indexToWorld(ijk);
    const { focalPoint, position, viewPlaneNormal } = viewport.getCamera();
    const away = viewPlaneNormal.reduce((sum, n, axis) => sum + n * (world[axis] - focalPoint[axis]), 0);
    const moved = point => point.map((value, axis) => value + away * viewPlaneNormal[axis]);
    viewport.setCamera({ focalPoint: moved(focalPoint), position: moved(position) });
    viewport.render();
    const [x, y] = viewport.worldToCanvas(world);
    const frame = viewport.canvas.getBoundingClientRect();
    return [frame.left + x, frame.top + y];
}"""

_LABELMAP = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    const voxels = volume.voxelManager.getCompleteScalarDataArray();
    const bytes = Uint8Array.from(voxels);
    let text = '';
    for (let at = 0; at < bytes.length; at += 32768) {
        text += String.fromCharCode.apply(null, bytes.subarray(at, at + 32768));
    }
    const segmentation = services.segmentationService.getSegmentations()[0];
    const segments = (segmentation.config ?? segmentation).segments;
    const names = Object.entries(segments).map(([value, segment]) => [segment.label, Number(value)]);
    return { size: volume.dimensions, names: Object.fromEntries(names), voxels: btoa(text) };
}"""

_WATCH_PAINTING = """() => {
    window.painted = false;
    const name = cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
    cornerstone.eventTarget.addEventListener(name, () => { window.painted = true; }, { once: true });
}"""

# What OHIF's own "Export as DICOM SEG" does once its dialog has asked for a name.
_EXPORT = """async name => {
    const options = { SeriesDescription: name };
    const { dataset } = commandsManager.runCommand('generateSegmentation', { segmentationId: '1', options });
    await extensionManager.getActiveDataSource()[0].store.dicom(dataset);
}"""

_POINTS = "() => cornerstoneTools.annotation.state.getAllAnnotations().length"
_ACTIVE_PANE = "() => services.viewportGridService.getState().activeViewportId"


@dataclass(frozen=True)
class Answer:
    """What one press of Run sent and got: the request's parameters, the answer's HTTP status, and the model's name."""

    params: dict[str, Any]
    status: int
    model: str


class Viewer:
    """One page of OHIF on one study.

    Args:
        page: a fresh page.
        url: the server's address, such as http://127.0.0.1:8000.

    Attributes:
        refused: addresses beyond the server that the page asked for; they were not let through.
        errors: uncaught errors of the page's scripts.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.refused: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.context.route("**/*", self._only_the_server)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, study: str) -> None:
        """Opens a study and waits until all of its voxels are loaded."""
        page = self.page
        page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        notice = page.get_by_role("button", name="Confirm and Hide")  # shown once
        notice.or_(page.locator("#monailabelServerURL")).first.wait_for()
        if notice.is_visible():
            notice.click()
        page.wait_for_selector("#monailabelServerURL")
        page.wait_for_function(_VOLUME_IS_LOADED)
        page.wait_for_timeout(1000)

    def connect(self, model: str) -> None:
        """Enters the server's address, connects, and chooses a model of the Point Prompts tab."""
        page = self.page
        page.fill("#monailabelServerURL", f"{self.url}/")
        page.click(".settingsTable .actionButton")
        page.wait_for_selector("label.tab-label:has-text('Point Prompts')", state="attached")
        page.wait_for_function("() => !!services.segmentationService.getLabelmapVolume('1')")
        page.wait_for_timeout(1500)  # OHIF sets the colours a second after it is connected
        page.click("label.tab-label:has-text('Point Prompts')")
        self.take(model)

    def take(self, model: str) -> None:
        """Chooses a model of the Point Prompts tab."""
        self._tab.locator("select.selectBox").select_option(model)

    def choose(self, label: str) -> None:
        """Makes a label the current one; "background" takes the points on what does not belong to the structure."""
        self._tab.locator("tr.clickable-row").filter(has=self.page.get_by_text(label, exact=True)).click()
        self.page.wait_for_timeout(300)

    def show(self, ijk: tuple[int, int, int], pane: str) -> tuple[float, float]:
        """Brings a pane to the plane of a voxel; returns the voxel's place on the page in pixels."""
        x, y = self.page.evaluate(_SHOW_VOXEL, [pane, [int(v) for v in ijk]])
        self.page.wait_for_timeout(300)
        return x, y

    def point(self, ijk: tuple[int, int, int], pane: str = "mpr-axial") -> None:
        """Puts a point on a voxel in a pane."""
        x, y = (round(v) for v in self.show(ijk, pane))
        if self.page.evaluate(_ACTIVE_PANE) != pane:
            self.page.mouse.click(x, y)  # the first click into a pane only makes it the active one
            self.page.wait_for_function(f"() => ({_ACTIVE_PANE})() === '{pane}'")
            self.page.wait_for_timeout(300)
        before = self.page.evaluate(_POINTS)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.up()
        self.page.wait_for_function(f"() => ({_POINTS})() === {before + 1}")

    def clear_points(self) -> None:
        """Removes the points of all labels."""
        self._tab.get_by_text("Clear All Points").click()
        self.page.wait_for_timeout(300)

    def hide_studies(self) -> None:
        """Folds the list of studies away, which leaves more room to the panes."""
        self.page.locator("[data-cy='side-panel-header-left']").first.click()
        self.page.wait_for_timeout(1000)

    def wait_until_messages_are_gone(self) -> None:
        """Waits until OHIF shows no message over the panes any more."""
        self.page.wait_for_function("() => !document.body.innerText.includes('MONAI Label - ')")
        self.page.wait_for_timeout(1000)

    def run(self) -> Answer:
        """Presses Run and waits until the mask is painted, or the failure is shown."""
        page = self.page
        page.evaluate(_WATCH_PAINTING)
        with page.expect_response(lambda response: "/infer/" in response.url) as expected:
            self._tab.locator("button[title='Run PointPrompts']").click()
        response: Response = expected.value
        if response.status == 200:
            page.wait_for_function("() => window.painted")
        else:
            page.get_by_text(FAILED).first.wait_for()
        model = urlsplit(response.url).path.rpartition("/")[2]
        return Answer(_params(response.request), response.status, model)

    def labelmap(self) -> tuple[np.ndarray, dict[str, int]]:
        """The browser's own labelmap: (I, J, K) uint8, and label name -> value in it."""
        found = self.page.evaluate(_LABELMAP)
        voxels = np.frombuffer(base64.b64decode(found["voxels"]), np.uint8)
        return voxels.reshape(found["size"][::-1]).transpose(2, 1, 0), found["names"]

    def export(self, name: str) -> None:
        """Makes a DICOM SEG of the labelmap and stores it on the DICOMweb server, as OHIF's export does."""
        self.page.evaluate(_EXPORT, name)

    def show_training(self) -> None:
        """Unfolds the Active Learning tab, which holds the buttons and what is known of the training."""
        if not self.page.locator("input[name='activelearning']").is_checked():
            self.page.click("label.tab-label:has-text('Active Learning')")

    def update_model(self) -> int:
        """Presses Update Model, which asks for every training at once; the status of the answer."""
        self.show_training()
        with self.page.expect_response(lambda response: "/train/" in response.url) as expected:
            self.page.locator("button", has_text="Update Model").click()
        return expected.value.status

    def mask(self, label: str) -> np.ndarray:
        """(I, J, K) bool: one label of the browser's labelmap."""
        voxels, names = self.labelmap()
        return voxels == names[label]

    @property
    def _tab(self):
        title = self.page.locator("label.tab-label", has_text="Point Prompts")
        return self.page.locator(".tab", has=title)

    def _only_the_server(self, route: Route) -> None:
        address = route.request.url
        if address.startswith((f"{self.url}/", "blob:", "data:")):
            route.continue_()
        else:
            self.refused.append(address)
            route.abort()


@contextmanager
def browser_page(chromium: str, width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """Starts a headless Chromium with an empty profile and yields a page; the browser ends with the context."""
    from playwright.sync_api import sync_playwright

    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=flags)
        try:
            context = browser.new_context(viewport={"width": width, "height": height}, service_workers="block")
            yield context.new_page()
        finally:
            browser.close()


def save_picture(page: Page, path: Path) -> None:
    """Writes what the page shows as a PNG of 256 colours."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def _params(request: Request) -> dict[str, Any]:
    """The JSON field `params` of a multipart request."""
    body = (request.post_data_buffer or b"").decode()
    field = re.search(r'name="params"\r\n(?:[^\r\n]+\r\n)*\r\n(.*?)\r\n--', body, re.DOTALL)
    return json.loads(field.group(1)) if field else {}
