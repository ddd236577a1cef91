"""Requests and volumes that nobody would send, from one seed: what the fuzz test and `scripts/fuzz.py` send.

Half of the requests are drawn from the server's own description (openapi.json) with hostile values for every parameter;
the other half are clicks, uploads and labels with volumes that are wrong in one way or another.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from lib.sam.intensity import WINDOWS

from tests.app.volumes import AFFINE, CENTRE_IJK, SHAPE

STRINGS = (
    "", "case1", "case2", "nothing", "..", "../..", "../../etc/passwd", "/etc/passwd", "/dev/zero", "%2e%2e%2f", "..\\..", "a/b",
    "a\x00b", "a\nb", "\ud800", "é", "日本", "x" * 300, "x" * 5000, "final", "original", "null", "NaN", "-1", "1e999", "true",
    "[]", "{}", "' OR 1=1 --", "${jndi:x}", "first", "random", "fastsam3d", "dice", "SHA256:00", "json", "image", "all", "dicom_seg",
)  # fmt: skip
NUMBERS = (0, 1, -1, 5, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e300, float("nan"), float("inf"), 47, 79)
_MODELS = ("fastsam3d",) * 6 + ("repmedsam", "repmedsam_2d", "fastsam3d_auto")
_SKIPPED = {("post", "/train/{model}"), ("post", "/batch/infer/{model}")}  # a known name starts a process of minutes
_TIMEOUT = 120


class Sent(NamedTuple):
    """One request: the arguments of requests.request without the server's address."""

    method: str
    path: str
    options: dict[str, Any]

    def __str__(self) -> str:
        shown = {k: v for k, v in self.options.items() if k != "timeout"}
        return f"{self.method} {self.path[:200]!r} {str(shown)[:600]}"


class Fuzzer:
    """A stream of requests.

    Args:
        api: the server's openapi.json.
        seed: the same seed gives the same requests.
    """

    def __init__(self, api: dict[str, Any], seed: int) -> None:
        self.rng = random.Random(seed)
        self.operations = [
            (method, path, description)
            for path, methods in sorted(api["paths"].items())
            for method, description in sorted(methods.items())
            if (method, path) not in _SKIPPED
        ]
        self.volumes = list(_volumes())

    def next(self) -> Sent:
        """The next request."""
        kinds = (self._described, self._click, self._good_click, self._label, self._upload)
        made = self.rng.choices(kinds, (10, 8, 1, 2, 2))[0]()
        return made._replace(options={**made.options, "timeout": _TIMEOUT, "allow_redirects": False})

    def _described(self) -> Sent:
        method, path, description = self.rng.choice(self.operations)
        query = {}
        for parameter in description.get("parameters", []):
            if parameter["in"] == "path":
                path = path.replace("{" + parameter["name"] + "}", _escaped(self._text()))
            elif self.rng.random() < 0.8:
                query[parameter["name"]] = _sendable(self._text())
        content = description.get("requestBody", {}).get("content", {})
        options: dict[str, Any] = {"params": query}
        if "multipart/form-data" in content or "application/x-www-form-urlencoded" in content:
            names = self.rng.sample(["params", "file", "files", "label", "info", "wsi", "username", "x"], 3)
            options["files"] = {name: self._part(name) for name in names}
        elif content:
            options["data"] = self._json()
            options["headers"] = {"Content-Type": "application/json"}
        if self.rng.random() < 0.05:
            options["headers"] = {
                "Content-Type": self.rng.choice(["multipart/form-data", "text/plain", "x/y; boundary="])
            }
        return Sent(method.upper(), path.replace("{path}", "x"), options)

    def _click(self) -> Sent:
        image = self.rng.choice(["case1", "case2", "odd", self._text()])
        model = self.rng.choice(_MODELS)
        params = self._prompts(of_slices=model.startswith("repmedsam"))
        options = {"params": {"image": _sendable(image), "output": self.rng.choice(["json", "image", "all", "", "x"])}}
        if not options["params"]["output"]:
            del options["params"]["output"]
        files: dict[str, Any] = {"params": (None, params)}
        if self.rng.random() < 0.4:
            files["file"] = self.rng.choice(self.volumes)
        return Sent("POST", f"/infer/{model}", {**options, "files": files})

    def _good_click(self) -> Sent:
        """What a user asks, so that hostile requests meet a server that works."""
        model = self.rng.choice(_MODELS[:-1])
        inside = [[self.rng.randrange(n // 4, 3 * n // 4) for n in SHAPE] for _ in range(self.rng.randrange(1, 4))]
        params: dict[str, Any] = {"foreground": inside[:1], "background": inside[1:]}
        if model != _MODELS[0]:
            params = {"foreground": inside[:1], "slice": inside[0][2], "extent": 3, "window": self.rng.choice(WINDOWS)}
        query = {"image": self.rng.choice(["case1", "case2"]), "output": self.rng.choice(["json", "image", "all"])}
        return Sent("POST", f"/infer/{model}", {"params": query, "files": {"params": (None, json.dumps(params))}})

    def warm_up(self, clicks: int) -> Iterator[Sent]:
        """What brings a fresh server into the state of one in use: every kind of volume once, and clicks."""
        for volume in self.volumes:
            yield Sent("PUT", "/session/", {"files": {"files": volume}, "timeout": _TIMEOUT})
        for _ in range(clicks):
            made = self._good_click()
            yield made._replace(options={**made.options, "timeout": _TIMEOUT})

    def _label(self) -> Sent:
        query = {"image": self.rng.choice(["case1", "case2", _sendable(self._text())]), "tag": _sendable(self._text())}
        files = {"label": self.rng.choice(self.volumes), "params": (None, self._json())}
        return Sent("PUT", "/datastore/label", {"params": query, "files": files})

    def _upload(self) -> Sent:
        volume = self.rng.choice(self.volumes)
        if self.rng.random() < 0.5:
            query = {
                "uncompress": self.rng.choice(["true", "false"]),
                "expiry": self.rng.choice([0, -5, 10**20, "x", 60]),
            }
            return Sent("PUT", "/session/", {"params": query, "files": {"files": volume}})
        query = {"image": self.rng.choice(["odd", _sendable(self._text())])}
        return Sent(
            "PUT", "/datastore/image", {"params": query, "files": {"file": volume, "params": (None, self._json())}}
        )

    def _text(self) -> str:
        if self.rng.random() < 0.15:
            return "".join(
                chr(self.rng.choice([self.rng.randrange(1, 128), self.rng.randrange(128, 0x3000)])) for _ in range(9)
            )
        return self.rng.choice(STRINGS)

    def _part(self, name: str) -> Any:
        if name in ("file", "files", "label"):
            return self.rng.choice(self.volumes)
        return None, self._json()

    def _json(self) -> str:
        if self.rng.random() < 0.1:
            return self.rng.choice(
                ["", "{", "[" * 3000, "nul", '"\\ud800"', "9" * 5000, '{"a": 1e999}', "\x00", "{}" * 9]
            )
        keys = ("image", "model", "name", "label_info", "label_tag", "model_filename", "strategy", "roi", "a", "")
        value = {self.rng.choice(keys): self._value(3) for _ in range(self.rng.randrange(4))}
        return json.dumps(value if self.rng.random() < 0.9 else self._value(2))

    def _value(self, depth: int) -> Any:
        kind = self.rng.randrange(6 if depth else 4)
        if kind == 4:
            return [self._value(depth - 1) for _ in range(self.rng.randrange(4))]
        if kind == 5:
            return {self._text(): self._value(depth - 1) for _ in range(self.rng.randrange(3))}
        return (
            self._text(),
            self.rng.choice(NUMBERS),
            self.rng.choice([None, True, False]),
            self.rng.randrange(-3, 99),
        )[kind]

    def _slice_options(self) -> dict[str, Any]:
        """Options of the models for slices, in half of the cases such as a client sends."""
        rng = self.rng
        sensible = {
            "window": lambda: rng.choice(WINDOWS),
            "extent": lambda: rng.randrange(1, 6),
            "slice": lambda: rng.randrange(SHAPE[2]),
            "points": lambda: rng.choice(["extreme", "clicks"]),
        }
        given: dict[str, Any] = {}
        for key, make in sensible.items():
            hostile = rng.choice([self._value(1), rng.choice(NUMBERS), "7", SHAPE[2], [], {}])
            if rng.random() < 0.6:
                given[key] = make() if rng.random() < 0.6 else hostile
        return given

    def _prompts(self, of_slices: bool = False) -> str:
        rng = self.rng
        if rng.random() < 0.1:
            return self._json()

        def point():
            if rng.random() < 0.7:
                return [rng.randrange(n) for n in SHAPE]
            return rng.choice(
                [[rng.choice(NUMBERS) for _ in range(3)], list(CENTRE_IJK)[:2], [], "1,2,3", None, [[1]] * 3]
            )

        given: dict[str, Any] = {}
        for key in ("foreground", "background", "liver"):
            if rng.random() < 0.5:
                given[key] = [point() for _ in range(rng.choice([0, 1, 1, 2, 5, 250]))]
        if rng.random() < 0.3:
            given["roi"] = rng.choice(
                [[rng.randrange(-5, 90) for _ in range(6)], [1, 2], "x", [rng.choice(NUMBERS) for _ in "abcdef"]]
            )
        if rng.random() < 0.3:
            given["points"], given["point_labels"] = [point(), point()], rng.choice([[1, 0], [1], [2, 3], "x"])
        for key in ("label", "result_extension", "result_dtype", "image", "model", "result_write_to_file", "save_label", "label_tag",
                    "window", "extent", "slice", "session"):  # fmt: skip
            if rng.random() < 0.06:
                given[key] = self._value(2)
        if of_slices:
            given = {"extent": 3, **given, **self._slice_options()}
        return json.dumps(given)


def _escaped(text: str) -> str:
    from urllib.parse import quote

    return quote(_sendable(text), safe="./\\%") or "x"


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _nifti(array: np.ndarray, affine: np.ndarray = AFFINE, **header: Any) -> bytes:
    image = nib.Nifti1Image(array, affine)
    raw = bytearray(image.to_bytes())
    for offset, value in header.get("patch", ()):
        raw[offset : offset + len(value)] = value
    return bytes(raw)


def _nrrd(sizes: str, kind: str = "short", data: bytes = b"", encoding: str = "raw", endian: str = "little") -> bytes:
    text = f"NRRD0004\ntype: {kind}\ndimension: {len(sizes.split())}\nsizes: {sizes}\nencoding: {encoding}\nendian: {endian}\n\n"
    return text.encode() + data


def _volumes() -> list[tuple[str, bytes]]:
    """File name and content of volumes that are wrong, odd or just small."""
    rng = np.random.default_rng(0)
    good = rng.integers(-100, 200, (12, 10, 8)).astype(np.int16)
    floats = good.astype(np.float32)
    shear, tiny, flip = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    shear[0, 1], tiny[:3, :3], flip[:3, 0] = 3.0, AFFINE[:3, :3] * 1e-9, -AFFINE[:3, 0]
    odd = {
        "good": _nifti(good),
        "label": _nifti(np.zeros(SHAPE, np.uint8)),
        "nan": _nifti(np.full((5, 5, 5), np.nan, np.float32)),
        "inf": _nifti(np.where(good > 0, np.inf, floats).astype(np.float32)),
        "constant": _nifti(np.full((9, 9, 9), 3, np.int16)),
        "one voxel": _nifti(np.ones((1, 1, 1), np.int16)),
        "one slice": _nifti(good[:, :, :1]),
        "4D": _nifti(np.zeros((4, 4, 4, 3), np.int16)),
        "rgb": _nifti(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "complex": _nifti(np.zeros((4, 4, 4), np.complex64)),
        "sheared": _nifti(good, shear),
        "tiny": _nifti(good, tiny),
        "huge spacing": _nifti(good, AFFINE * 1e6),
        "negative determinant": _nifti(good, flip),
        "singular": _nifti(good, patch=[(252, bytes(2)), (312, bytes(16))]),
        "nan affine": _nifti(good, AFFINE, patch=[(280, struct.pack("<f", float("nan")))]),
        "big-endian": nib.Nifti1Image(good, AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
        "lying sizes": _nifti(good, patch=[(40, struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))]),
        "negative sizes": _nifti(good, patch=[(40, struct.pack("<8h", 3, -5, 4, 4, 1, 1, 1, 1))]),
        "bad offset": _nifti(good, patch=[(108, struct.pack("<f", 1e30))]),
        "bad type": _nifti(good, patch=[(70, struct.pack("<h", 12345))]),
        "bad dim": _nifti(good, patch=[(40, struct.pack("<h", 77))]),
        "empty": b"",
        "text": b"no image",
    }
    files = [(f"{name}.nii", content) for name, content in odd.items()]
    files += [(f"{name}.nii.gz", gzip.compress(content, 1)) for name, content in odd.items()]
    files += [("cut.nii.gz", gzip.compress(odd["good"])[:300]), ("tail.nii.gz", gzip.compress(odd["good"]) + b"tail")]
    files += [("bomb.nii.gz", gzip.compress(odd["lying sizes"] + bytes(8 << 20), 9))]
    for number in range(12):  # bytes changed anywhere in the header
        raw = bytearray(odd["good"])
        for _ in range(6):
            raw[rng.integers(0, 348)] = rng.integers(0, 256)
        files.append((f"damaged {number}.nii", bytes(raw)))
    files += [
        ("ok.nrrd", _nrrd("4 4 4", data=bytes(128))), ("big-endian.nrrd", _nrrd("4 4 4", data=bytes(128), endian="big")),
        ("huge.nrrd", _nrrd("32767 32767 32767")), ("zero.nrrd", _nrrd("0 4 4")), ("negative.nrrd", _nrrd("-4 4 4")),
        ("rgb.nrrd", _nrrd("3 4 4 4", "uchar", bytes(192))), ("block.nrrd", _nrrd("4 4 4", "block")),
        ("gz.nrrd", _nrrd("4 4 4", data=gzip.compress(bytes(128)), encoding="gzip")),
        ("elsewhere.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\ndata file: /etc/passwd\nencoding: raw\n\n"),
        ("elsewhere.mha", b"NDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = /etc/passwd\n"),
        ("ok.mha", b"NDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n" + bytes(128)),
        ("lists.mha", b"NDims = 3\nDimSize = " + b"4 " * 9000 + b"\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"),
        ("x.dcm", bytes(128) + b"DICM" + b"\xff" * 64), ("x.exe", b"MZ"), ("..", b"x"), ("", b"x"), ("../x.nii.gz", b"x"),
        ("x" * 300 + ".nii", odd["good"]), ("a\nb.nii", odd["good"]), ("archive.zip", _zip()), ("w.pt", b"\x80\x04."),
    ]  # fmt: skip
    return files


def _zip() -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside", b"x")
        archive.writestr("zeros", bytes(1 << 20))
    return made.getvalue()
