"""What MONAI Label's inference route takes for granted, checked before it runs.

The route updates its request with whatever JSON `params` holds, and turns the answer into a DICOM SEG without asking
whether that can be done; either ends in a bare 500. The same endpoint is put in front of its own route
(security/front_routes.py) with a dependency that looks first. And it runs in a worker thread (workers.py): MONAI Label's
own runs in the server's event loop, where the first look at somebody's large scan keeps everybody else waiting. Nothing
else about the route changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from fastapi import BackgroundTasks, Depends, File, Form, HTTPException, UploadFile
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.utils.app import app_instance

from .infers.request import show
from .security.received import ending_of
from .workers import in_worker

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
UPLOADS = (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".ima")
"""Endings of the name of a volume that is sent along with a click."""

_is_inference: ContextVar[bool] = ContextVar("is_inference", default=False)
_wants_dicom_seg: ContextVar[bool] = ContextVar("wants_dicom_seg", default=False)
_session: ContextVar[str] = ContextVar("session", default="")
_sent_file: ContextVar[bool] = ContextVar("sent_file", default=False)


async def answer(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile | None = File(None),
    output: str | None = None,
) -> Any:
    """MONAI Label's endpoint in a worker thread; `look_first` has asked for the role."""
    from monailabel.endpoints.infer import ResultType, remove_file, run_inference

    if output is not None and output not in {kind.value for kind in ResultType}:
        raise HTTPException(422, f"output must be one of {', '.join(ResultType)}, got {show(output)}.")
    wanted = None if output is None else ResultType(output)
    try:
        found = await in_worker(run_inference, background_tasks, model, image, session_id, params, file, None, wanted)
    except BaseException:
        # They follow an answer only, and remove the file that came with the request.
        for task in background_tasks.tasks:
            task.func(*task.args, **task.kwargs)
        raise
    if wanted == ResultType.dicom_seg:
        background_tasks.add_task(remove_file, found.path)  # MONAI Label forgets it
    return found


async def look_first(
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile | None = File(None),
    label: UploadFile | None = File(None),
    output: str | None = None,
    user: User | None = _USER,
) -> None:
    """A coroutine, so that it runs in the request's own task and the endpoint sees what it noted."""
    given = parse_params(params)
    if not (file or image or session_id):
        raise HTTPException(422, "A request needs an image: ?image=ID, ?session_id=ID or the form field file.")
    if label:
        raise HTTPException(422, "The models of this server take clicks and boxes and no label map (form field label).")
    if file and file.filename:
        ending_of(file.filename, UPLOADS, ".nii.gz")
    if session_id:
        check_session(session_id)
    if output == "image" and given.get("result_write_to_file") is False:
        raise HTTPException(422, "output=image needs an answer file, so result_write_to_file must not be false.")
    _is_inference.set(True)
    _wants_dicom_seg.set(output == "dicom_seg")
    _session.set(session_id)
    _sent_file.set(file is not None)


def check_session(session_id: str) -> None:
    """A click on an upload that is gone must not be answered on whatever image has the same name.

    Raises:
        HTTPException: 404 if there is no such session; the text says what a client does then.
    """
    sessions = app_instance().sessions()
    if sessions is None or sessions.get_session(session_id, update_ts=False) is None:
        raise _no_session(session_id)


def _no_session(session_id: str) -> HTTPException:
    return HTTPException(
        404,
        f"The session {session_id[:64]!r} has expired or was never here; send the volume again (PUT /session/) and "
        "repeat the click with the new session_id.",
    )


def check_session_found(request: Mapping[str, Any]) -> None:
    """In the worker thread: whether MONAI Label found the session that the client asked for; it may have ended meanwhile.

    Raises:
        HTTPException: 404 if not. MONAI Label would take the image that the address names beside it.
    """
    if _session.get() and not request.get("session"):
        raise _no_session(_session.get())


def sent_file() -> bool:
    """Whether this request brought its image along, which MONAI Label then stored."""
    return _sent_file.get()


def is_inference() -> bool:
    """Whether this is called on behalf of an inference request."""
    return _is_inference.get()


def parse_params(text: str) -> dict[str, Any]:
    """Reads the form field `params`; empty text is an empty object, as for MONAI Label.

    Raises:
        HTTPException: 400 if it is not JSON, or not an object.
    """
    try:
        params = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise HTTPException(400, f"params must be a JSON object: {error}") from error
    if not isinstance(params, dict):
        raise HTTPException(400, f"params must be a JSON object such as {{}}, got {show(text)}.")
    return params


def check_dicom_seg(request: Mapping[str, Any], datastore: Datastore) -> None:
    """Before an inference: whether its answer can become a DICOM SEG, if the client asks for one.

    Raises:
        HTTPException: 422 if not.
    """
    if not _wants_dicom_seg.get():
        return
    if not isinstance(datastore, DICOMWebDatastore):
        raise HTTPException(422, "output=dicom_seg is not for a non-DICOM datastore; ask for output=image.")
    if request.get("result_write_to_file") is False:
        raise HTTPException(422, "output=dicom_seg needs an answer file, so result_write_to_file must not be false.")
    segments = request.get("label_info")
    if not isinstance(segments, list) or not segments or not all(isinstance(s, dict) for s in segments):
        raise HTTPException(
            422, f'output=dicom_seg needs label_info such as [{{"name": "liver"}}] in params, got {show(segments)}.'
        )


def check_dicom_seg_mask(voxels: int) -> None:
    """After an inference: an empty mask cannot become a DICOM SEG.

    Args:
        voxels: how many voxels the mask holds.

    Raises:
        HTTPException: 422 if it holds none and the client asks for a DICOM SEG.
    """
    if _wants_dicom_seg.get() and voxels == 0:
        raise HTTPException(
            422,
            "The mask is empty and a DICOM SEG needs at least one voxel; "
            "click in the middle of the structure, or ask for output=image.",
        )
