"""The routes by which clients send images, labels, session volumes and weights, in place of MONAI Label's.

MONAI Label's endpoints store whatever they get under whatever name they are told. The addresses, fields and answers here
are the same; what is stored was read first. They are no coroutines, so a large upload does not stop the clicks of others.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi import Depends, File, Form, HTTPException, UploadFile
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.utils.app import app_instance

from ..sam.registry import IMPORTED, imported
from ..sam.volume_io import read_grid, read_volume
from ..sam.weights import WeightsError
from ..sam.weights_files import import_checkpoint
from .archives import ArchiveError, TooMuchError, unpack_zip
from .labels import check_label
from .names import check_image_id, check_tag, is_file_name, parse_info
from .received import ending_of, received

logger = logging.getLogger(__name__)

_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
_LABELS = (".nii.gz", ".nii", ".nrrd")
_SESSIONS = (*_VOLUMES, ".dcm", ".ima")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")


def add_image(
    image: str | None = None, params: str = Form("{}"), file: UploadFile = File(...), user: User = _ANNOTATOR
) -> dict[str, Any]:
    """PUT /datastore/image: a new image of the folder; one that has labels is not replaced."""
    app = app_instance()
    store = app.datastore()
    if isinstance(store, DICOMWebDatastore):
        raise HTTPException(409, "The images are those of the DICOMweb server: send new ones there (STOW-RS).")
    info = {**parse_info(params), "user": user.username}
    endings = [ending for ending in _VOLUMES if f"*{ending}" in settings.MONAI_LABEL_DATASTORE_FILE_EXT]
    ending = ending_of(file.filename, endings or _VOLUMES, ".nii.gz")
    image_id = check_image_id(image or (file.filename or "")[: -len(ending)])
    if store.get_labels_by_image_id(image_id):
        raise HTTPException(
            409, f"The image {image_id!r} has labels, which would no longer fit; send it under another id."
        )
    with received(file, f"image{ending}") as path:
        read_volume(path, app.app_conf.cache_bytes)
        return {"image": store.add_image(image_id, str(path), info)}


def save_label(
    image: str,
    params: str = Form("{}"),
    tag: str = DefaultLabelTag.FINAL.value,
    label: UploadFile = File(...),
    user: User = _ANNOTATOR,
) -> dict[str, Any]:
    """PUT /datastore/label: a label map on the image's own voxels."""
    app = app_instance()
    tag, info = check_tag(tag or DefaultLabelTag.FINAL.value), parse_info(params)
    ending = ending_of(label.filename, _LABELS, ".nii.gz")
    path = app.datastore().get_image_uri(image)
    if not path or not os.path.exists(path):
        raise ImageNotFoundException(f"There is no image {image[:80]!r}; GET /datastore/?output=all lists the images.")
    with received(label, f"label{ending}") as sent:
        check_label(sent, Path(path), app.app_conf.cache_bytes)
        label_id = app.datastore().save_label(image, str(sent), tag, info)
    return {**(app.on_save_label(image, label_id) or {}), "image": image, "label": label_id}


def update_image_info(image: str, info: str = Form("{}"), user: User = _ANNOTATOR) -> None:
    """PUT /datastore/image/info: adds to an image's metadata."""
    app_instance().datastore().update_image_info(image, {**parse_info(info), "user": user.username})


def update_label_info(label: str, tag: str, info: str = Form("{}"), user: User = _ANNOTATOR) -> None:
    """PUT /datastore/label/info: adds to a label's metadata."""
    app_instance().datastore().update_label_info(label, tag, {**parse_info(info), "user": user.username})


def update_label_params(label: str, tag: str, params: str = Form("{}"), user: User = _ANNOTATOR) -> None:
    """PUT /datastore/updatelabelinfo: an older address of the same."""
    update_label_info(label, tag, params, user)


def create_session(
    uncompress: bool = False, expiry: int = 0, files: list[UploadFile] = File(...), user: User = _USER
) -> dict[str, Any]:
    """PUT /session/: one volume, several DICOM files, or a .zip of these with `uncompress`."""
    app = app_instance()
    sessions = app.sessions()
    if sessions is None:
        raise HTTPException(406, "Sessions are switched off on this server (MONAI_LABEL_SESSIONS).")
    os.makedirs(sessions.store_path, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=sessions.store_path) as folder:
        path = _session_image(files, uncompress, Path(folder), app.app_conf.upload_bytes)
        session_id, info = sessions.add_session(str(path), expiry)
    logger.info("New session %s", session_id)
    app.prefetch.offer(info.image, info.image)
    return {"session_id": session_id, "session_info": info.to_json()}


def _session_image(files: list[UploadFile], uncompress: bool, folder: Path, max_bytes: int) -> Path:
    """Puts what was sent into a folder; the path of the volume, or of a folder of DICOM files.

    The client's file names are not used: they often name the patient.
    """
    series = folder / "series"
    if len(files) > 1:
        if uncompress:
            raise HTTPException(422, f"uncompress takes one archive, got {len(files)} files.")
        series.mkdir()
        for number, file in enumerate(files):
            with received(file, f"{number:06d}.dcm", folder) as path:
                path.rename(series / path.name)
        return series
    if uncompress:
        ending_of(files[0].filename, (".zip",), ".zip")
        series.mkdir()
        with received(files[0], "archive.zip", folder) as archive:
            try:
                unpack_zip(archive, series, max_bytes)
            except ArchiveError as error:
                raise HTTPException(413 if isinstance(error, TooMuchError) else 422, str(error)) from error
        return series
    ending = ending_of(files[0].filename, _SESSIONS, ".nii.gz")
    with received(files[0], f"image{ending}", folder) as path:
        if ending in _VOLUMES:
            read_grid(path)
        return path.rename(folder / path.name)


def update_model(model: str, file: UploadFile, user: User = _ADMIN) -> dict[str, Any]:
    """PUT /model/{model}: weights, read safely and checked against the model, as `weights import` does."""
    app = app_instance()
    task = app._infers.get(model)
    if task is None:
        raise HTTPException(404, f"There is no model {model[:80]!r}; this server has {', '.join(app._infers)}.")
    ending = ending_of(file.filename, _WEIGHTS, ".safetensors")
    name = (file.filename or "uploaded" + ending)[: -len(ending)]
    if not is_file_name(name):
        raise HTTPException(422, f"The weights' file needs a plain name, got {name[:80]!r}.")
    with received(file, f"weights{ending}") as path, tempfile.TemporaryDirectory() as folder:
        try:
            import_checkpoint(path, Path(folder) / IMPORTED, name=name)
            row = imported(Path(folder))[-1]
            if row.model != model:
                raise WeightsError(f"the file holds weights of {row.spec}, which the model {model} cannot use")
            import_checkpoint(path, Path(task.model_dir) / IMPORTED, name=name)
        except WeightsError as error:
            raise HTTPException(422, str(error).replace(f"{path.parent}{os.sep}", "")) from error
    logger.info("New weights %s for %s, sent by %s", name, model, user.username)
    return {"checksum": f"SHA256:{row.sha256[0]}", "modified_time": int(time.time()), "name": name}


def delete_model(model: str, user: User = _ADMIN) -> dict[str, Any]:
    """DELETE /model/{model}: refused; MONAI Label moves the file away that all other clients are using."""
    raise HTTPException(
        403,
        "Weights are removed on the server: see `python apps/fastsam3d weights list` and the folder model/imported.",
    )


ROUTES = (
    ("/datastore/", ["PUT"], add_image),
    ("/datastore/image", ["PUT"], add_image),
    ("/datastore/label", ["PUT"], save_label),
    ("/datastore/image/info", ["PUT"], update_image_info),
    ("/datastore/label/info", ["PUT"], update_label_info),
    ("/datastore/updatelabelinfo", ["PUT"], update_label_params),
    ("/session/", ["PUT"], create_session),
    ("/model/{model}", ["PUT"], update_model),
    ("/model/{model}", ["DELETE"], delete_model),
)
"""Address, methods and endpoint."""
