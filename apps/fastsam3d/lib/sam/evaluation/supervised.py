"""A supervised network as the upper reference: cross-validated over the evaluated cases, or trained on others.

It is asked without prompts: one label map a scan, the same at every click. A network never answers about a scan that
trained it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..checkpoint_files import file_sha256
from ..grid import Grid
from ..prompts import Prompts
from ..session import ImageSession
from ..volume_io import VolumeError
from .cases import Case, Problem
from .grids import apart_mm
from .interface import Answer, Ask, ModelError, Wanted
from .scans import read_scan
from .score import Settings, examine, label_map, target_of
from .supervised_network import NetworkPlan, load_network, read_plan, segment, write_network
from .supervised_training import Recipe, Sample, choose_edge, choose_spacing, train, write_sample

NAME = "supervised"
_FILES = "network_*.safetensors"
_SAMPLES = "samples"


@dataclass(frozen=True)
class _Taught:
    """A case that can train: its label values, digests of its image and label map, and its grid."""

    case: Case
    values: tuple[int, ...]
    digests: tuple[str, str]
    grid: Grid


class Supervised:
    """The networks of a folder as one of the evaluation's `Model`s.

    Args:
        folder: what `prepare` filled.

    Raises:
        ModelError: no networks there.
    """

    name = NAME
    clicks, boxes, automatic = False, False, True

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._files = network_files(folder)
        self._plans = [read_plan(path) for path in self._files]
        self._device = device
        self._networks: dict[int, nn.Module] = {}
        self.version = networks_version(folder)

    @contextmanager
    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> Iterator[Ask]:
        """See `Model.open`: takes the first network that did not see the scan."""
        index = self._unseen(path)
        if wanted.label not in self._plans[index].taught:
            raise ModelError(f"none of the scans that trained the network holds label {wanted.label}")

        def ask(prompts: Prompts) -> Answer:
            labels, seconds = self._label_map(index, session)
            return Answer(labels == wanted.label, seconds)

        yield ask

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """It has none to offer."""
        return None

    def _unseen(self, path: Path) -> int:
        digest = _digest(path)
        index = next((n for n, plan in enumerate(self._plans) if digest not in plan.digests), None)
        if index is None:
            raise ModelError(f"every network in {self._files[0].parent} saw {path.name} in training")
        return index

    def _label_map(self, index: int, session: ImageSession) -> tuple[np.ndarray, float]:
        """The scan's label map, and the seconds that it took when it was made."""
        key = (NAME, index)
        found = session.get(key)
        if found is None:
            if index not in self._networks:
                self._networks[index] = load_network(self._files[index], self._plans[index], self._device)
            begin = time.perf_counter()
            labels = segment(self._networks[index], self._plans[index], session.volume, self._device)
            found = labels, time.perf_counter() - begin
            session.put(key, found)
        return found


def network_files(folder: Path) -> list[Path]:
    """The networks of a folder.

    Raises:
        ModelError: there are none.
    """
    files = sorted(folder.glob(_FILES))
    if not files:
        raise ModelError(f"{NAME} needs networks ({_FILES}) in {folder}: leave --weights away to train them")
    return files


def networks_version(folder: Path) -> str:
    """What the networks of a folder are: how many, and a digest of their files."""
    files = network_files(folder)
    digest = hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()
    return f"SegResNet, {len(files)} network{'s' * (len(files) > 1)}, {digest[:12]}"


def what_it_saw(folder: Path) -> str:
    """In one line, how the networks of a folder were trained."""
    plans = [read_plan(path) for path in network_files(folder)]
    scans = ", ".join(str(len(plan.cases)) for plan in plans)
    steps = ", ".join(str(plan.steps) for plan in plans)
    return (
        f"SegResNet of {plans[0].filters} filters on voxels of {plans[0].spacing_mm:g} mm; {len(plans)} trained on "
        f"{scans} other scans with label maps of all structures, {steps} steps in "
        f"{', '.join(f'{plan.minutes:.1f}' for plan in plans)} min; no prompts"
    )


def prepare(
    folder: Path,
    cases: Sequence[Case],
    others: Sequence[Case] | None,
    folds: int,
    recipe: Recipe,
    settings: Settings,
    device: torch.device,
    notice: Callable[[str], None] = lambda text: None,
) -> list[Problem]:
    """Trains the networks that are not there yet.

    Args:
        folder: for the networks; those of an earlier run with the same data and recipe are kept.
        cases: what is evaluated. others: scans to train on; None trains by cross-validation over the cases.
        folds: of the cross-validation, at most one a case.
        settings: of the evaluation; they say which structures there are.
        notice: is told in one line what is done.

    Returns:
        Notes about scans that could not train.

    Raises:
        ModelError: too few scans to train on.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taught, notes = _readable(cases if others is None else others, settings)
    if others is None:
        parts = [[t for t in taught if t not in held] for held in _folds(taught, folds, recipe.seed)]
    else:
        seen = {_digest(path) for case in cases for path in (case.image, case.labels)}
        notes += [_note(t.case, "it is evaluated") for t in taught if not seen.isdisjoint(t.digests)]
        parts = [[t for t in taught if seen.isdisjoint(t.digests)]]
    if not parts or not all(parts):
        raise ModelError(
            f"{NAME} needs scans to train on: two evaluated cases that differ, or others with --train; "
            f"got {len(taught)} of {len(cases if others is None else others)} that can train"
        )
    plans = _plans(parts, recipe, settings)
    paths = [folder / f"network_{n:02d}.safetensors" for n in range(1, len(plans) + 1)]
    for stale in set(folder.glob(_FILES)) - set(paths):
        stale.unlink()
    todo = [n for n, (path, plan) in enumerate(zip(paths, plans)) if not _is_there(path, plan)]
    if todo:
        needed = {t.case: t for n in todo for t in parts[n]}
        with _samples(folder / _SAMPLES, needed.values(), plans[0], recipe.seed, settings.parts) as (samples, faults):
            notes += faults
            for n in todo:
                notice(f"{NAME}: training network {n + 1} of {len(plans)}, at most {recipe.minutes:g} min")
                notice(f"{NAME}: {_train(paths[n], plans[n], parts[n], samples, recipe, device)}")
    return notes


def _readable(cases: Sequence[Case], settings: Settings) -> tuple[list[_Taught], list[Problem]]:
    """The cases whose label maps can train; volumes only."""
    taught, notes = [], []
    for case in cases:
        structures, problems = examine(case, settings, {})
        notes += [_note(case, problem.reason) for problem in problems]
        if not structures:
            continue
        grid = label_map(case).grid
        if min(grid.shape) == 1:
            notes.append(_note(case, "it is a flat image"))
            continue
        taught.append(
            _Taught(case, tuple(s.label for s in structures), (_digest(case.image), _digest(case.labels)), grid)
        )
    return taught, notes


def _note(case: Case, reason: str) -> Problem:
    return Problem(case.name, f"did not train the reference: {reason}", model=NAME, scored=True)


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a large one that was read before it is remembered."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def _folds(taught: Sequence[_Taught], folds: int, seed: int) -> list[list[_Taught]]:
    """Parts of about one size; scans that share a file's content (an image, or a label map) stay together."""
    groups: list[tuple[set[str], list[_Taught]]] = []
    for one in taught:
        same = [g for g in groups if not g[0].isdisjoint(one.digests)]
        merged = set(one.digests).union(*(g[0] for g in same)), [t for g in same for t in g[1]] + [one]
        groups = [g for g in groups if g not in same] + [merged]
    order = np.random.default_rng(seed).permutation(len(groups))
    parts: list[list[_Taught]] = [[] for _ in range(min(folds, len(groups)))]
    for n in sorted(order.tolist(), key=lambda n: -len(groups[n][1])):
        min(parts, key=len).extend(groups[n][1])
    return parts if len(parts) > 1 else []


def _plans(parts: Sequence[Sequence[_Taught]], recipe: Recipe, settings: Settings) -> list[NetworkPlan]:
    """One grid and one list of channels for all networks; each knows what it is taught."""
    grids = [t.grid for part in parts for t in part]
    spacing = choose_spacing(grids)
    edge = choose_edge(grids, spacing)
    values = tuple(sorted({v for part in parts for t in part for v in t.values}))
    plans = []
    for part in parts:
        digests = tuple(d for t in part for d in t.digests)
        decided = json.dumps([asdict(recipe), values, spacing, edge, settings.parts, sorted(digests)])
        taught = tuple(sorted({v for t in part for v in t.values}))
        names = tuple(t.case.name for t in part)
        made_with = hashlib.sha256(decided.encode()).hexdigest()
        plans.append(NetworkPlan(values, taught, spacing, edge, recipe.filters, names, digests, made_with=made_with))
    return plans


def _is_there(path: Path, plan: NetworkPlan) -> bool:
    try:
        return read_plan(path).made_with == plan.made_with
    except ModelError:
        return False


@contextmanager
def _samples(folder: Path, taught: Iterable[_Taught], plan: NetworkPlan, seed: int, parts: str):
    """Yields the resampled scans {case: sample}, in files that are removed at the end, and notes about the others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng = np.random.default_rng(seed)
    samples: dict[Case, Sample] = {}
    faults: list[Problem] = []
    try:
        for n, one in enumerate(tqdm(list(taught), desc="training scans", unit="scan", leave=False, disable=None)):
            try:
                samples[one.case] = _sample(one, plan, folder / str(n), rng, parts)
            except (VolumeError, MemoryError) as error:
                faults.append(_note(one.case, str(error)))
        yield samples, faults
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sample(one: _Taught, plan: NetworkPlan, stem: Path, rng: np.random.Generator, parts: str) -> Sample:
    volume, labels = read_scan(one.case.image), label_map(one.case)
    fault = apart_mm(volume.grid, labels.grid)
    if fault:
        raise VolumeError(f"label map and image must have one grid: the label map has {fault}")
    target = np.zeros(labels.array.shape, dtype=np.int32)
    for value in one.values:
        target[target_of(labels, value, parts)] = value
    return write_sample(volume, target, plan.values, plan.spacing_mm, stem, rng)


def _train(
    path: Path,
    plan: NetworkPlan,
    part: Sequence[_Taught],
    samples: Mapping[Case, Sample],
    recipe: Recipe,
    device: torch.device,
) -> str:
    """Trains one network and writes it.

    Returns:
        What came of it, in words.

    Raises:
        ModelError: none of its scans can be read.
    """
    used = [t for t in part if t.case in samples]
    if not used:
        raise ModelError(f"{NAME} needs scans to train on; none of {', '.join(plan.cases)} can be read")
    begin = time.monotonic()
    with tqdm(total=100, desc="training", unit="%", leave=False, disable=None) as bar:
        network, steps, loss = train(
            plan, [samples[t.case] for t in used], recipe, device, lambda share: bar.update(int(100 * share) - bar.n)
        )
    minutes = (time.monotonic() - begin) / 60
    write_network(
        path,
        replace(
            plan,
            taught=tuple(sorted({v for t in used for v in t.values})),
            cases=tuple(t.case.name for t in used),
            digests=tuple(d for t in used for d in t.digests),
            steps=steps,
            minutes=round(minutes, 2),
        ),
        network.state_dict(),
    )
    return f"{len(used)} scans, {steps} steps in {minutes:.1f} min, loss {loss:.3f}"
