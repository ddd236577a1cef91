"""A whole evaluation: cases, models, workers, and what is kept so that it can be resumed."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..files import plain_name, write_text
from ..session import SessionStore, content_identity
from ..volume_io import VolumeError
from .cases import Case, Problem
from .interface import Model, ModelError
from .models import ModelChoice, load_model
from .protocols import BOX
from .remote import RemoteModel
from .rows import row_fault
from .scans import read_scan
from .score import Result, Settings, Structure, examine, file_stem, mask_name, score

_CASES = "cases"
_MASK = re.compile(r"(.+)_(?:box|click\d+)\.nii\.gz")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One structure for one model."""

    structure: Structure
    choice: ModelChoice


class Worker:
    """Keeps the models and the last scans in memory; one in each process."""

    def __init__(self, settings: Settings, cache_bytes: int, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._settings = settings
        self._store = SessionStore(cache_bytes, read=read_scan)
        self._models: dict[ModelChoice, Model | ModelError] = {}

    def model(self, choice: ModelChoice) -> Model:
        """The model, loaded at its first use.

        Raises:
            ModelError: it cannot be had; said once more for every structure.
        """
        if choice not in self._models:
            try:
                self._models[choice] = load_model(choice)
            except ModelError as error:
                self._models[choice] = error
            except Exception as error:  # its structures are not scored, but those of other models are
                _log.exception("%s cannot be loaded", choice.name)
                self._models[choice] = ModelError(f"{choice.name}: {type(error).__name__}: {error}")
        model = self._models[choice]
        if isinstance(model, ModelError):
            raise model
        return model

    def close(self) -> None:
        """Takes back what was sent to servers."""
        for model in self._models.values():
            if isinstance(model, RemoteModel):
                model.close()

    def __call__(self, task: Task) -> Result:
        case = task.structure.case
        try:
            return score(self.model(task.choice), task.structure, self._store, self._settings)
        except ModelError as error:
            return Result(None, problems=(Problem(case.name, str(error), task.structure.label, task.choice.name),))


_worker: Worker | None = None


def _begin(settings: Settings, cache_bytes: int, threads: int) -> None:
    global _worker
    _worker = Worker(settings, cache_bytes, threads)
    Finalize(_worker, _worker.close, exitpriority=10)  # exit handlers do not run in such a process


def _work(task: Task) -> Result:
    return _worker(task)


class Kept:
    """What earlier runs left in the output folder: one file a case, with what every row was made with."""

    def __init__(self, folder: Path) -> None:
        self._masks = folder / "masks"
        self._folder = folder / _CASES
        self._folder.mkdir(parents=True, exist_ok=True)
        self._content: dict[str, dict[str, Any]] = {}

    def find(self, task: Task, made_with: dict[str, Any], settings: Settings) -> tuple[Result | None, list[str]]:
        """The result of an earlier run with the same arguments, whose masks and picture are there where they are wanted.

        Returns:
            The result or None, and why an earlier result cannot be used.
        """
        entry = self._of(task).get(_key(task))
        if not _is_whole(entry):
            return None, []
        earlier = entry["made_with"]
        changed = [f"another {k}" for k in sorted(made_with | earlier) if made_with.get(k) != earlier.get(k)]
        result = _restored(task, entry)
        if settings.masks is not None and not (entry["masks"] and _masks_there(task, result.row, settings.masks)):
            changed.append("no masks")
        picture = result.extra.get("picture")
        if settings.pictures is not None and not (picture and (settings.pictures / picture).is_file()):
            changed.append("no picture")
        return (None, changed) if changed else (result, [])

    def clear(self, tasks: list[Task]) -> None:
        """Removes earlier masks of structures that are made again, so that none stays beside numbers of other arguments."""
        stems = {file_stem(task.structure, task.choice.name) for task in tasks}
        for path in list(self._masks.iterdir()) if self._masks.is_dir() else ():
            found = _MASK.fullmatch(path.name)
            if found and found[1] in stems:
                path.unlink()

    def add(self, task: Task, made_with: dict[str, Any], result: Result, masks: bool) -> None:
        """Keeps a scored structure; what failed is tried again by the next run."""
        if result.row is None:
            return
        content = self._of(task)
        content[_key(task)] = {
            "made_with": made_with,
            "masks": masks,
            "row": result.row,
            "extra": result.extra,
            "problems": [asdict(p) for p in result.problems],
        }
        write_text(self._path(task), json.dumps(content, indent=1))

    def _of(self, task: Task) -> dict[str, Any]:
        name = str(self._path(task))
        if name not in self._content:
            try:
                content = json.loads(self._path(task).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                content = {}
            self._content[name] = content if isinstance(content, dict) else {}
        return self._content[name]

    def _path(self, task: Task) -> Path:
        return self._folder / f"{plain_name(task.structure.case.name)}.json"


def _key(task: Task) -> str:
    return f"{task.choice.name}|{task.structure.label}"


def _is_whole(entry: object) -> bool:
    """Whether an entry has the form that `Kept.add` writes; one of another form is as good as none."""
    kinds = {"made_with": dict, "masks": bool, "row": dict, "extra": dict, "problems": list}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        return False
    fields = {field.name for field in dataclasses.fields(Problem)}
    extras = entry["extra"].keys() >= {"clicks", "box_seconds", "warnings", "ceiling", "extent_mm"}
    noted = all(isinstance(problem, dict) and set(problem) == fields for problem in entry["problems"])
    return extras and noted and not row_fault(entry["row"])


def _restored(task: Task, entry: dict[str, Any]) -> Result:
    """A kept result, with the words of this run, which cost no new answer."""
    said = {"name": task.structure.name, "modality": task.structure.case.modality}
    return Result(entry["row"] | said, entry["extra"], tuple(Problem(**p) for p in entry["problems"]))


def _masks_there(task: Task, row: dict[str, Any], folder: Path) -> bool:
    steps = [*row["clicks"], *([BOX] if row["box"] else [])]
    return all((folder / mask_name(task.structure, task.choice.name, n)).is_file() for n in steps)


def plan(
    cases: list[Case], settings: Settings, names: dict[int, str], choices: list[ModelChoice]
) -> tuple[list[Task], list[Problem]]:
    """Every structure of every case for every model, and the cases that hold nothing to score."""
    tasks, problems = [], []
    for case in tqdm(cases, desc="label maps", unit="case", leave=False, disable=None):
        try:
            found, faults = examine(case, settings, names)
        except Exception as error:  # one case must not cost the others
            _log.exception("%s cannot be examined", case.name)
            found, faults = [], [Problem(case.name, f"its label map cannot be used: {type(error).__name__}: {error}")]
        tasks += [Task(structure, choice) for choice in choices for structure in found]
        problems += faults
    return tasks, problems


def run(
    tasks: list[Task],
    versions: dict[ModelChoice, str],
    settings: Settings,
    kept: Kept,
    workers: int,
    cache_bytes: int,
    notice=lambda text: None,
) -> Iterator[tuple[Task, Result]]:
    """Scores what is not there yet, and yields every result, the kept ones first.

    Args:
        versions: of the models; results of other versions are not reused.
        workers: processes; 1 works in this one.
        notice: is told in one line when earlier results do not fit.
    """
    todo, changed = [], set()
    for task in tasks:
        made_with = _made_with(task, versions, settings)
        result, differing = kept.find(task, made_with, settings)
        changed |= set(differing)
        if result is None:
            todo.append((task, made_with))
        else:
            yield task, result
    if changed:
        notice(f"earlier results in this folder ({', '.join(sorted(changed))}) are made again")
    kept.clear([task for task, _ in todo])
    for task, made_with, result in _results(todo, settings, workers, cache_bytes, len(tasks)):
        kept.add(task, made_with, result, settings.masks is not None)
        yield task, result


def _results(todo, settings: Settings, workers: int, cache_bytes: int, total: int):
    with tqdm(total=total, initial=total - len(todo), desc="structures", unit="", disable=None) as bar:
        if workers <= 1:
            worker = Worker(settings, cache_bytes)
            with closing(worker):
                for task, made_with in todo:
                    yield task, made_with, worker(task)
                    bar.update()
            return
        threads = max(1, (os.cpu_count() or 1) // workers)
        pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(settings, cache_bytes // workers, threads),
        )
        with pool:
            running = {pool.submit(_work, task): (task, made_with) for task, made_with in todo}
            for done in as_completed(running):
                try:
                    result = done.result()
                except BrokenProcessPool as error:
                    raise OSError(
                        "a worker process ended, perhaps for lack of memory; the same command goes on where it was, "
                        f"with fewer than {workers} --workers it needs less"
                    ) from error
                yield (*running[done], result)
                bar.update()


def _made_with(task: Task, versions: dict[ModelChoice, str], settings: Settings) -> dict[str, Any]:
    case = task.structure.case
    try:
        content = [[str(v) for v in content_identity(path)[1:]] for path in (case.image, case.labels)]
    except VolumeError:
        content = []
    return {
        **settings.arguments(),
        "weights": versions[task.choice],
        "set": sorted(task.choice.changes),
        "image": content[:1],
        "labels": content[1:],
    }
