"""Errors as HTTP answers: what a client did wrong gets a 4xx with the reason, as JSON."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import tempfile

import requests
import torch
from fastapi import HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from retrying import RetryError
from starlette.exceptions import HTTPException as StarletteHTTPException

from .infers.request import RequestError
from .sam.prompts import MAX_CLICKS, PromptError
from .sam.volume_io import NoMemoryError, TooLargeError, VolumeError
from .sam.weights import WeightsError
from .security.names import UnsafeNameError

logger = logging.getLogger(__name__)

_STATUS = (
    (ImageNotFoundException, 404),
    (LabelNotFoundException, 404),
    (MONAILabelException, 400),
    (json.JSONDecodeError, 400),
    (RequestError, 422),
    (PromptError, 422),
    (UnsafeNameError, 422),
    (TooLargeError, 413),
    (NoMemoryError, 503),
    (VolumeError, 422),
    (requests.RequestException, 502),
    (RetryError, 502),
    (WeightsError, 503),
    (MemoryError, 503),
    (torch.OutOfMemoryError, 503),
)
_SHOWN = 200
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXPECTED = tuple(error for error, _ in _STATUS)


def as_http(error: Exception, *folders: str) -> HTTPException:
    """Turns one of the `EXPECTED` errors into the answer a client gets; others are a server's fault and pass as 500.

    Args:
        error: what happened.
        folders: of this server, cut from the message: where its files lie is not for clients to know.
    """
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    text = str(getattr(error, "msg", "") or error)
    if isinstance(error, json.JSONDecodeError):
        text = f"params must be a JSON object: {error}"
    elif isinstance(error, (requests.RequestException, RetryError)):
        text = "The DICOMweb server does not answer or refuses; its answer is in this server's log."
    elif isinstance(error, torch.OutOfMemoryError):
        text = (
            "The GPU has not enough memory for this request; end what else uses it, "
            f"or start the server with --conf device cpu ({' '.join(text.split())[:_SHOWN]})."
        )
    elif isinstance(error, MemoryError):
        text = f"There is not enough memory for this request; close other images or lower --conf cache_gb ({text})."
    folders = (*folders, tempfile.gettempdir())
    for folder in sorted({f for given in folders for f in (given, os.path.realpath(given))}, key=len, reverse=True):
        text = text.replace(folder.rstrip(os.sep) + os.sep, "")
    return HTTPException(status_code=status, detail=text)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = as_http(error)
    logger.info("%s %s -> %d: %s", request.method, request.url.path, answer.status_code, answer.detail)
    return JSONResponse({"detail": answer.detail}, status_code=answer.status_code)


async def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    """As FastAPI's, without what the client sent: it may hold what no JSON can (half a surrogate pair, NaN)."""
    detail = [{key: found[key] for key in ("type", "loc", "msg")} for found in error.errors()]
    return Response(json.dumps({"detail": detail}, default=str), 422, media_type="application/json")


async def _answer_full_disk(request: Request, error: OSError) -> JSONResponse:
    """Says that a disk is full; passes on every other OSError, which is a server's fault."""
    if error.errno not in _NO_ROOM:
        raise error
    logger.error("%s %s: %s", request.method, request.url.path, error.strerror)
    text = f"The server could not store this, and kept what it had: {error.strerror}. Tell who runs it."
    return JSONResponse({"detail": text}, status_code=507)


async def _answer_unparsed(request: Request, error: StarletteHTTPException) -> Response:
    """Says why a form was not even parsed: too long a field, no room for its files; passes on everything else."""
    cause = error.__cause__  # FastAPI makes a 400 without a reason of it
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return await _answer_full_disk(request, cause)
    if error.status_code == 400 and str(error.detail).startswith("Part exceeded maximum size"):
        error.detail = f"{error.detail} A request may hold at most {MAX_CLICKS} clicks."
    return await http_exception_handler(request, error)


def install_handlers() -> None:
    """Makes MONAI Label's own web application answer the expected errors as such, instead of with a bare 500.

    Does nothing where that application was not started (a training process, a script). Starlette builds its chain of
    handlers at the first event, which has passed when an app is constructed, so it is told to build it again.
    """
    server = sys.modules.get("monailabel.app")
    if server is None:
        return
    for kind in EXPECTED:
        server.app.add_exception_handler(kind, _answer)
    server.app.add_exception_handler(RequestValidationError, _answer_invalid)
    server.app.add_exception_handler(OSError, _answer_full_disk)
    server.app.add_exception_handler(StarletteHTTPException, _answer_unparsed)
    server.app.middleware_stack = None
