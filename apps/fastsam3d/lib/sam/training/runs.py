"""A whole run: plan, training data, trainings, gate, publication, report; for every kind of model (learners.py).

MONAI Label's trainers and the command use it. A run lives in `<model dir>/runs/<model>/<name>/`. It can be killed at any
moment: what is finished is on disk, and the next run with the same cases, settings and served weights goes on with it.
Several processes (torchrun) share the steps; the first one does the rest.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from .. import weights
from ..build import Sam2D, Sam3D
from ..registry import model_of
from ..segmenters import Segmenter, load_segmenter
from ..versions import Record, publish, write_candidate, write_json, write_record
from ..weights import ResolvedWeights
from .cases import LabelledCase, fingerprint, structures_of
from .finetune_config import TuningConfig, config_text
from .gate import Pair, Verdict, judge
from .learners import learner_of
from .loop import processes
from .patches import PatchSet
from .plan import Fold, plan
from .report import PAGE, write_report
from .tuning import Stopped

logger = logging.getLogger(__name__)

RUNS = "runs"
STATUS = "status.json"
_LOCK = ".lock"
_DATA, _ROUTES = "patches", "routes"
_PARTS = (0.9, 0.75, 0.5, 0.25)
"""Of the way that training went, which the gate is shown where all of it forgets too much: what was learned grows with the share, what is
forgotten with its square."""


class BusyError(RuntimeError):
    """Another training of the model runs."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the verdict, the name of the published version (None if none), and the report's page."""

    verdict: Verdict
    published: str | None
    report: Path


class Run:
    """One run.

    Args:
        cases: the annotated cases. base: the weights that serve, which training starts from.
        model_dir: the app's folder of weights. config: see finetune_config.py.
        resume: go on with an unfinished run of the same cases, settings and weights.
        should_stop: asked between steps.
    """

    def __init__(
        self,
        cases: Sequence[LabelledCase],
        base: ResolvedWeights,
        model_dir: Path,
        config: TuningConfig,
        device: torch.device | str = "cpu",
        resume: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cases, self.base, self.config, self.device = list(cases), base, config, torch.device(device)
        self.learner = learner_of(base.spec, config)
        self.model_dir, self.model = Path(model_dir), model_of(base.spec.name)
        self.home = self.model_dir / RUNS / self.model
        self.resume, self.should_stop = resume, should_stop
        self.first = processes()[0] == 0
        self.folds: list[Fold] = []
        self.rows: dict[str, list[dict]] = {}
        self.begun = time.time()

    def __call__(self) -> Outcome | None:
        """Runs to the end; None in processes that are not the first.

        Raises:
            BusyError: another training of the model runs.
            Stopped: `should_stop` said so; the next run goes on.
            ValueError: cases or settings that cannot be trained on (VolumeError, WeightsError among them).
        """
        self.home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.home / _LOCK)
        try:
            if self.first:
                lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(f"another training of {self.model} runs; stop it first, or wait") from None
        try:
            return self._locked()
        except Stopped as stop:
            self._status("stopped", f"{stop}; the next training goes on from there")
            raise
        except Exception as error:
            if self.first:
                note_failure(self.model_dir, self.model, error)
            raise
        finally:
            lock.release()

    def _locked(self) -> Outcome | None:
        self._status("running", "reading the annotations")
        self.folds = plan(self.cases)
        self.structures = structures_of(self.cases, self.config.structures)
        if not self.structures:
            wanted = ", ".join(self.config.structures)
            raise ValueError(f"no annotated case holds {wanted or 'a labelled voxel'}; nothing to train on")
        self.folder = self._folder()
        logger.info("run %s: %d cases, structures %s", self.folder.name, len(self.cases), ", ".join(self.structures))
        for fold in self.folds:
            logger.info("  %s: %d cases train, %d judge", fold.name, len(fold.train), len(fold.held_out))
        self.served = load_segmenter(self.base, self.device)
        patches = self._patches()
        pairs: list[Pair] = []
        for fold in self.folds:
            pairs += self._train(fold, patches)
        if not self.first:
            return None
        return self._judge(pairs)

    def _folder(self) -> Path:
        """The folder of the unfinished run that this one goes on with, or a new one; older ones lose their large files."""
        own = {
            "key": sha256(f"{fingerprint(self.cases)} {config_text(self.config)} {self.base.version}".encode()).hexdigest(),
            "config": asdict(self.config), "base": self.base.name, "base_version": self.base.version,
            "cases": [case.name for case in self.cases],
        }  # fmt: skip
        if not self.first:
            dist.barrier()
        found = sorted(path.parent for path in self.home.glob("*/run.json"))
        chosen = found[-1] if found and self.resume and _unfinished(found[-1], own["key"]) else None
        if self.first:
            for path in found:
                if path != chosen:
                    _drop_large(path)
            if chosen is None:
                stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S%f")[:-3]
                chosen = self.home / f"{self.model}-{stamp}"
                chosen.mkdir()
                write_json(chosen / "run.json", own)
            else:
                logger.info("goes on with the unfinished run %s", chosen.name)
            if dist.is_initialized():
                dist.barrier()
        if chosen is None:
            raise RuntimeError("the first process made no run; start it again")
        return chosen

    def _patches(self) -> tuple[PatchSet, dict[str, int]]:
        """All that is trained on, and the number by which a case's files are known."""
        trained = sorted({case.name: case for fold in self.folds for case in fold.train}.values(), key=lambda k: k.name)
        if not self.first:
            dist.barrier()
        made = self.learner.prepare(trained, self.structures, self.folder / _DATA, self.served, self._say)
        if self.first and dist.is_initialized():
            dist.barrier()
        return made, {case.name: number for number, case in enumerate(trained)}

    def _train(self, fold: Fold, patches: tuple[PatchSet, dict[str, int]]) -> list[Pair]:
        """One training, its candidate file, and its comparison on the held-out cases."""
        made, numbers = patches
        chosen = made.of_cases({numbers[case.name] for case in fold.train})
        folder = self.folder / fold.name
        training = self.learner.tuning(
            self.config, folder, weights.load_sam(self.base, self.device), chosen, self.device,
            self.config.minutes * fold.share, lambda row: self._epoch(fold, row), self.should_stop,
        )  # fmt: skip
        best = training.run()
        self.rows[fold.name] = training.rows
        if not self.first:
            return []
        if not (folder / _candidate_name(1.0)).exists():
            training.model.load_state_dict(best)
            self._write(training.model, fold, 1.0)
        del training
        return self._compared(fold, 1.0)

    def _compared(self, fold: Fold, share: float) -> list[Pair]:
        """A share of the way that a training went against the served model, on the held-out cases."""
        compared = self.folder / fold.name / f"held_out{'' if share == 1 else f'-{share}'}.json"
        if not compared.exists():
            self._say(f"comparing {fold.name} with the served model")
            candidate = self._candidate(fold, share)
            found = self.learner.compare(self.served, candidate, fold.held_out, self.structures, self._say)
            write_json(compared, [asdict(pair) for pair in found])
        return [Pair(**pair) for pair in json.loads(compared.read_text())]

    def _candidate(self, fold: Fold, share: float) -> Segmenter:
        """The model a share of the way from the served weights to those that training came to."""
        path = self.folder / fold.name / _candidate_name(share)
        if not path.exists():
            network, start = self._network(fold, 1.0), weights.load_sam(self.base, self.device).state_dict()
            mixed = {
                k: start[k].lerp(v, share) if v.is_floating_point() else v for k, v in network.state_dict().items()
            }
            network.load_state_dict(mixed)
            self._write(network, fold, share)
        return load_segmenter(self._resolved(fold, share), self.device)

    def _network(self, fold: Fold, share: float) -> Sam3D | Sam2D:
        return weights.load_sam(self._resolved(fold, share), self.device)

    def _resolved(self, fold: Fold, share: float) -> ResolvedWeights:
        path = self.folder / fold.name / _candidate_name(share)
        return ResolvedWeights(self.folder.name, (path,), self.base.spec, weights.version_of((path,)), "candidate")

    def _write(self, network: Sam3D | Sam2D, fold: Fold, share: float) -> None:
        """The candidate's file: with a router the network that it came from is in it too, and answers all other clicks."""
        about = {"licence": "of the served weights", "base": self.base.name}
        path = self.folder / fold.name / _candidate_name(share)
        router = self.learner.router(fold.train, self.structures, self.folder / _ROUTES, self.served, self._say)
        if router is None:
            write_candidate(network, path, about)
            return
        beside = weights.load_beside(self.base)
        base, before = (beside.base, beside.names) if beside else (weights.load_sam(self.base), ())
        names = sorted({*before, *self.structures})
        write_candidate(network, path, about | {weights.TAUGHT: json.dumps(names)}, base, router.tensors())

    def _verdict(self, share: float, pairs: list[Pair]) -> tuple[Verdict, Segmenter]:
        """What the gate says to a share of the way, and the model that it was asked about."""
        self._say(f"comparing on {self.learner.words.generated}")
        candidate = self._candidate(self.folds[-1], share)
        guard = self.learner.compare_generated(self.served, candidate)
        return judge(pairs, guard, self.learner.words, share), candidate

    def _judge(self, pairs: list[Pair]) -> Outcome:
        """Gate, publication, history, report."""
        last, name, share = self.folds[-1], self.folder.name, 1.0
        verdict, candidate = self._verdict(share, pairs)
        for part in _PARTS if verdict.forgets else ():
            self._say(f"{verdict.reason}; trying {part:.0%} of the way")
            pairs = [pair for fold in self.folds for pair in self._compared(fold, part)]
            found, candidate = self._verdict(part, pairs)
            if found.accepted:
                verdict, share = found, part
            if not found.forgets:
                break
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        version = candidate.weights_version if verdict.accepted else ""
        event = "accepted" if verdict.accepted else "refused"
        record = Record(name, now, event, version, self.base.name, verdict.reason, verdict.metrics())
        if verdict.accepted:
            publish(self.folder / last.name / _candidate_name(share), self.model_dir, self.base.spec, record)
        else:
            write_record(self.model_dir, self.model, record)
        write_json(self.folder / "verdict.json", verdict.as_dict())
        page = write_report(
            self.folder, f"Training {name}", self._facts(verdict.reason), self.rows, verdict.as_dict(),
            words=self.learner.words,
        )  # fmt: skip
        _drop_large(self.folder)
        self._status(event, verdict.reason)
        logger.info("%s", verdict.reason)
        logger.info("report: %s", page)
        return Outcome(verdict, name if verdict.accepted else None, page)

    def _epoch(self, fold: Fold, row: dict) -> None:
        """After every epoch: status for the clients, time left in the log, the live page."""
        self.rows.setdefault(fold.name, []).append(row)
        minutes = self.config.minutes * fold.share
        left = f", at most {max(0.0, minutes - row['seconds'] / 60):.1f} minutes left" if minutes else ""
        text = f"{fold.name}: epoch {row['epoch']}, loss {row['loss']:.3f}, Dice {row['dice']:.3f}{left}"
        logger.info("%s", text)
        self._status("running", text)
        write_report(self.folder, f"Training {self.folder.name}", self._facts("runs"), self.rows, live=True)

    def _facts(self, state: str) -> dict[str, str]:
        return {
            "state": state,
            "started from": f"{self.base.name} ({self.base.version})",
            "cases": ", ".join(case.name for case in self.cases),
            "seconds": f"{time.time() - self.begun:.0f}",
        }

    def _say(self, text: str) -> None:
        if self.first:
            logger.info("%s", text)
            self._status("running", text)

    def _status(self, state: str, message: str) -> None:
        """What clients read: see `read_status`."""
        if not self.first:
            return
        done = sum(len(rows) for rows in self.rows.values())
        best = max((row["dice"] for rows in self.rows.values() for row in rows), default=0.0)
        folder = getattr(self, "folder", None)
        write_json(
            self.home / STATUS,
            {
                "state": state,
                "message": " ".join(message.split())[:1000],
                "epoch": done,
                "total_epochs": max(done, self.config.epochs * max(1, len(self.folds))) if state == "running" else done,
                "best_metric": round(float(best), 4),
                "total_time": str(datetime.timedelta(seconds=int(time.time() - self.begun))),
                "start_ts": int(self.begun),
                "pid": os.getpid(),
                "run": folder.name if folder else "",
                "report": str(folder / PAGE) if folder else "",
            },
        )


def read_status(model_dir: Path, model: str) -> dict:
    """State of the model's newest run: state, message, epoch, total_epochs, best_metric, total_time and more; {} if none."""
    try:
        return json.loads((Path(model_dir) / RUNS / model / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def note_failure(model_dir: Path, model: str, error: BaseException) -> None:
    """Makes the status say why a run failed, or why none could begin."""
    home = Path(model_dir) / RUNS / model
    home.mkdir(parents=True, exist_ok=True)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
    write_json(home / STATUS, read_status(model_dir, model) | {"state": "failed", "message": text})


def _unfinished(folder: Path, key: str) -> bool:
    try:
        return json.loads((folder / "run.json").read_text())["key"] == key and not (folder / "verdict.json").exists()
    except (OSError, ValueError, LookupError):
        return False


def _candidate_name(share: float) -> str:
    return "candidate.safetensors" if share == 1 else f"candidate-{share}.safetensors"


def _drop_large(folder: Path) -> None:
    """Removes what only a running training needs: patches, checkpoints, candidates."""
    for path in [folder / _DATA, folder / _ROUTES, *folder.glob(".*.part")]:
        shutil.rmtree(path, ignore_errors=True)
    for pattern in ("*/checkpoint.*", "*/candidate*.safetensors"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
