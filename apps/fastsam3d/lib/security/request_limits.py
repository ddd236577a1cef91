"""What a request may be before anything reads it: size, origin, and bytes that no path holds. Plain ASGI."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse

logger = logging.getLogger(__name__)

SMALL_BYTES = 16 * 2**20
"""The largest body of a request that sends no file."""
_SPARE_BYTES = 2**28
_UPLOADS = ("/datastore", "/session", "/infer", "/model", "/proxy")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestLimits:
    """ASGI middleware in front of everything.

    - A body that says it is larger than allowed, or turns out so while it is read, is answered with 413; one for which the
      disk has no room with 507.
    - A request that changes something and comes from a page of another site (its Origin is neither the server's own name
      nor allowed nor this machine) is answered with 403: a browser would send it although nobody asked it to.
    - A NUL in the address is answered with 400.

    Args:
        app: what to call.
        max_upload: the most bytes of a body on routes that take files.
        origins: allowed besides, such as https://viewer.example.org (MONAI_LABEL_CORS_ORIGINS).
        prefix: that all routes begin with (MONAI_LABEL_API_STR).
    """

    def __init__(self, app: Callable, max_upload: int, origins: tuple[str, ...] = (), prefix: str = "") -> None:
        self.app = app
        self.max_upload = max_upload
        self.origins = tuple(origin.rstrip("/").lower() for origin in origins)
        self.prefix = prefix

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict]], send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        limit = self._limit(scope)
        refusal = self._refusal(scope, headers, limit)
        if refusal is not None:
            status, text = refusal
            logger.info("%s %s -> %d: %s", scope["method"], repr(scope["path"][:200]), status, text)
            await JSONResponse({"detail": text}, status, {"Connection": "close"})(scope, receive, send)
            return
        await self.app(scope, _counting(receive, limit), send)

    def _limit(self, scope: dict[str, Any]) -> int:
        path = scope["path"].removeprefix(self.prefix)
        return max(self.max_upload, SMALL_BYTES) if path.startswith(_UPLOADS) else SMALL_BYTES

    def _refusal(self, scope: dict[str, Any], headers: dict[str, str], limit: int) -> tuple[int, str] | None:
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            return 400, "An address may hold no NUL."
        if scope["method"] not in _SAFE_METHODS and not self._is_own(headers.get("origin"), headers.get("host", "")):
            return (
                403,
                f"Pages of {headers['origin'][:200]} may not change anything here; see MONAI_LABEL_CORS_ORIGINS.",
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, f"Content-Length must be a number, got {length[:20]!r}."
        if int(length) > limit:
            return 413, _too_large(limit)
        if int(length) > SMALL_BYTES and int(length) + _SPARE_BYTES > shutil.disk_usage(tempfile.gettempdir()).free:
            return 507, "The server's disk has no room for this file; tell who runs it."
        return None

    def _is_own(self, origin: str | None, host: str) -> bool:
        if origin is None or origin.rstrip("/").lower() in self.origins:
            return True
        try:
            parts = urlsplit(origin)
            return parts.netloc.lower() == host.lower() or parts.hostname in _LOOPBACK
        except ValueError:
            return False


def _counting(receive: Callable[[], Awaitable[dict]], limit: int) -> Callable[[], Awaitable[dict]]:
    """A `receive` that stops a body at the limit, whatever its Content-Length said."""
    count = 0

    async def counted() -> dict:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


def _too_large(limit: int) -> str:
    return f"A request may have {limit / 2**20:.0f} MiB here; larger files go into the studies themselves (--conf upload_gb)."
