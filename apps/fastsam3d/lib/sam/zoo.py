"""The models as rows of data."""

from __future__ import annotations

from dataclasses import replace

from .spec import DecoderSpec, EncoderSpec, SamSpec

_STUDENT_6 = EncoderSpec()
_TEACHER = EncoderSpec(
    depth=12, heads=12, residual="plain", feedforward_layers=(), window=14, global_layers=(2, 5, 8, 11)
)
_COMPACT = EncoderSpec(
    channels=2,
    width=288,
    heads=6,
    out=192,
    residual="plain",
    relative_position=False,
    stem_widths=(16, 32, 96),
)
_COMPACT_DECODER = DecoderSpec(
    width=192,
    mlp_width=768,
    extra_masks=0,
    swapped_axes=False,
    boxes=True,
    dense_clicks=True,
    refine=True,
)

_ROWS = (
    # Published: FastSAM3D with 6 and with 12 heads, SAM-Med3D (its turbo weights need the plain residual).
    SamSpec("fastsam3d_published_h6", _STUDENT_6),
    SamSpec("fastsam3d_published_h12", replace(_STUDENT_6, heads=12)),
    SamSpec("fastsam3d_published_h6_strided", replace(_STUDENT_6, attention="strided")),
    SamSpec(
        "fastsam3d_published_h6_sparse",
        replace(
            _STUDENT_6,
            attention="segment_dilated",
            relative_position=False,
            sparse_configurations=((64, 1), (256, 4), (512, 8)),
        ),
    ),
    SamSpec("sam_med3d", _TEACHER),
    SamSpec("sam_med3d_fastblock", replace(_TEACHER, residual="normed")),
    # Ours: the compact student that ships, and its sparse sibling.
    SamSpec("fastsam3d_compact", _COMPACT, _COMPACT_DECODER, intensity="percentile_rank", lattice="click"),
    SamSpec(
        "fastsam3d_compact_sparse",
        replace(_COMPACT, attention="segment_dilated", sparse_configurations=((64, 1), (256, 4), (512, 8))),
        _COMPACT_DECODER,
        intensity="percentile_rank",
        lattice="click",
    ),
)

SPECS: dict[str, SamSpec] = {spec.name: spec for spec in _ROWS}


def get_spec(name: str) -> SamSpec:
    """The row of that name.

    Raises:
        KeyError: no such row; the message lists them.
    """
    if name not in SPECS:
        raise KeyError(f"unknown model spec {name!r}; known: {', '.join(SPECS)}")
    return SPECS[name]
