"""Which weights a model uses, and loading them: verified, safe, strict. Nothing here downloads anything.

Order of choice: what the user configured; what the training gate accepted last; imported files, the newest first; what
ships with the app. A choice that turns out damaged is an error and never a reason to take the next one.

Folders below the app's `model`:

    registry.json, *.safetensors         what ships (registry.py)
    imported/                            what `weights import` and `weights fetch` wrote, with its own registry.json
    accepted/<model>/current.json        what the training gate accepted: {"files": [one or two names in that folder],
                                         "spec": row of zoo.py, "version": see `version_of`, "name": optional}. A
                                         trainer writes the files first and replaces the pointer last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from .build import Sam2D, Sam3D, build_network
from .checkpoint_files import SUFFIXES, WeightsError, file_sha256, read_contents, read_header
from .checkpoints import BASE, DECODER, ROUTER, check_fit, part, shapes_of, state_of
from .registry import IMPORTED, REGISTRY, WeightEntry, entries, folder_of, imported, model_of, plain_name, read_registry
from .spec import AnySpec
from .weights_files import choose_spec
from .zoo import ALL_SPECS

__all__ = ["REGISTRY", "ResolvedWeights", "WeightEntry", "WeightsError", "load_sam", "resolve", "verify", "version_of"]

ACCEPTED = "accepted"
TAUGHT = "taught"
"""Key of a file's header that lists the names of the structures that its network was trained on."""

POINTER = "current.json"
_MODELS = tuple(dict.fromkeys(model_of(name) for name in ALL_SPECS))
_HALVES = ("_encoder.safetensors", "_decoder.safetensors")
_COMMAND = "python apps/fastsam3d weights"


@dataclass(frozen=True)
class ResolvedWeights:
    """The chosen files.

    Attributes:
        name: registry name, or the file's own. version: see `version_of`. paths: one file, or encoder and decoder.
        origin: "configured", "accepted", "imported" or "shipped".
    """

    name: str
    paths: tuple[Path, ...]
    spec: AnySpec
    version: str
    origin: str


def resolve(model: str, model_dir: str | Path, configured: str | Path | None = None) -> ResolvedWeights:
    """Chooses a model's weights and checks their hashes; cheap when nothing changed.

    Args:
        model: "fastsam3d", "sam_med3d", "repmedsam" or "litemedsam".
        model_dir: the app's folder of weights.
        configured: the user's choice: a name of the registry, a file, or a folder that holds one.

    Raises:
        WeightsError: there are none, they are damaged, or the configured ones are not there or for another model.
    """
    model_dir = Path(model_dir)
    if model not in _MODELS:
        raise WeightsError(f"there is no model {model!r}; there are {', '.join(_MODELS)}")
    if configured:
        found = _configured(str(configured), model, model_dir)
    else:
        found = _accepted(model, model_dir) or _imported(model, model_dir) or _shipped(model, model_dir)
    if found is None:
        raise WeightsError(
            f"there are no weights for {model} in {model_dir}; {_COMMAND} list shows what can be fetched or imported"
        )
    if model_of(found.spec.name) != model:
        named = " and ".join(map(str, found.paths))
        raise WeightsError(f"{named} holds weights of {found.spec.name}, which the model {model} cannot use")
    return found


def load_sam(resolved: ResolvedWeights, device: torch.device | str = "cpu") -> Sam3D | Sam2D:
    """The network with its weights: float32, in eval mode, without gradients; a RepViT in its trained form.

    Raises:
        WeightsError: a file cannot be read safely, does not fit the spec exactly, or changed since it was chosen.
    """
    return _load(_read(resolved.paths), resolved, device)


def has_router(resolved: ResolvedWeights) -> bool:
    """Whether it is a version with two networks, see router.py.

    Raises:
        WeightsError: the file cannot be read.
    """
    files = [path for path in resolved.paths if path.suffix == ".safetensors"]
    return any(key.startswith(ROUTER) for path in files for key in read_header(path)[0])


@dataclass(frozen=True)
class Beside:
    """What a version carries beside its network: the base network, the router's tensors, and the names of what was taught."""

    base: Sam3D | Sam2D
    router: dict[str, Tensor]
    names: tuple[str, ...]


def load_beside(resolved: ResolvedWeights, device: torch.device | str = "cpu") -> Beside | None:
    """What a version carries beside its network, the base loaded like it; None of weights with one network.

    Raises:
        WeightsError: as `load_sam`.
    """
    if not has_router(resolved):
        return None
    content = {key: tensor for path in resolved.paths for key, tensor in read_contents(path).value.items()}
    base, router = ({k.removeprefix(p): v for k, v in content.items() if k.startswith(p)} for p in (BASE, ROUTER))
    text = next((read_header(path)[1][TAUGHT] for path in resolved.paths if TAUGHT in read_header(path)[1]), "[]")
    try:
        names = tuple(str(name) for name in json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{_names(resolved.paths)}: {TAUGHT} must be a JSON list of names ({error})") from error
    return Beside(_load(base, resolved, device), router, names)


def _load(state: Mapping[str, Tensor], resolved: ResolvedWeights, device: torch.device | str) -> Sam3D | Sam2D:
    model = build_network(resolved.spec)
    check_fit(state, resolved.spec, _names(resolved.paths), shapes_of(model.state_dict()))
    own = {
        key: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for key, tensor in state.items()
    }
    model.load_state_dict(own, strict=True, assign=True)
    if version_of(resolved.paths) != resolved.version:
        raise WeightsError(f"{_names(resolved.paths)} changed while it was being loaded; try again")
    return model.to(device).eval().requires_grad_(False)


def version_of(paths: Sequence[Path]) -> str:
    """First 12 hex digits of the file's sha256; of two files, of the sha256 of their hex digests one after the other.

    Raises:
        WeightsError: a file cannot be read.
    """
    digests = [_digest(path) for path in paths]
    return (digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())[:12]


def verify(entry: WeightEntry, model_dir: str | Path) -> tuple[Path, ...]:
    """The row's files, which must be there with the recorded hashes.

    Raises:
        WeightsError: a file is missing, or its hash differs; the text says what to do.
    """
    folder = folder_of(entry, Path(model_dir))
    remedy = "put the app's own file back, or choose other weights"
    if folder.name == IMPORTED:
        remedy = f"import its source again ({entry.note}), or delete it"
    paths = tuple(folder / file for file in entry.files)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        if entry.url:
            remedy = f"get it: {_COMMAND} fetch {entry.name}"
        elif entry.name in REGISTRY and entry.decoder:
            remedy = f"get it by hand ({entry.note})"
        raise WeightsError(f"{entry.name}: {_names(missing)} is not in {folder}; {remedy}")
    for path, expected in zip(paths, entry.sha256):
        if expected != "unpinned" and _digest(path) != expected:
            raise WeightsError(
                f"{path} is damaged or was replaced: its sha256 must be {expected}, got {_digest(path)}; {remedy}"
            )
    return paths


def _configured(choice: str, model: str, model_dir: Path) -> ResolvedWeights:
    rows = entries(model_dir)
    if choice in rows:
        paths = verify(rows[choice], model_dir)
        return ResolvedWeights(choice, paths, ALL_SPECS[rows[choice].spec], version_of(paths), "configured")
    path = Path(choice).expanduser()
    if path.is_dir():
        return _in_folder(path, model)
    if not path.is_file():
        raise WeightsError(f"the configured weights {choice} are not there; {_what_is_there(path, rows, model_dir)}")
    encoder, decoder = _HALVES
    half = next((end for end in _HALVES if path.name.endswith(end)), None)
    if half:
        path = path.with_name(path.name.removesuffix(half) + encoder)
        pair = (path, path.with_name(path.name.removesuffix(encoder) + decoder))
        return _from_files(pair if all(p.is_file() for p in pair) else (Path(choice).expanduser(),))
    return _from_files((path,))


def _in_folder(folder: Path, model: str) -> ResolvedWeights:
    """The weights of a folder: its registry's default or newest row for the model, else its only file or pair."""
    rows, defaults = read_registry(folder)
    rows = [row for row in rows if row.model == model]
    row = next((row for row in rows if row.name == defaults.get(model)), rows[-1] if rows else None)
    if row:
        paths = verify(row, folder)
        return ResolvedWeights(row.name, paths, ALL_SPECS[row.spec], version_of(paths), "configured")
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    pair = len(files) == 2 and all(any(path.name.endswith(end) for path in files) for end in _HALVES)
    if len(files) == 1 or pair:
        return _from_files(tuple(reversed(files)) if pair else tuple(files))
    found = ", ".join(path.name for path in files) or "none"
    raise WeightsError(f"the folder {folder} must hold one weights file, or an encoder and a decoder; it holds {found}")


def _from_files(paths: tuple[Path, ...]) -> ResolvedWeights:
    name = paths[0].stem.removesuffix("_encoder")
    return ResolvedWeights(name, paths, _spec_of(paths), version_of(paths), "configured")


def _accepted(model: str, model_dir: Path) -> ResolvedWeights | None:
    pointer = model_dir / ACCEPTED / model / POINTER
    try:
        content = json.loads(pointer.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{pointer} cannot be read as JSON: {error}") from error
    remedy = f"delete {pointer} to go back to what is imported or ships"
    try:
        spec = ALL_SPECS[content["spec"]]
        paths = tuple(pointer.parent / plain_name(file, f"a file in {pointer}") for file in content["files"])
        expected, name = content["version"], str(content.get("name") or f"{model}-accepted")
    except (LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{pointer} must name files, a known spec and a version ({error!r}); {remedy}") from error
    if len(paths) not in (1, 2):
        raise WeightsError(f"{pointer} must name one or two files, got {len(paths)}; {remedy}")
    version = version_of(paths)
    if version != expected:
        raise WeightsError(f"{_names(paths)} in {pointer.parent} must have version {expected}, got {version}; {remedy}")
    return ResolvedWeights(name, paths, spec, version, "accepted")


def _imported(model: str, model_dir: Path) -> ResolvedWeights | None:
    for row in reversed(imported(model_dir)):
        if row.model == model and all((folder_of(row, model_dir) / file).is_file() for file in row.files):
            paths = verify(row, model_dir)
            return ResolvedWeights(row.name, paths, ALL_SPECS[row.spec], version_of(paths), "imported")
    return None


def _shipped(model: str, model_dir: Path) -> ResolvedWeights | None:
    rows, defaults = read_registry(model_dir)
    row = next((row for row in rows if row.name == defaults.get(model)), None)
    if row is None:
        return None
    if not row.pinned:
        raise WeightsError(f"{row.name} ships with the app, so its sha256 must be in {model_dir / 'registry.json'}")
    paths = verify(row, model_dir)
    return ResolvedWeights(row.name, paths, ALL_SPECS[row.spec], version_of(paths), "shipped")


def _what_is_there(path: Path, rows: dict[str, WeightEntry], model_dir: Path) -> str:
    present = [
        row.name for row in rows.values() if all((folder_of(row, model_dir) / file).is_file() for file in row.files)
    ]
    absent = [row.name for row in rows.values() if row.name not in present]
    beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES) if path.name != str(path) else []
    text = f"by name there are {', '.join(present) or 'none'} (known, to be fetched or imported: {', '.join(absent)})"
    return f"{text}; {path.parent} holds {', '.join(beside[:10])}" if beside else text


def _read(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one file, or of an encoder's and a decoder's."""
    state: dict[str, Tensor] = {}
    for path in paths:
        found = state_of(read_contents(path).value, path.name)
        if state.keys() & found.keys():
            raise WeightsError(f"{_names(paths)} hold the same tensors; give one encoder and one decoder")
        state |= found
    _check_whole(state, paths)
    return state


def _check_whole(keys: Mapping[str, object], paths: Sequence[Path]) -> None:
    if not part(keys, DECODER):
        raise WeightsError(
            f"{_names(paths)} holds an encoder alone; complete it: {_COMMAND} import {paths[0]} --decoder FILE"
        )


def _names(paths: Sequence[Path]) -> str:
    return " and ".join(path.name for path in paths)


def _identity(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    return _digest_of(*_identity(path))


@lru_cache(maxsize=64)
def _digest_of(path: str, size: int, mtime_ns: int) -> str:
    return file_sha256(Path(path))


def _spec_of(paths: tuple[Path, ...]) -> AnySpec:
    return _spec_of_files(tuple(_identity(path) for path in paths))


@lru_cache(maxsize=64)
def _spec_of_files(identities: tuple[tuple[str, int, int], ...]) -> AnySpec:
    paths = [Path(identity[0]) for identity in identities]
    if all(path.suffix == ".safetensors" for path in paths):
        headers = [read_header(path) for path in paths]
        names = {metadata.get("spec") for _, metadata in headers}
        if len(names) > 1:
            raise WeightsError(f"{_names(paths)} name different specs: {', '.join(map(str, names))}")
        if names != {None}:
            shapes = {key: shape for shapes, _ in headers for key, shape in shapes.items()}
            _check_whole(shapes, paths)
            return choose_spec(shapes, headers[0][1], _names(paths))
    return choose_spec(shapes_of(_read(paths)), {}, _names(paths))
