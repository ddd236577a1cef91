"""Downloading published weights, only when the user asks: https, bounded, verified, then imported like any other file."""

from __future__ import annotations

import logging
import shutil
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from .checkpoint_files import MAX_BYTES, WeightsError, file_sha256
from .registry import IMPORTED, UNPINNED, WeightEntry, imported, sources
from .weights_files import import_checkpoint

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that could have been asked for."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: PLR0913 - the base class's signature
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    name: str,
    model_dir: Path,
    sha256: str | None = None,
    decoder: Path | None = None,
    timeout: float = TIMEOUT_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Downloads a row of the registry into a temporary folder, verifies it, imports it, and forgets the download.

    Args:
        sha256: digest that the user trusts; else the row's. Where neither is known the digest is logged, to be pinned.
        decoder: for an encoder alone: the file to complete it; default: the imported weights that the row names.
        timeout: seconds without an answer. max_bytes: largest download.

    Returns:
        The imported safetensors file.

    Raises:
        WeightsError: no such row or address, the answer is an error, too large, cut short or of another hash, or the
            file does not fit; nothing is left behind.
        OSError: the folder cannot be written.
    """
    model_dir = Path(model_dir)
    rows = sources(model_dir)
    if name not in rows:
        raise WeightsError(f"there are no weights called {name!r}; there are {', '.join(rows)}")
    entry = rows[name]
    if entry.url is None or len(entry.files) != 1:
        raise WeightsError(f"{name} has no address to be fetched from ({entry.note or 'no note'})")
    _check_address(entry.url)
    decoder = decoder or _decoder_for(entry, model_dir)
    expected = (sha256 or entry.sha256[0]).lower()
    model_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_dir) as folder:
        file = Path(folder) / entry.files[0]
        limit = min(max_bytes, entry.bytes[0]) if entry.bytes else max_bytes
        _download(entry.url, file, limit, timeout)
        got = file_sha256(file)
        if expected == UNPINNED:
            logger.warning(
                "%s is not pinned: the file from %s has sha256 %s. Compare it with what its authors state; to pin it, "
                "fetch with --sha256, or put a row with it in %s.", name, entry.url, got, model_dir / "registry.json",
            )  # fmt: skip
        elif got != expected:
            raise WeightsError(
                f"{entry.url} has sha256 {got}, but {expected} is expected; it was thrown away. Fetch it again; if it "
                "stays so, the published file was replaced or tampered with: ask its authors"
            )
        return import_checkpoint(file, model_dir / IMPORTED, decoder=decoder, name=name, spec=entry.spec, source=entry)


def _decoder_for(entry: WeightEntry, model_dir: Path) -> Path | None:
    """The imported file that completes an encoder; asked for before anything is downloaded."""
    if entry.decoder is None:
        return None
    row = next((row for row in imported(model_dir) if row.name == entry.decoder), None)
    if row is None:
        raise WeightsError(
            f"{entry.name} is an encoder alone: fetch or import {entry.decoder} first, or give its file with --decoder"
        )
    return model_dir / IMPORTED / row.files[0]


def _download(url: str, file: Path, limit: int, timeout: float) -> None:
    opener = urllib.request.build_opener(_CheckedRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "fastsam3d-monailabel"})
    try:
        with opener.open(request, timeout=timeout) as answer, open(file, "wb") as target:
            _copy(answer, target, url, limit)
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsError(
            f"{url} answers {error.code} {error.reason}; get the file with a browser, then: "
            "python apps/fastsam3d weights import FILE"
        ) from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise WeightsError(f"{url} cannot be downloaded: {getattr(error, 'reason', None) or error!r}") from error


def _copy(answer: HTTPResponse, target: BinaryIO, url: str, limit: int) -> None:
    length = answer.headers.get("Content-Length", "")
    announced = int(length) if length.isdecimal() else None
    _check_size(announced or 0, url, limit)
    free = shutil.disk_usage(Path(target.name).parent).free
    if announced and 2 * announced > free:
        raise WeightsError(f"{url} has {announced} bytes, and importing it needs as much again; {free} are free")
    received = 0
    while chunk := answer.read(_CHUNK):
        received += len(chunk)
        _check_size(received, url, limit)
        target.write(chunk)
    if announced is not None and received != announced:
        raise WeightsError(f"{url} was cut short: {received} of {announced} bytes arrived; fetch it again")


def _check_size(size: int, url: str, limit: int) -> None:
    if size > limit:
        raise WeightsError(f"{url} has more than the {limit} bytes that are allowed; it was thrown away")


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname or parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return
    raise WeightsError(f"weights are fetched by https (http from this machine only), got {url!r:.200}")
