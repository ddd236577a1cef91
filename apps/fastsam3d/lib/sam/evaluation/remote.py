"""Any other MONAI Label server as a model: a click goes out over HTTP, a mask comes back.

Models of type deepgrow, deepedit and vista3d are clicked; those of type segmentation answer without prompts.

A scan is sent once for all its structures, as a session of MONAI Label's, and removed before the next one is sent and at
the end; label maps never leave this machine.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests

from ..prompts import Prompts
from ..session import Identity, ImageSession
from ..volume_io import VolumeError, read_volume
from .grids import apart_mm
from .interface import Answer, Ask, ModelError, Wanted

TIMEOUT_S = 600.0
EXPIRY_S = 7200
"""Without a prompt for so long a server removes a scan by itself."""

_CLICKED, _AUTOMATIC = ("deepgrow", "deepedit", "vista3d"), "segmentation"
_UPLOADS = (".nii.gz", ".nii", ".nrrd", ".mha")
_FORMATS = {b"NRRD": ".nrrd", b"\x1f\x8b": ".nii.gz"}


class RemoteModel:
    """One model of a MONAI Label server.

    Args:
        address: `http://host:port#model`.

    Raises:
        ModelError: another form, no server there, or no such interactive model on it.
    """

    boxes = False

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if not parts.netloc or not parts.fragment:
            raise ModelError(f"a server's model is named http://host:port#model, got {address!r}")
        self.name = address
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._model = parts.fragment
        self._http = requests.Session()
        self._sent: tuple[Identity, str] | None = None
        info = self._call("GET", "/info/").json()
        models = info.get("models") or {}
        if self._model not in models:
            raise ModelError(f"{self._base} offers no model {self._model!r}; it offers {', '.join(models) or 'none'}")
        described = models[self._model]
        self._type = str(described.get("type"))
        self._labels = _labels(described.get("labels"))
        if self._type not in (*_CLICKED, _AUTOMATIC):
            kinds = ", ".join((*_CLICKED, _AUTOMATIC))
            raise ModelError(f"{address} is of type {self._type!r}; only {kinds} can be evaluated")
        self.automatic = self._type == _AUTOMATIC
        self.clicks = not self.automatic
        self.version = f"{info.get('name')} {info.get('version')} {described.get('version', '')}".strip()

    @contextmanager
    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> Iterator[Ask]:
        """See `Model.open`: sends the scan, unless it was sent for the structure before."""
        if self._sent is None or self._sent[0] != session.identity:
            self.close()
            self._sent = session.identity, self._send(path)
        label, value = answered_as(self._type, self._labels, wanted.name, self.name)
        identifier = self._sent[1]
        yield lambda prompts: self._ask(session, identifier, prompts, label, value)

    def close(self) -> None:
        """Removes the scan that was sent last from the server."""
        if self._sent is not None:
            identifier, self._sent = self._sent[1], None
            with suppress(requests.RequestException):  # the server forgets it by itself after EXPIRY_S
                self._http.delete(f"{self._base}/session/{identifier}", timeout=TIMEOUT_S)

    def _send(self, path: Path) -> str:
        if not path.name.lower().endswith(_UPLOADS):
            raise ModelError(f"{path.name}: only {', '.join(_UPLOADS)} can be sent to a server; convert it first")
        with open(path, "rb") as file:
            sent = self._call("PUT", "/session/", params={"expiry": EXPIRY_S}, files={"files": (path.name, file)})
        return str(sent.json().get("session_id"))

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """A server has none to offer."""
        return None

    def _ask(self, session: ImageSession, identifier: str, prompts: Prompts, label: str, value: int | None) -> Answer:
        begin = time.perf_counter()
        answer = self._call(
            "POST",
            f"/infer/{self._model}",
            params={"session_id": identifier, "output": "image"},
            data={"params": json.dumps(clicks_as_request(self._type, label, prompts))},
        )
        labels = _label_map(answer.content, session)
        return Answer(labels > 0 if value is None else labels == value, time.perf_counter() - begin)

    def _call(self, method: str, path: str, **given: Any) -> requests.Response:
        try:
            answer = self._http.request(method, self._base + path, timeout=TIMEOUT_S, **given)
        except requests.RequestException as error:
            raise ModelError(f"{self._base} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            detail = re.sub(r"\s+", " ", answer.text)[:200]
            raise ModelError(f"{self._base}{path} answered {answer.status_code}: {detail}")
        return answer


def clicks_as_request(kind: str, label: str, prompts: Prompts) -> Mapping[str, Any]:
    """Clicks in the dialect of a model's type, as OHIF and Slicer send them: [i, j, k] of the stored image.

    Args:
        kind: one of deepgrow, deepedit, vista3d; segmentation takes no clicks.
        label: the structure's among deepedit's labels.
    """
    points = [list(click.ijk) for click in prompts.clicks]
    signs = [int(click.positive) for click in prompts.clicks]
    inside = [p for p, sign in zip(points, signs) if sign]
    outside = [p for p, sign in zip(points, signs) if not sign]
    common = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    if kind == _AUTOMATIC:
        return common
    if kind == "vista3d":
        return {"points": points, "point_labels": signs, "label_prompt": [], **common}
    if kind == "deepedit":
        return {"label": label, label: inside, "background": outside, **common}
    return {"foreground": inside, "background": outside, **common}


def answered_as(kind: str, labels: Mapping[str, int | None], name: str, address: str) -> tuple[str, int | None]:
    """Which of a model's labels stands for a structure, and its value in the answers; None where any value does.

    deepedit is asked for the label of the structure's name, else for its first that is not background. The answers of
    deepgrow and vista3d hold the clicked structure alone.

    Raises:
        ModelError: a model that takes no clicks has no label of that name, or does not say its value.
    """
    objects = [label for label in labels if label != "background"]
    same = [label for label in objects if label.casefold() == name.casefold()]
    if kind == _AUTOMATIC:
        if not same or labels[same[0]] is None:
            raise ModelError(
                f"{address} must say the value of a label {name!r}; its labels are {', '.join(objects) or 'none'}. "
                "--names gives structures the names that the server has"
            )
        return same[0], labels[same[0]]
    if kind != "deepedit":
        return "", None
    label = next(iter(same + objects), "foreground")
    return label, labels.get(label)


def _labels(described: Any) -> dict[str, int | None]:
    """A model's labels {name: value}; a list of names says no values."""
    if isinstance(described, Mapping):
        return {str(k): v if isinstance(v, int) and not isinstance(v, bool) else None for k, v in described.items()}
    return {str(label): None for label in described or ()}


def _label_map(content: bytes, session: ImageSession) -> np.ndarray:
    """(I, J, K) numbers of an answer's file, on the scan's grid."""
    extension = next((e for start, e in _FORMATS.items() if content.startswith(start)), ".nii")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mask{extension}"
        path.write_bytes(content)
        try:
            answer = read_volume(path)
        except VolumeError as error:
            raise ModelError(f"the server's answer is no mask: {error}") from error
    fault = apart_mm(session.volume.grid, answer.grid)
    if fault:
        raise ModelError(f"the server's mask is not on the scan's grid: {fault}")
    return answer.array
