"""From what a request calls its image to a path that may be read."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import requests
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from retrying import RetryError

from .security.names import is_uid
from .uploads import UploadSessions

logger = logging.getLogger(__name__)

_NO_SUCH_SERIES = (400, 404, 410)
_UPLOAD_NAME = re.compile(r"tmp[a-z0-9_]{8}(\.[A-Za-z0-9]+){0,3}")
_SHOWN = 80


def resolve_image(
    request: Mapping[str, Any], datastore: Datastore, sessions: UploadSessions | None, uploaded: bool
) -> tuple[str, str]:
    """Finds the image of an inference request: an id of the datastore, a session's upload, or a file sent along.

    MONAI Label takes any path of the server as an image, and lets `params` overwrite the one of the address. Here a
    path is taken only from where MONAI Label itself has put an upload.

    Args:
        request: holds `image`, and `session` if the client has one.
        datastore: knows the images of the studies.
        sessions: knows the uploads; None if sessions are switched off.
        uploaded: whether this request brought a file along.

    Returns:
        The image's id and the path to read.

    Raises:
        HTTPException: 404 if there is no such image, 502 if the DICOMweb server does not give it.
    """
    image = request.get("image")
    if not isinstance(image, str) or not image or "\0" in image:
        raise HTTPException(422, f"image must be the id of an image, got {repr(image)[:_SHOWN]}.")
    if os.path.isabs(image):
        if os.path.exists(image) and (
            sessions is not None and sessions.contains(image) or uploaded and _is_upload(image)
        ):
            return image, os.path.realpath(image)
        raise _not_found(image)
    path = _series(image, datastore) if isinstance(datastore, DICOMWebDatastore) else datastore.get_image_uri(image)
    if not path or not os.path.exists(path):
        raise _not_found(image)
    return image, path


def _series(image: str, datastore: DICOMWebDatastore) -> str:
    """Path of a DICOM series in the datastore's cache, fetched first if need be."""
    if not is_uid(image):
        raise _not_found(image)
    try:
        path = datastore.get_image_uri(image)
        kept = datastore.get_image_uri(image)
    except LookupError as error:
        logger.info("No series %s: %s", image, error)
        raise _not_found(image) from error
    except (requests.HTTPError, RetryError) as error:
        response = error.response if isinstance(error, requests.HTTPError) else error.last_attempt.value
        logger.info("No series %s: %s", image, error)
        if response.status_code in _NO_SUCH_SERIES:
            raise _not_found(image) from error
        answer = f"{response.status_code} {response.reason or ''}".rstrip()
        raise HTTPException(502, f"The DICOMweb server refuses the series or fails: it answers {answer}.") from error
    except requests.RequestException as error:
        raise HTTPException(502, f"The DICOMweb server does not answer: {error}") from error
    if path != kept and os.path.dirname(path) == os.path.realpath(tempfile.gettempdir()):
        # The first answer is a temporary conversion of which the cache holds a copy; nobody else removes it.
        os.unlink(path)
    return kept


def _is_upload(path: str) -> bool:
    """Whether a path is a file as MONAI Label stores those that come with a request (form field `file`)."""
    folder, name = os.path.split(path)
    return (
        folder == tempfile.gettempdir()
        and bool(_UPLOAD_NAME.fullmatch(name))
        and not os.path.islink(path)
        and os.path.isfile(path)
    )


def _not_found(image: str) -> HTTPException:
    return HTTPException(404, f"There is no image {image[:_SHOWN]!r}; GET /datastore/?output=all lists the images.")
