"""Which network a checkpoint belongs to, and whether it fits: key maps, recognition, strict comparison.

A state is a dictionary of tensors whose keys are those of `build.Sam3D` or `build.Sam2D`, which are the published ones:
`image_encoder.*`, `prompt_encoder.*`, `mask_decoder.*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .build import network_class
from .checkpoint_files import WeightsError
from .spec import AnySpec, EncoderSpec, Sam2dSpec
from .zoo import SPECS, SPECS_2D

ENCODER, DECODER = ("image_encoder.",), ("prompt_encoder.", "mask_decoder.")
BASE, ROUTER = "base.", "router."
"""What a fine-tuned version carries beside its network: the one for all that it was not taught, and the choice (router.py)."""

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
COUNTER = ".num_batches_tracked"  # of a batch norm, a whole number
SHOWN = 5  # differences of a kind that an error names

_WRAPPERS = ("model_state_dict", "average", "state_dict", "model")
_OUTER_PREFIXES = ("module.", "_orig_mod.", "model.", "sam.")
_BARE_ENCODER = ("pos_embed", "patch_embed.", "blocks.", "neck.", "features.", "layers.")
_ENCODER_2D = ("image_encoder.patch_embed.seq.", "image_encoder.features.")  # TinyViT, RepViT
_BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.")
# The keys do not tell a residual rule or a sparse attention without tables of its own; these are what is published
# and what ships. Other rows of the zoo are chosen by name or by a file's metadata. (Of the models for images all rows are
# recognised, except that tensors do not tell whether the embedding is enlarged: the enlarged row comes first.)
_RECOGNISED = (
    "fastsam3d_published_h6",
    "fastsam3d_published_h12",
    "fastsam3d_published_h6_sparse",
    "sam_med3d",
    "fastsam3d_compact",
)
Shapes = Mapping[str, tuple[int, ...]]


class Traits(NamedTuple):
    """What the tensors of an encoder tell. heads: None without relative position; window: 0 without windows."""

    stem: bool
    width: int
    depth: int
    heads: int | None
    window: int


def state_of(value: Any, source: str) -> dict[str, Tensor]:
    """The tensors of an unpickled checkpoint, with the keys of `Sam3D` or `Sam2D`.

    Accepts a training checkpoint (`model_state_dict`, or a run's `average`), plain weights, wrappers' prefixes such as
    `module.`, and an encoder alone without its prefix. What a version carries beside its network is left out.

    Args:
        value: what the file holds. source: its name, for errors.

    Raises:
        WeightsError: no dictionary of tensors, or one of a model for images that has no place here (SAM's own ViT).
    """
    state = value
    if isinstance(state, Mapping):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), state)
        state = {key: tensor for key, tensor in state.items() if not str(key).startswith((BASE, ROUTER))}
    if not isinstance(state, Mapping) or not any(isinstance(tensor, Tensor) for tensor in state.values()):
        kind = f"the keys {_listed(state)}" if isinstance(state, Mapping) else f"a {type(value).__name__}"
        raise WeightsError(f"{source} holds no weights: expected a dictionary of tensors, found {kind}")
    strange = [key for key, tensor in state.items() if not isinstance(key, str) or not isinstance(tensor, Tensor)]
    if strange:
        raise WeightsError(f"{source} holds things that are not tensors among its weights: {_listed(strange)}")
    prefix = True
    while prefix:
        prefix = next((p for p in _OUTER_PREFIXES if all(key.startswith(p) for key in state)), None)
        state = {key[len(prefix or "") :]: tensor for key, tensor in state.items()}
    if not any(key.startswith(ENCODER + DECODER) for key in state):
        if not any(key.startswith(_BARE_ENCODER) for key in state):
            raise WeightsError(
                f"{source} holds no part of a promptable segmenter (image_encoder, prompt_encoder, mask_decoder); "
                f"its first keys are {_listed(state)}"
            )
        state = {ENCODER[0] + key: tensor for key, tensor in state.items()}
    _refuse_vit_2d(state, source)
    return state


def part(state: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The entries under these prefixes."""
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape by key."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@cache
def expected_shapes(spec: AnySpec) -> Shapes:
    """Shape by key of that spec's networks; built without memory."""
    with torch.device("meta"):
        return shapes_of(network_class(spec)(spec).state_dict())


def recognise(shapes: Shapes, source: str) -> AnySpec:
    """The zoo's row of an encoder, from the shapes of its tensors.

    rel_pos_d of [15, 128] tells 6 heads and of [15, 64] 12, [27, 64] the teacher's windows.

    Raises:
        WeightsError: no row fits; the text names what differs from the nearest.
    """
    encoder = part(shapes, ENCODER)
    if any(key.startswith(_ENCODER_2D) for key in encoder):
        return _recognise_2d(encoder, source)
    found = _traits(encoder)
    for name in _RECOGNISED:
        if found == _traits_of(SPECS[name].encoder):
            return SPECS[name]
    nearest = max(
        (SPECS[name] for name in _RECOGNISED), key=lambda s: len(encoder.items() & expected_shapes(s).items())
    )
    heads = "" if found.heads is None else f", {found.heads} heads"
    raise WeightsError(
        f"{source} fits no known model (an encoder of depth {found.depth}, width {found.width}{heads}). "
        f"Nearest is {nearest.name}: {differences(encoder, part(expected_shapes(nearest), ENCODER))}"
    )


def check_fit(state: Mapping[str, Tensor], spec: AnySpec, source: str, expected: Shapes | None = None) -> None:
    """Strict comparison with the spec's networks.

    Args:
        source: the files' names, for errors. expected: shapes of networks that are built already.

    Raises:
        WeightsError: naming the first keys that are missing, unexpected or of another shape, or tensors that are not
            finite floating-point numbers (apart from the counters of batch norms).
    """
    problem = differences(shapes_of(state), expected or expected_shapes(spec))
    if problem:
        raise WeightsError(f"{source} does not fit {spec.name}: {problem}")
    for key, tensor in state.items():
        numbers = tensor.is_floating_point() or (key.endswith(COUNTER) and tensor.dtype == torch.int64)
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and numbers
        if not plain or tensor.is_quantized:
            raise WeightsError(
                f"{source}: {key} is not a plain floating-point tensor ({tensor.dtype}, {tensor.layout})"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{source}: {key} holds values that are not finite; the file is damaged")


def differences(found: Shapes, expected: Shapes) -> str:
    """In words, the first keys that are missing, unexpected, or of another shape; "" if there are none."""
    missing = [f"{key} {list(shape)}" for key, shape in expected.items() if key not in found]
    unexpected = [f"{key} {list(shape)}" for key, shape in found.items() if key not in expected]
    other = [
        f"{key} {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    return "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds if keys)


def _traits(encoder: Shapes) -> Traits:
    blocks = [int(match[1]) for key in encoder if (match := _BLOCK.match(key))]
    tables = [shape for key, shape in encoder.items() if key.endswith(".rel_pos_d") and len(shape) == 2]
    position = encoder.get("image_encoder.pos_embed", ())
    width = position[-1] if position else 0
    edge = position[1] if len(position) == 5 else 0
    windows = [(shape[0] + 1) // 2 for shape in tables if shape[0] != 2 * edge - 1]
    heads = width // tables[0][1] if tables and tables[0][1] else None
    stem = "image_encoder.patch_embed.conv1.weight" in encoder
    return Traits(stem, width, max(blocks, default=-1) + 1, heads, max(windows, default=0))


def _traits_of(spec: EncoderSpec) -> Traits:
    heads = spec.heads if spec.relative_position else None
    return Traits(bool(spec.stem_widths), spec.width, spec.depth, heads, spec.window)


def _recognise_2d(encoder: Shapes, source: str) -> Sam2dSpec:
    """The first row for images whose encoder has exactly these tensors."""
    found = next((s for s in SPECS_2D.values() if part(expected_shapes(s), ENCODER) == encoder), None)
    if found is None:
        expected = {name: part(expected_shapes(spec), ENCODER) for name, spec in SPECS_2D.items()}
        nearest = max(expected, key=lambda name: len(encoder.items() & expected[name].items()))
        raise WeightsError(
            f"{source} fits no known model for images. Nearest is {nearest}: {differences(encoder, expected[nearest])}"
        )
    return found


def _refuse_vit_2d(state: Mapping[str, Tensor], source: str) -> None:
    patch = state.get("image_encoder.patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4:
        raise WeightsError(
            f"{source} holds a 2D ViT encoder (SAM, MedSAM), which is not supported; "
            "models for images here are LiteMedSAM (TinyViT) and RepViT-SAM or RepMedSAM (RepViT)"
        )


def _listed(names: Any) -> str:
    names = [str(name)[:120] for name in names]
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"
