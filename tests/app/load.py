"""Clients that click and save labels at once, and know afterwards what must be there."""

from __future__ import annotations

import gzip
import json
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import requests
from requests_toolbelt import MultipartDecoder

from tests.app.serving import Server
from tests.app.volumes import AFFINE, CENTRE_IJK, SHAPE

_SECONDS = 60


def label_map(number: int) -> np.ndarray:
    """(I, J, K) uint16: a block whose place and value tell the number."""
    array = np.zeros(SHAPE, np.uint16)
    i, j, k = number % 40, number % 31, number % 23
    array[i : i + 20, j : j + 17, k : k + 11] = number
    return array


def packed(array: np.ndarray) -> bytes:
    return gzip.compress(nib.Nifti1Image(array, AFFINE).to_bytes(), 1)


def unpacked(content: bytes) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


def click(server: Server, image: str, ijk: Sequence[int]) -> tuple[str, bytes]:
    """One click, answered as Slicer is: version of the weights, and the mask's file."""
    answer = server.infer(image, {"foreground": [[int(v) for v in ijk]], "result_extension": ".nrrd"})
    answer.raise_for_status()
    parts = {
        re.search(rb'name="(\w+)"', part.headers[b"Content-Disposition"])[1]: part.content
        for part in MultipartDecoder.from_response(answer).parts
    }
    return json.loads(parts.pop(b"params"))["weights"]["version"], parts.popitem()[1]


@dataclass
class Image:
    """What is known of one image's final label: the last number that was acknowledged, and the last that was sent."""

    name: str
    acknowledged: int = 0
    sent: int = 0


@dataclass
class Load:
    """Threads that work until the server goes or `end` is called.

    Args:
        server: what they talk to; replace it after a restart.
        images: ids for saving labels, one thread each.
        clicked: ids for clicking, one thread each.
        tag: of the labels.
        excused: statuses of answers that may come while something else is down; what was asked is asked again.
    """

    server: Server
    images: list[Image]
    clicked: list[str]
    tag: str = "final"
    excused: tuple[int, ...] = ()
    wrong: list[str] = field(default_factory=list)
    clicks: int = 0
    saves: int = 0

    def __post_init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()
        self._references: dict[tuple[str, int, str], bytes] = {}
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Starts the threads."""
        self._end.clear()
        work = [(self._save, image) for image in self.images] + [(self._click, name) for name in self.clicked]
        self._threads = [threading.Thread(target=do, args=(what,), daemon=True) for do, what in work]
        for thread in self._threads:
            thread.start()

    def wait(self, saves: int, clicks: int) -> None:
        """Waits until that many more labels were saved and clicks answered."""
        saves, clicks, deadline = self.saves + saves, self.clicks + clicks, time.monotonic() + 2 * _SECONDS
        while (self.saves < saves or self.clicks < clicks) and time.monotonic() < deadline:
            time.sleep(0.02)

    def end(self) -> None:
        """Waits until each has ended its request."""
        self._end.set()
        for thread in self._threads:
            thread.join(_SECONDS)

    def check_labels(self) -> None:
        """Every label is whole, has its own names, and is no older than the last one that was acknowledged.

        Raises:
            AssertionError: it is not.
        """
        for image in self.images:
            if not image.sent:
                continue
            answer = self.server.get(f"/datastore/label?label={image.name}&tag={self.tag}")
            if answer.status_code == 404 and not image.acknowledged:
                continue
            assert answer.status_code == 200, (image, answer.status_code, answer.text[:200])
            array = unpacked(answer.content)
            number = int(array.max())
            assert image.acknowledged <= number <= image.sent, (image, number)
            assert np.array_equal(array, label_map(number)), image
            info = self.server.get(f"/datastore/label/info?label={image.name}&tag={self.tag}").json()
            assert info["label_info"] == [{"name": f"structure {number}", "idx": number}], (image, number, info)

    def _save(self, image: Image) -> None:
        while not self._end.is_set():
            number = image.sent + 1
            info = {"label_info": [{"name": f"structure {number}", "idx": number}]}
            image.sent = number
            try:
                answer = requests.put(
                    f"{self.server.url}/datastore/label",
                    params={"image": image.name, "tag": self.tag},
                    files={"label": ("l.nii.gz", packed(label_map(number))), "params": (None, json.dumps(info))},
                    timeout=_SECONDS,
                )
            except requests.RequestException:
                return
            if answer.status_code == 200:
                image.acknowledged = number
                self.saves += 1
            elif answer.status_code in self.excused:
                time.sleep(0.1)
            else:
                self.wrong.append(f"save {image.name}: {answer.status_code} {answer.text[:200]}")

    def _click(self, name: str) -> None:
        rng = random.Random(name)
        while not self._end.is_set():
            shift = rng.randrange(3)
            try:
                version, content = self.click(name, shift)
            except requests.HTTPError as error:
                if error.response.status_code not in self.excused:
                    self.wrong.append(f"click {name} {shift}: {error.response.status_code} {error.response.text[:200]}")
                time.sleep(0.1)
                continue
            except requests.RequestException:
                return
            with self._lock:
                reference = self._references.setdefault((name, shift, version), content)
                self.clicks += 1
            if reference != content:
                self.wrong.append(f"click {name} {shift}: another answer than before")

    def click(self, name: str, shift: int) -> tuple[str, bytes]:
        """Version and mask of one click; the same for the same arguments, whatever else goes on and however often."""
        return click(self.server, name, [c + 2 * shift for c in CENTRE_IJK])
