"""Checks in front of MONAI Label's other routes, and the few that this app answers itself or not at all.

A check asks for the role of its route, so that who has none learns nothing from it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Body, Depends, HTTPException
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints import activelearning, batch_infer, datastore, info, logs, ohif, scoring, session, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask

from .. import infer_route
from ..workers import in_worker
from . import dicom_proxy, upload_routes
from .names import check_tag, is_file_name

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]{1,128}")
_GPUS = re.compile(r"all|[0-9]{1,4}(,[0-9]{1,4})*")
_SHOWN = 80


def install_routes() -> None:
    """Puts these routes before MONAI Label's; does nothing where its server was not started."""
    server = sys.modules.get("monailabel.app")
    if server is None:
        return
    for path, methods, endpoint in (*upload_routes.ROUTES, *dicom_proxy.ROUTES, *_own_routes()):
        _put_in_front(server.app, path, methods, endpoint)
    for path, methods, endpoint, check in _checked_routes():
        _put_in_front(server.app, path, methods, endpoint, [Depends(check)])


def _put_in_front(app: Any, path: str, methods: Sequence[str], endpoint: Callable, checks: Sequence[Any] = ()) -> None:
    app.add_api_route(
        settings.MONAI_LABEL_API_STR + path,
        endpoint,
        methods=list(methods),
        dependencies=list(checks),
        include_in_schema=False,  # the route behind it describes both
    )
    routes = app.router.routes
    routes.insert(0, routes.pop())  # the first route that matches answers


def _own_routes() -> list[tuple[str, list[str], Callable]]:
    return [
        ("/reload", ["POST"], refuse_reload),
        ("/infer/wsi/{model}", ["POST"], refuse_wsi),
        ("/infer/wsi_v2/{model}", ["POST"], refuse_wsi),
        ("/datastore/dataset", ["GET"], download_dataset),
        ("/info/", ["GET"], app_info),
        ("/activelearning/{strategy}", ["POST"], next_sample),
    ]


def _checked_routes() -> list[tuple[str, list[str], Callable, Callable]]:
    return [
        ("/infer/{model}", ["POST"], infer_route.answer, infer_route.look_first),
        ("/datastore/image", ["HEAD"], datastore.api_check_image, check_sum_is_known),
        ("/logs/gpu", ["GET"], logs.gpu_info, check_gpu_program),
        ("/session/{session_id}", ["GET"], session.api_get_session, check_session),
        ("/session/{session_id}", ["DELETE"], session.api_remove_session, check_session),
        ("/ohif/{path:path}", ["GET"], ohif.api_get_ohif, check_ohif_path),
        ("/train/", ["POST"], train.api_run, check_all_training),
        ("/train/{model}", ["POST"], train.api_run_model, check_training),
        ("/scoring/", ["POST"], scoring.api_run, check_all_scoring),
        ("/scoring/{method}", ["POST"], scoring.api_run_method, check_scoring),
        ("/batch/infer/{model}", ["POST"], batch_infer.api_run, check_batch),
    ]


def refuse_reload(user: User = _ADMIN) -> None:
    """POST /reload makes MONAI Label forget the running app, for everybody, without asking who calls."""
    raise HTTPException(403, "The app is reloaded by starting the server again.")


def refuse_wsi(model: str, user: User = _USER) -> None:
    """MONAI Label's whole-slide inference opens any path of the server."""
    raise HTTPException(404, "There are no models for whole-slide images here; POST /infer/{model} takes volumes.")


def download_dataset(limit_cases: int | None = None, user: User = _ANNOTATOR) -> FileResponse:
    """GET /datastore/dataset: the archive is removed when it is sent, which MONAI Label forgets."""
    store = app_instance().datastore()
    if not store.datalist():
        raise HTTPException(404, "No image has a final label yet, so there is nothing to download.")
    path = store.get_dataset_archive(limit_cases)
    return FileResponse(
        path, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(os.unlink, path)
    )


def app_info(user: User = _USER) -> dict[str, Any]:
    """GET /info/, outside of the event loop: a DICOMweb server may be asked."""
    return info.app_info()


async def next_sample(strategy: str, params: dict | None = Body(None), user: User = _USER) -> dict[str, Any]:
    """POST /activelearning/{strategy} in a worker thread: an image may be fetched, read and measured."""
    return await in_worker(activelearning.sample, strategy, params, user.username)


def check_sum_is_known(check_sum: str | None = None, user: User = _USER) -> None:
    """MONAI Label fails on an algorithm that it does not know."""
    if check_sum is not None and not _CHECKSUM.fullmatch(check_sum):
        raise HTTPException(
            422, f"check_sum must be SHA256:, SHA512: or MD5: and hex digits, got {check_sum[:_SHOWN]!r}."
        )


def check_gpu_program(user: User = _ADMIN) -> None:
    """MONAI Label runs nvidia-smi without looking whether it is there."""
    if shutil.which("nvidia-smi") is None:
        raise HTTPException(404, "There is no nvidia-smi on this machine.")


def check_ohif_path(path: str, user: User = _USER) -> None:
    """Only files of the viewer: no parent folders, and no folders."""
    viewer = os.path.join(os.path.dirname(os.path.realpath(ohif.__file__)), "static", "ohif")
    name = path.replace("/", os.pathsep)  # as MONAI Label makes it
    if ".." in re.split(r"[/\\]", path) or path and os.path.isdir(os.path.join(viewer, name)):
        raise HTTPException(404, "There is no such file of the viewer.")


def check_session(session_id: str, user: User = _USER) -> None:
    """A session that is gone is answered as a click on it is, with what a client does then."""
    if app_instance().sessions() is not None:  # switched off: MONAI Label says so
        infer_route.check_session(session_id)


def check_training(
    model: str, params: dict | None = Body(None), run_sync: bool | None = False, user: User = _ADMIN
) -> None:
    """An unknown model would start a process that builds the whole app to fail; a file name must stay one."""
    _check_task(model, "model", params or {}, run_sync, app_instance()._trainers, "a trainer")


def check_all_training(params: dict | None = Body(None), run_sync: bool | None = False, user: User = _ADMIN) -> None:
    """As `check_training`, for every trainer; `params` may hold an object for each."""
    _check_task(None, "model", params or {}, run_sync, app_instance()._trainers, "a trainer")


def check_scoring(
    method: str, params: dict | None = Body(None), run_sync: bool | None = False, user: User = _ANNOTATOR
) -> None:
    """As `check_training`."""
    _check_task(method, "method", params or {}, run_sync, app_instance()._scoring_methods, "a scoring method")


def check_all_scoring(params: dict | None = Body(None), run_sync: bool | None = False, user: User = _ANNOTATOR) -> None:
    """As `check_all_training`."""
    _check_task(None, "method", params or {}, run_sync, app_instance()._scoring_methods, "a scoring method")


def check_batch(
    model: str, params: dict | None = Body(None), run_sync: bool | None = False, user: User = _ADMIN
) -> None:
    """As `check_training`."""
    _check_task(model, "model", params or {}, run_sync, app_instance()._infers, "a model")
    if (params or {}).get("label_tag"):
        check_tag(params["label_tag"])


def _check_task(
    name: str | None, key: str, params: dict[str, Any], run_sync: bool | None, known: dict[str, Any], what: str
) -> None:
    """What a task in the background may be told.

    Args:
        name: of the task in the address; None if all of a kind are asked for.
        key: of `params` that would replace the name.
        params: of the request; MONAI Label takes them over as they are, and those of each task below its name.
        run_sync: whether the client would wait for the answer.
        known: the tasks of this kind.
        what: one of them, in words.

    Raises:
        HTTPException: 404 for an unknown task, 422 for what must not be told.
    """
    if run_sync:  # in the event loop, where it keeps everybody else waiting
        raise HTTPException(422, "run_sync would stop the server for everybody until it is done; leave it out.")
    if name is not None:
        _check_known(name, known, what)
    _check_params(params, key, known, what)
    for task in known:
        if params.get(task):
            if not isinstance(params[task], dict):
                raise HTTPException(422, f"{task} must be an object, got {repr(params[task])[:_SHOWN]}.")
            _check_params(params[task], key, known, what)


def _check_params(params: dict[str, Any], key: str, known: dict[str, Any], what: str) -> None:
    if key in params:
        _check_known(params[key], known, what)
    if "bundle_path" in params:  # MONAI Label lets the task's process import from there
        raise HTTPException(422, "bundle_path is not for clients: a task imports nothing but this app; leave it out.")
    gpus = params.get("gpus")
    if gpus is not None and not (isinstance(gpus, str) and _GPUS.fullmatch(gpus)):
        raise HTTPException(422, f"gpus must be all, or numbers such as 0,1, got {repr(gpus)[:_SHOWN]}.")
    _check_plain(params)


def _check_known(name: Any, known: dict[str, Any], what: str) -> None:
    if not isinstance(name, str) or name not in known:
        names = ", ".join(known) or "none"
        raise HTTPException(404, f"There is no {what.split()[-1]} {repr(name)[:_SHOWN]}; this server has {names}.")


def _check_plain(params: dict[str, Any]) -> None:
    for key in ("model_filename", "name"):
        if params.get(key) is not None and not is_file_name(params[key]):
            raise HTTPException(422, f"{key} must be one plain file name, got {repr(params[key])[:_SHOWN]}.")
