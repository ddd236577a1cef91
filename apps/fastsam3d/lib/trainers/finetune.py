"""The trainers `fastsam3d` and `repmedsam`: what the Train button starts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from ..annotations import annotated_cases
from ..conf import weights_model
from ..sam import weights
from ..sam.device import choose_device
from ..sam.training.cases import LabelledCase
from ..sam.training.finetune_config import Finetune2dConfig, FinetuneConfig, TuningConfig
from ..sam.training.runs import Run, note_failure, read_status

logger = logging.getLogger(__name__)

_NICE = 15
_LAST_WORDS_SECONDS = 2.0
_SHOWN = ("minutes", "epochs", "learning_rate", "freeze_encoder", "rehearsal", "patience", "seed")


class FinetuneTask(TrainTask):
    """Fine-tunes the served weights on the studies' final labels, and publishes what passes the gate.

    MONAI Label runs it in a process of its own, at low priority, so clicks go on. The constructor loads nothing.

    Args:
        model: name of the model. model_dir: the app's folder of weights. labels: the app's label list.
        weights_choice: what `--conf weights` says for the model, or None. device: "auto", "cpu", "cuda" or "cuda:N".
        settings: of that kind of model. what: is learned, for people.
    """

    def __init__(
        self,
        model: str,
        model_dir: str,
        labels: Mapping[str, int],
        weights_choice: str | None,
        device: str,
        settings: type[TuningConfig] = FinetuneConfig,
        what: str = "clicks",
    ) -> None:
        super().__init__(
            f"Learns {what} from the saved labels; serves the next one if it passed a check on other cases"
        )
        self.settings = settings
        self.model, self.model_dir, self.labels = model, model_dir, dict(labels)
        self.weights_choice, self.device = weights_choice, device

    def is_valid(self) -> bool:
        """Whether there are weights to start from; a trainer without them is not shown to clients."""
        try:
            weights.resolve(self.model, self.model_dir, configured=self.weights_choice)
        except weights.WeightsError:
            return False
        return True

    def config(self) -> dict[str, Any]:
        """What clients may change; see finetune_config.py: the other settings are taken as well."""
        return {name: getattr(self.settings(), name) for name in _SHOWN} | {"resume": True}

    def stats(self) -> dict[str, Any]:
        """Progress as Slicer and OHIF show it, and `state` and `message` for people; numbers are finite."""
        status = read_status(self.model_dir, self.model)
        if status.get("state") == "running" and not _alive(status.get("pid")):
            status |= {
                "state": "stopped",
                "message": "the training was ended; the next one goes on from its last epoch",
            }
        return {"epoch": 0, "total_epochs": self.settings().epochs, "best_metric": 0.0} | status

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Trains; returns the stats of the end.

        Raises:
            ValueError: settings or annotations that cannot be trained on; the text says what to do.
            BusyError, Stopped: see Run.
        """
        try:
            return self._train(request, datastore)
        except Exception as error:
            logger.error("training ended: %s: %s", type(error).__name__, error)
            time.sleep(
                _LAST_WORDS_SECONDS
            )  # MONAI Label reads our lines only while we live; clients show the last ones
            raise

    def _train(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        try:
            config, base, cases = self._prepare(request, datastore)
        except Exception as error:
            note_failure(self.model_dir, self.model, error)
            raise
        resume = str(request.get("resume", True)).strip().lower() not in ("false", "0", "no")
        _be_modest()
        parent = os.getppid()
        run = Run(
            cases, base, self.model_dir, config, choose_device(self.device), resume,
            should_stop=lambda: os.getppid() != parent,  # the server is gone: leave a checkpoint for the next one
        )  # fmt: skip
        outcome = run()
        time.sleep(_LAST_WORDS_SECONDS)
        return {"accepted": outcome.verdict.accepted, "reason": outcome.verdict.reason, "report": str(outcome.report)}

    def _prepare(
        self, request: Mapping[str, Any], datastore: Datastore
    ) -> tuple[TuningConfig, weights.ResolvedWeights, list[LabelledCase]]:
        if self.weights_choice:
            raise ValueError(
                f"--conf weights pins {self.model} to {self.weights_choice}, so what is learned could never be served; "
                "start the server without it (weights import makes other weights the default)"
            )
        config = self.settings.of(request)
        base = weights.resolve(self.model, self.model_dir)
        cases = annotated_cases(datastore, self.labels)
        logger.info("%d annotated cases; starting from %s (%s)", len(cases), base.name, base.version)
        return config, base, cases


def slice_trainer(config: TaskConfig) -> FinetuneTask:
    """The trainer of a config of a model for slices; those that share weights share it."""
    return trainer_of(config, Finetune2dConfig, "boxes and clicks in slices")


def trainer_of(config: TaskConfig, settings: type[TuningConfig] = FinetuneConfig, what: str = "clicks") -> FinetuneTask:
    """The trainer of a config, from what the app gave it; see FinetuneTask."""
    app_conf = config.kwargs["app_conf"]
    return FinetuneTask(
        model=weights_model(config.name),
        model_dir=config.model_dir,
        labels=app_conf.labels,
        weights_choice=app_conf.weights_of(config.name),
        device=app_conf.device,
        settings=settings,
        what=what,
    )


def _be_modest() -> None:
    """Low priority, so that clicks answered by the server's process keep the processor."""
    try:
        os.nice(_NICE)
    except OSError as error:
        logger.warning("training runs at normal priority: %s", error)


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
