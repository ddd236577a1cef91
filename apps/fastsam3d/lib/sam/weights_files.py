"""Writing weights: importing published checkpoints, and making the pair of files that ships from a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save
from torch import Tensor

from .checkpoint_files import WeightsError, file_sha256, read_contents
from .checkpoints import DECODER, ENCODER, GAUSSIAN, check_fit, part, recognise, shapes_of, state_of
from .files import whole_file
from .registry import REGISTRY, SHIPPED, WeightEntry, model_of, plain_name, read_registry, record
from .spec import AnySpec, Sam2dSpec
from .zoo import ALL_SPECS

SHIPPED_MAX_BYTES = 16 * 2**20
_UNKNOWN_LICENCE = "not stated; see where the file comes from"


def import_checkpoint(
    path: Path,
    out_dir: Path,
    decoder: Path | None = None,
    name: str | None = None,
    spec: str | None = None,
    source: WeightEntry | None = None,
) -> Path:
    """Turns a checkpoint of any published layout into a verified safetensors file.

    Args:
        path: training checkpoint, weights, or encoder alone.
        out_dir: folder of imported weights (`model/imported`); the file and its row in registry.json are written there.
        decoder: file whose prompt encoder and mask decoder are used; needed where `path` holds an encoder alone.
        name: of the weights; default: the published row's or the file's own. An earlier import of that name is replaced.
        spec: row of zoo.py, where the tensors do not tell (a residual rule or a sparse attention of one's own).
        source: the published row that the file comes from, for its licence; default: recognised by the file's name.

    Returns:
        The written file.

    Raises:
        WeightsError: the file cannot be read safely, is of an unknown model, or differs from its model; the text names
            the first keys and shapes that differ.
        OSError: the folder cannot be written.
    """
    path, out_dir = Path(path), Path(out_dir)
    contents = read_contents(path)
    state = state_of(contents.value, path.name)
    alone = not part(state, DECODER)
    metadata = {"source": path.name, "source_sha256": file_sha256(path)}
    if decoder is not None:
        decoder = Path(decoder)
        taken = part(state_of(read_contents(decoder).value, decoder.name), DECODER)
        state = part(state, ENCODER) | taken
        metadata |= {"decoder_source": decoder.name, "decoder_sha256": file_sha256(decoder)}
    names = path.name if decoder is None else f"{path.name} with {decoder.name}"
    chosen = choose_spec(shapes_of(state), {"spec": spec} if spec else contents.metadata, names)
    if not part(state, DECODER):
        raise WeightsError(
            f"{names} holds an encoder alone; give the file with its prompt encoder and mask decoder, "
            f"such as {'lite_medsam.pth' if isinstance(chosen, Sam2dSpec) else 'sam_med3d_turbo.pth'}, with --decoder"
        )
    check_fit(state, chosen, names)
    source = source or _published(path.name, chosen, alone)
    name = plain_name(name or (source.name if source else path.stem), "a name for weights (--name)")
    if name in {SHIPPED} | {row.name for row in read_registry(out_dir.parent)[0] if row.url is None}:
        raise WeightsError(f"{name} is the name of weights that ship with the app; take another with --name")
    licence = source.licence if source else contents.metadata.get("licence", _UNKNOWN_LICENCE)
    metadata |= {"spec": chosen.name, "model": model_of(chosen.name), "licence": licence}
    out_dir.mkdir(parents=True, exist_ok=True)
    target = out_dir / f"{name}.safetensors"
    write_safetensors({key: tensor.contiguous().clone() for key, tensor in state.items()}, target, metadata)
    note = f"imported from {names}"
    record(out_dir, _entry(name, (target,), chosen, licence, note))
    return target


def export_run(
    checkpoint: Path,
    out_dir: Path,
    name: str = "fastsam3d_compact",
    release: int = 4,
    licence: str = "Apache-2.0",
    other: Path | None = None,
) -> tuple[Path, Path]:
    """Turns a run's checkpoint.pt (training/) into the pair of files that ships; the averaged weights are taken.

    Args:
        other: checkpoint of another run of the same network, one of which began with the other; the mean of both is taken
            (model soups, Wortsman et al. 2022).

    Returns:
        Encoder and decoder file.

    Raises:
        WeightsError: not such a checkpoint, two that do not fit each other, or a file would be larger than 16 MiB.
        OSError: the folder cannot be written.
    """
    checkpoint, out_dir = Path(checkpoint), Path(out_dir)
    plain_name(name, "--name")
    content, state, spec = _of_run(checkpoint)
    step, minutes = str(content.get("step", "")), f"{float(content.get('seconds') or 0) / 60:.0f}"
    metadata = {"step": step, "minutes": minutes, "recipe": content["config"]}
    note = f"ships with the app; step {step} after {minutes} minutes"
    if other is not None:
        before, second, second_spec = _of_run(Path(other))
        if second_spec != spec or {k: v.shape for k, v in second.items()} != {k: v.shape for k, v in state.items()}:
            raise WeightsError(f"{other} does not fit {checkpoint}: their mean needs two runs of one network")
        state = {k: v.float().lerp(second[k].float(), 0.5) if v.is_floating_point() else v for k, v in state.items()}
        metadata["mean_with"] = json.dumps({"step": before.get("step"), "recipe": before["config"]})
        note += ", in the mean with the run that it began with"
    return write_model(state, spec, out_dir, name, release, licence, metadata, note)


def _of_run(checkpoint: Path) -> tuple[dict, dict[str, Tensor], AnySpec]:
    """Content of a run's checkpoint, its averaged weights, and their spec.

    Raises:
        WeightsError: not such a checkpoint.
    """
    content = read_contents(checkpoint).value
    try:
        average, config = content["average"], json.loads(content["config"])
        spec = ALL_SPECS[config["spec"]]
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f'{checkpoint} is no checkpoint of a training run: it needs "average" and "config" with a known spec ({error})'
        ) from error
    return content, state_of(average, checkpoint.name), spec


def write_model(
    state: Mapping[str, Tensor],
    spec: AnySpec,
    out_dir: Path,
    name: str,
    release: int = 1,
    licence: str = "Apache-2.0",
    metadata: Mapping[str, str] = MappingProxyType({}),
    note: str = "ships with the app",
) -> tuple[Path, Path]:
    """Writes a model's weights in the form that ships: an encoder's and a decoder's safetensors, in float16.

    What is small stays float32: the random matrix of the position encoding (its product is an angle) and, of models with
    batch norms, every vector. A RepViT is written in its trained form; the fused form is derived when it is used. The row
    `<name>-v<release>` of registry.json beside the files gets their hashes, as the model's default.

    Args:
        state: tensors with the keys of `build.Sam3D` or `build.Sam2D`.
        spec: of the zoo.
        name: start of the files' names.
        metadata: texts for the files' headers. note: one line for people.

    Returns:
        Encoder and decoder file.

    Raises:
        WeightsError: the tensors do not fit the spec, are not finite in float16, or a file would be larger than 16 MiB.
        OSError: the folder cannot be written.
    """
    out_dir = Path(out_dir)
    plain_name(name, "--name")
    check_fit(state, spec, name)
    halves = {key: tensor.to(stored_dtype(key, tensor, spec)) for key, tensor in state.items()}
    check_fit(halves, spec, f"{name} in float16")
    metadata = {**metadata, "spec": spec.name, "model": model_of(spec.name), "licence": licence}
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = (out_dir / f"{name}_encoder.safetensors", out_dir / f"{name}_decoder.safetensors")
    for path, prefixes in zip(paths, (ENCODER, DECODER)):
        tensors = {key: tensor.contiguous() for key, tensor in part(halves, prefixes).items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > SHIPPED_MAX_BYTES - 2**16:  # leaves room for the header
            raise WeightsError(
                f"{path.name} would have {size / 2**20:.1f} MiB; a file that ships has at most "
                f"{SHIPPED_MAX_BYTES / 2**20:.0f} MiB: use a smaller spec than {spec.name}"
            )
        write_safetensors(tensors, path, metadata | {"part": path.stem.rpartition("_")[2]})
    record(out_dir, _entry(f"{name.replace('_', '-')}-v{release}", paths, spec, licence, note), default=True)
    return paths


def stored_dtype(key: str, tensor: Tensor, spec: AnySpec) -> torch.dtype:
    """In which type a tensor ships, see `write_model`."""
    if not tensor.is_floating_point():
        return tensor.dtype
    small = key == GAUSSIAN or (isinstance(spec, Sam2dSpec) and tensor.ndim < 2)
    return torch.float32 if small else torch.float16


def choose_spec(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], source: str) -> AnySpec:
    """The spec that a file's metadata names, else the one that its tensors tell.

    Raises:
        WeightsError: an unknown name, no encoder, or no spec fits.
    """
    name = metadata.get("spec")
    if name and name not in ALL_SPECS:
        raise WeightsError(f"{source} names the spec {name!r}; known are {', '.join(ALL_SPECS)}")
    if not part(shapes, ENCODER):
        raise WeightsError(f"{source} holds no image encoder; its first keys are {', '.join(list(shapes)[:5])}")
    return ALL_SPECS[name] if name else recognise(shapes, source)


def write_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a whole file or none, so that a reader never sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    content = save(
        dict(state), metadata=dict(metadata)
    )  # the library's own writer tells no full disk from other faults
    with whole_file(path) as file:
        file.write(content)


def _published(file: str, spec: AnySpec, alone: bool) -> WeightEntry | None:
    """The published row that a file's name and contents agree with."""
    rows = (row for row in REGISTRY.values() if file in row.files)
    return next((row for row in rows if row.spec == spec.name and alone == (row.decoder is not None)), None)


def _entry(name: str, paths: tuple[Path, ...], spec: AnySpec, licence: str, note: str) -> WeightEntry:
    return WeightEntry(
        name,
        model_of(spec.name),
        tuple(path.name for path in paths),
        tuple(file_sha256(path) for path in paths),
        licence,
        spec.name,
        bytes=tuple(path.stat().st_size for path in paths),
        note=note,
    )
