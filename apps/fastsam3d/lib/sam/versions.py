"""Weights that the training gate accepted: publishing, history, rollback. See weights.py for the folder's layout.

    accepted/<model>/<name>.safetensors   the weights of one version
    accepted/<model>/current.json         the pointer: which of them is served; absent: what is imported or ships
    accepted/<model>/history/<name>.json  one record a run, accepted or not, and one a rollback

Each file is written beside, flushed and renamed; the pointer is the last. So a process that is killed at any moment
leaves the old version or the new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .build import Sam2D, Sam3D
from .checkpoint_files import WeightsError, read_header
from .checkpoints import BASE, ROUTER
from .files import whole_file, write_text
from .registry import model_of, plain_name
from .spec import AnySpec
from .weights import ACCEPTED, POINTER, version_of
from .weights_files import stored_dtype, write_safetensors

HISTORY = "history"
DEFAULT = "default"
"""What a rollback calls the weights that are imported or ship."""

KEPT = 10
"""So many versions keep their files; older ones keep only their record."""


@dataclass(frozen=True)
class Record:
    """One line of the history.

    Attributes:
        name: of the version or the event. time: ISO 8601, UTC.
        event: "accepted", "refused", or "rollback".
        version: of the weights (first digits of their hash), or "" if none were kept.
        base: name of the weights that served when the run began, or that a rollback left.
        reason: why, in one sentence. metrics: what the gate measured.
    """

    name: str
    time: str
    event: str
    version: str
    base: str
    reason: str
    metrics: Mapping[str, Any]


def folder_of_accepted(model_dir: Path, model: str) -> Path:
    """Where a model's accepted versions lie."""
    return Path(model_dir) / ACCEPTED / model


def write_candidate(
    network: Sam3D | Sam2D,
    path: Path,
    metadata: Mapping[str, str],
    base: Sam3D | Sam2D | None = None,
    router: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a network as it would be served: in the types in which weights ship, see `weights_files.stored_dtype`.

    Args:
        base, router: the network for all that this one was not taught, and the tensors of the router between them.

    Raises:
        OSError: it cannot be written.
    """
    spec = network.spec
    state = _stored(network)
    if base is not None and router is not None:
        state |= {BASE + key: tensor for key, tensor in _stored(base).items()}
        state |= {ROUTER + key: tensor.to("cpu").contiguous() for key, tensor in router.items()}
    write_safetensors(state, path, {"spec": spec.name, "model": model_of(spec.name), **metadata})


def _stored(network: Sam3D | Sam2D) -> dict[str, Tensor]:
    return {
        key: tensor.detach().to("cpu", stored_dtype(key, tensor, network.spec)).contiguous()
        for key, tensor in network.state_dict().items()
    }


def publish(candidate: Path, model_dir: Path, spec: AnySpec, record: Record) -> None:
    """Makes a candidate's file the version that is served from the next click on.

    Raises:
        WeightsError: the record's name is no plain name. OSError: the folder cannot be written.
    """
    plain_name(record.name, "the name of a version")
    model = model_of(spec.name)
    folder = folder_of_accepted(model_dir, model)
    (folder / HISTORY).mkdir(parents=True, exist_ok=True)
    target = folder / f"{record.name}.safetensors"
    with whole_file(target) as file:
        file.write(Path(candidate).read_bytes())
    write_record(model_dir, model, record)
    _point_to(folder, target)
    _prune(folder, {target.name})


def write_record(model_dir: Path, model: str, record: Record) -> None:
    """Adds a line to the history."""
    folder = folder_of_accepted(model_dir, model) / HISTORY
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: getattr(record, key) for key in Record.__dataclass_fields__}
    write_json(folder / f"{plain_name(record.name, 'the name of a record')}.json", content)


def history(model_dir: Path, model: str) -> list[Record]:
    """The records, oldest first; files that are no records are left out."""
    records = []
    for path in sorted((folder_of_accepted(model_dir, model) / HISTORY).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            records.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(records, key=lambda record: (record.time, record.name))


def current(model_dir: Path, model: str) -> str | None:
    """Name of the accepted version that is served, or None."""
    pointer = folder_of_accepted(model_dir, model) / POINTER
    try:
        return str(json.loads(pointer.read_text(encoding="utf-8"))["name"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{pointer} cannot be read ({error!r}); weights rollback default removes it") from error


def rollback(model_dir: Path, model: str, to: str | None, time: str) -> str:
    """Serves an earlier version from the next click on.

    Args:
        to: name of a version; DEFAULT for what is imported or ships; None for the one before the current one.
        time: of the record, ISO 8601.

    Returns:
        The name of what is served now, or DEFAULT.

    Raises:
        WeightsError: there is nothing to go back to, or no such version.
    """
    folder = folder_of_accepted(model_dir, model)
    records = {record.name: record for record in history(model_dir, model) if record.event == "accepted"}
    there = {name: record for name, record in records.items() if (folder / f"{name}.safetensors").is_file()}
    now = None
    with suppress(WeightsError):  # a broken pointer is left by any rollback
        now = current(model_dir, model)
    if to is None and not (folder / POINTER).exists():
        raise WeightsError(f"{model} serves what is imported or ships; there is no accepted version to leave")
    if to is None:
        base = records[now].base if now in records else ""
        to = base if base in there else DEFAULT
    if to != DEFAULT and to not in there:
        raise WeightsError(f"there is no version {to!r} of {model}; there are {', '.join([*there, DEFAULT])}")
    if to == DEFAULT:
        (folder / POINTER).unlink(missing_ok=True)
    else:
        _point_to(folder, folder / f"{to}.safetensors")
    name = f"rollback-{re.sub('[^0-9]', '', time)}"
    write_record(model_dir, model, Record(name, time, "rollback", "", now or DEFAULT, f"{to} serves again", {}))
    return to


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(Path(path), json.dumps(content, indent=2) + "\n")


def _point_to(folder: Path, path: Path) -> None:
    spec = read_header(path)[1].get("spec", "")
    pointer = {"name": path.stem, "files": [path.name], "spec": spec, "version": version_of((path,))}
    write_json(folder / POINTER, pointer)


def _prune(folder: Path, keep: Iterable[str]) -> None:
    """Removes the weights of old versions; their records stay."""
    files = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files[KEPT:]:
        if path.name not in keep:
            path.unlink(missing_ok=True)
