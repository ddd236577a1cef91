"""MONAI Label's way to the DICOMweb server for OHIF, kept to that server's own address.

MONAI Label joins address and path as they come, so that `..` reaches the rest of the server (of an Orthanc its whole
administration), passes a client's token on, waits forever, and stops everybody else's clicks meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import requests
from fastapi import Depends, HTTPException, Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from starlette.concurrency import run_in_threadpool

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_PASSED_ON = ("content-type", "accept")
_GIVEN_BACK = ("content-type", "content-encoding", "content-length", "etag", "last-modified")
_PACS_SECONDS = (10, 300)  # to connect, and without a byte
_PREFIXES = {
    "": "",
    "wado": "MONAI_LABEL_WADO_PREFIX",
    "qido": "MONAI_LABEL_QIDO_PREFIX",
    "stow": "MONAI_LABEL_STOW_PREFIX",
}


def _get_as(kind: str) -> Callable:
    def get(path: str, user: User = _USER) -> Response:
        answer = _forward("GET", kind, path)
        if answer.status_code == 200:
            app_instance().opened.asked(path)
        return answer

    return get


def _post_as(kind: str) -> Callable:
    async def post(request: Request, path: str, user: User = _ANNOTATOR) -> Response:
        headers = {key: value for key, value in request.headers.items() if key in _PASSED_ON}
        return await run_in_threadpool(_forward, "POST", kind, path, headers, await request.body())

    return post


def _forward(method: str, kind: str, path: str, headers: dict | None = None, body: bytes | None = None) -> Response:
    """Asks the DICOMweb server, and only below its own address; a client's token or cookies are not passed on.

    Raises:
        HTTPException: 404 without such a server or for a path that leads elsewhere.
        requests.RequestException: it does not answer.
    """
    server = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise HTTPException(404, "The studies are files and no DICOMweb server, so there is nothing to ask.")
    if not _stays_below(path):
        raise HTTPException(404, "The path leads out of the DICOMweb server's address.")
    kind = "wado" if kind == "qido" and path.endswith("metadata") else kind  # which some versions of OHIF mix up
    prefix = getattr(settings, _PREFIXES[kind]) if kind else ""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if "googleapis.com" in server:
        user, headers = "", {**(headers or {}), "Authorization": f"Bearer {_google_token()}"}
    answer = requests.request(
        method,
        "/".join(part for part in (server, prefix, path) if part),
        auth=(user, password) if user and password else None,
        headers=headers,
        data=body,
        stream=True,
        timeout=_PACS_SECONDS,
        allow_redirects=False,
    )
    kept = {key: value for key, value in answer.headers.items() if key.lower() in _GIVEN_BACK}
    return Response(answer.raw.read(), answer.status_code, kept)


def _stays_below(path: str) -> bool:
    """Whether no part of a path is a parent, however often it is encoded."""
    for _ in range(4):
        if re.search(r"[\\\x00-\x1f?#@]|//", path) or any(part in (".", "..") for part in path.split("/")):
            return False
        decoded = unquote(path)
        if decoded == path:
            return True
        path = decoded
    return False


def _google_token() -> str:
    import google.auth
    import google.auth.transport.requests

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return credentials.token


ROUTES = tuple(
    (f"/proxy/dicom/{kind}{'/' * bool(kind)}{{path:path}}", [method], make(kind))
    for kind in _PREFIXES
    for method, make in (("GET", _get_as), ("POST", _post_as))
)
"""Address, methods and endpoint; the general address first, so that those put in front of it later match before it."""
