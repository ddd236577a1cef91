"""The MONAI Label app: `monailabel start_server --app apps/fastsam3d --studies <folder or DICOMweb URL>`."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from lib import configs
from lib.activelearning.doubt import Doubt, Uncertainty, UncertaintyScoring
from lib.activelearning.strategies import First, Random
from lib.annotations import AtlasKeeper
from lib.batch import BatchInfer
from lib.conf import DEFAULT_MODEL, MODELS, AppConf, ConfError, weights_model
from lib.gentle import read_gently
from lib.http_errors import EXPECTED, as_http, install_handlers
from lib.images import resolve_image
from lib.infer_route import (
    check_dicom_seg,
    check_dicom_seg_mask,
    check_session_found,
    is_inference,
    sent_file,
)
from lib.infers.automatic import AutomaticInfer
from lib.opened import Opened
from lib.prefetch import Prefetch
from lib.sam.allocator import keep_freed_memory
from lib.sam.compute import start_compute_thread
from lib.sam.segmenter import Segmentation
from lib.sam.session import SessionStore
from lib.sam.volume_io import VolumeError
from lib.sam.weights import WeightsError
from lib.security.access import install_access
from lib.security.dicom_store import SafeDICOMWebDatastore, connect
from lib.security.front_routes import install_routes
from lib.security.local_store import SafeLocalDatastore
from lib.security.log_filter import install_log_filter
from lib.security.names import check_tag, is_uid
from lib.server import apply_settings, forget_dicomweb_lists
from lib.uploads import UploadSessions
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.class_utils import get_class_names

logger = logging.getLogger(__name__)

_VERSION = "0.1.0"
_LISTS_AGE_SECONDS = 5.0
_ANSWER_SECONDS = 600.0
_UNUSABLE_SAMPLES = 20


class FastSAM3DApp(MONAILabelApp):
    """Interactive 3D segmentation: one task a model, all over one store of resident images.

    Args:
        app_dir: this folder.
        studies: a folder of volumes, or the address of a DICOMweb server.
        conf: the `--conf` pairs, see `lib.conf.AppConf`.

    Raises:
        ConfError: a `--conf` key or value that is not accepted.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        install_log_filter()
        apply_settings()
        self.app_conf = AppConf.parse(conf)
        if self.app_conf.threads:
            torch.set_num_threads(self.app_conf.threads)
        keep_freed_memory()
        self.store = SessionStore(self.app_conf.cache_bytes, read=read_gently)
        self.prefetch = Prefetch(self.store)
        self.opened = Opened(self.datastore, self.prefetch)
        self._last_click = 0.0
        self._lists_read = 0.0
        self._answers: deque[tuple[float, str]] = deque()
        self._sweeping = threading.Lock()
        self._doubt: Doubt | None = None
        self._configs = self._find_configs(os.path.join(app_dir, "model"), dict(conf or {}))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name="FastSAM3D",
            description="Click on a structure, or draw a box around it, and get its 3D mask. Not for clinical use.",
            version=_VERSION,
            labels=list(self.app_conf.labels),
        )

    def _find_configs(self, model_dir: str, conf: dict[str, str]) -> dict[str, TaskConfig]:
        """Makes the configs of lib/configs whose models are asked for, in that order."""
        found = {name.split(".")[-2]: name for name in get_class_names(configs, "TaskConfig")}
        made = {}
        for model in self.app_conf.models:
            module, _, class_name = found[model].rpartition(".")
            made[model] = getattr(importlib.import_module(module), class_name)()
            made[model].init(model, model_dir, conf, None, app_conf=self.app_conf, store=self.store)
        return made

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")) and settings.MONAI_LABEL_DATASTORE:
            raise ConfError("MONAI_LABEL_DATASTORE must be empty: the studies are a folder or a DICOMweb server.")
        if self.studies.startswith(("http://", "https://")):
            self._download_dcmqi_tools()
            self.studies = self.studies.rstrip("/").strip()
            return connect(self.studies)
        return SafeLocalDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        infers = {name: config.infer() for name, config in self._configs.items()}
        if isinstance(self.datastore(), SafeDICOMWebDatastore):
            for task in infers.values():
                task.on_answer = self._remember
        clicks = infers.get(DEFAULT_MODEL)
        if clicks is not None:  # what needs the promptable 3D model: pre-annotation, and how unsure it is
            keeper = AtlasKeeper(self.datastore, self.app_conf.labels, Path(clicks.model_dir) / "atlas")
            automatic = AutomaticInfer(clicks, keeper, keeper.names)
            infers[automatic.model] = automatic
            self._doubt = Doubt(self.store, clicks.loaded, keeper)
        return infers

    def _remember(self, image: str, answer: Segmentation) -> None:
        """A viewer may store what it was answered as a label, upside down."""
        if is_uid(image):
            self.datastore().answered.note(image, answer.mask_box, answer.corner_ijk)

    def init_trainers(self) -> dict[str, TrainTask]:
        """One trainer for each set of weights that is served, the default model's first: 3D Slicer shows the first one."""
        trainers: dict[str, TrainTask | None] = {}
        for name in (name for name in MODELS if name in self._configs):
            trainers.setdefault(weights_model(name), self._configs[name].trainer())
        return {name: trainer for name, trainer in trainers.items() if trainer is not None}

    def init_strategies(self) -> dict[str, Strategy]:
        strategies: dict[str, Strategy] = {"random": Random(), "first": First()}
        if self._doubt is not None:
            strategies["uncertainty"] = Uncertainty(self._doubt)
        if self.app_conf.strategy not in strategies:
            raise ConfError(f"--conf strategy {self.app_conf.strategy} needs the model {DEFAULT_MODEL}.")
        return strategies | {"random": strategies[self.app_conf.strategy]}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {} if self._doubt is None else {"uncertainty": UncertaintyScoring(self._doubt)}

    def init_batch_infer(self) -> BatchInfer:
        return BatchInfer()

    def on_init_complete(self) -> None:
        """Once the server runs: errors answer as 4xx, and the weights are in memory before the first click.

        Raises:
            WeightsError: the default model, or one that the user named, has no weights that can be loaded.
        """
        install_handlers()
        install_routes()
        install_access(self.app_conf.upload_bytes)
        install_log_filter()
        start_compute_thread()
        for name, task in self._infers.items():
            try:
                task.preload() if self.app_conf.preload else task.resolve()
            except WeightsError as error:
                if name == DEFAULT_MODEL or name in self.app_conf.weights or "models" in self.conf:
                    raise
                logger.warning("The model %s is not offered: %s", name, error)
        super().on_init_complete()

    def info(self) -> dict[str, Any]:
        """What clients are told; lists of a DICOMweb server are asked for again unless one clicks or has just clicked.

        MONAI Label also asks before each inference, which must not wait for the DICOMweb server.
        """
        now = time.monotonic()
        if not is_inference() and min(now - self._last_click, now - self._lists_read) > _LISTS_AGE_SECONDS:
            forget_dicomweb_lists()
            self._lists_read = now
        found = super().info()
        for name, trainer in self._trainers.items():
            if not trainer.is_valid():
                del found["trainers"][name], found["train_stats"][name]
        return found

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        forget_dicomweb_lists()
        if not isinstance(request.get("strategy"), str):
            raise HTTPException(422, f"strategy must be a name, one of {', '.join(self._strategies)}.")
        for _ in range(_UNUSABLE_SAMPLES):
            try:
                found = super().next_sample(request)
            except VolumeError as error:  # the datastore does not offer it again
                logger.warning("An image is not offered for annotation: %s", error)
                continue
            if found:
                self.prefetch.offer(found["id"], found["path"])
            return found
        return {}

    def on_save_label(self, image_id: str, label_id: str) -> None:
        forget_dicomweb_lists()
        super().on_save_label(image_id, label_id)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Runs one model on one image.

        Args:
            request: `model`, `image`, a `session` if there is one, and what the model takes (prompts, answer options).
            datastore: where the image is looked up; None is the app's own.

        Returns:
            `file` and `label` (the answer's path, or the label's id if `save_label` is set), `tag` and `params`.

        Raises:
            HTTPException: 404 for an unknown model or image, 422 for prompts, an image or an answer that cannot be.
        """
        datastore = datastore or self.datastore()
        model = request.get("model")
        task = self._infers.get(model) if isinstance(model, str) else None
        if task is None:
            raise HTTPException(
                404, f"There is no model {str(model)[:80]!r}; this server has {', '.join(self._infers)}."
            )
        self._last_click = time.monotonic()
        check_session_found(request)
        check_dicom_seg(request, datastore)
        tag = check_tag(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value)
        image_id, path = resolve_image(request, datastore, self.sessions(), sent_file())
        try:
            file, params = task({**request, "image": path, "image_id": image_id})
        except EXPECTED as error:
            logger.info("%s on %s (%s): %s", model, image_id, path, error)
            raise as_http(error, os.path.dirname(path), self.app_dir) from error
        finally:
            self._last_click = time.monotonic()
        self._sweep_answers(file)
        params["warnings"] = [*params.get("warnings", ()), *datastore.get_image_info(image_id).get("warnings", [])]
        check_dicom_seg_mask(params["voxels"])
        label = file
        if file and request.get("save_label") is True and image_id in datastore.list_images():
            label = datastore.save_label(image_id, file, tag, {"model": model, "params": params})
        return {"label": label, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": params}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        raise HTTPException(404, "There are no models for whole-slide images here.")

    def _sweep_answers(self, file: str | None) -> None:
        """Remembers an answer file, and removes old ones that MONAI Label forgot (it does when a later step fails)."""
        now = time.monotonic()
        with self._sweeping:
            while self._answers and now - self._answers[0][0] > _ANSWER_SECONDS:
                with suppress(FileNotFoundError):
                    os.unlink(self._answers.popleft()[1])
            if file:
                self._answers.append((now, file))

    def _load_sessions(self, load: bool = False) -> UploadSessions | None:
        if not load:
            return None
        return UploadSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def _download_dcmqi_tools(self) -> None:
        """Looks for the converter that MONAI Label would fetch from the internet; this app downloads nothing unasked."""
        if shutil.which("itkimage2segimage") is None:
            logger.warning(
                "itkimage2segimage is not on PATH, so labels cannot be saved as DICOM SEG: pip install dcmqi"
            )
