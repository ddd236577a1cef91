"""The models as rows of data."""

from __future__ import annotations

from dataclasses import replace

from .spec import AnySpec, Decoder2dSpec, DecoderSpec, EncoderSpec, RepVitSpec, Sam2dSpec, SamSpec, TinyVitSpec

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
    appearance=True,
    grow=32,
    sharpen=32,
)

_ROWS = (
    # Published: FastSAM3D with 6 and with 12 heads, SAM-Med3D (its turbo weights need the plain residual).
    SamSpec("fastsam3d_published_h6", _STUDENT_6, half=True),
    SamSpec("fastsam3d_published_h12", replace(_STUDENT_6, heads=12), half=True),
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
    SamSpec("sam_med3d", _TEACHER, half=True),
    SamSpec("sam_med3d_fastblock", replace(_TEACHER, residual="normed")),
    # Ours: the compact student that ships, and its sparse sibling.
    SamSpec(
        "fastsam3d_compact",
        _COMPACT,
        _COMPACT_DECODER,
        intensity="percentile_rank",
        lattice="click",
        connected=True,
        half=True,
        first_passes=3,
        background_passes=2,
        steady=0.8,
        zoom=True,
        looks=True,
        far_clicks=8,
    ),
    SamSpec(
        "fastsam3d_compact_sparse",
        replace(_COMPACT, attention="segment_dilated", sparse_configurations=((64, 1), (256, 4), (512, 8))),
        _COMPACT_DECODER,
        intensity="percentile_rank",
        lattice="click",
        connected=True,
        half=True,
        first_passes=3,
        background_passes=2,
        steady=0.8,
        zoom=True,
        looks=True,
        far_clicks=8,
    ),
)

_OURS = next(row for row in _ROWS if row.name == "fastsam3d_compact")
_ROWS += (
    # The default's teacher of 12 layers.
    replace(_OURS, name="fastsam3d_compact_teacher", encoder=replace(_COMPACT, depth=12, feedforward_layers=())),
    # Not shipped yet: tokens that differ from each other, see docs/training.md.
    replace(_OURS, name="fastsam3d_compact_normed", encoder=replace(_COMPACT, token_norm=True)),
)

# The published design in small, for the ablation: its 512 tokens and linear patch embedding, and all that the decoder knows of the
# image passes through the layers. A teacher, students of 12 / m layers, attention in every layer, and sparse attention.
_SMALL = EncoderSpec(
    image_size=64,
    patch=8,
    channels=2,
    width=96,
    depth=12,
    feedforward_layers=(),
    out=96,
    residual="plain",
    relative_position=False,
    token_norm=True,
)
_SMALL_6 = replace(_SMALL, depth=6, feedforward_layers=(0, 1))
_ROWS += tuple(
    SamSpec(
        f"fastsam3d_small_{name}",
        encoder,
        DecoderSpec(
            width=96, mlp_width=384, extra_masks=0, swapped_axes=False, boxes=True, dense_clicks=True, likeness=True
        ),
        intensity="percentile_rank",
        lattice="click",
        connected=True,
        half=True,
    )
    for name, encoder in {
        "teacher": _SMALL,
        "m1": replace(_SMALL, feedforward_layers=(0, 1)),
        "m2": _SMALL_6,
        "m3": replace(_SMALL_6, depth=4),
        "attention": replace(_SMALL_6, feedforward_layers=()),
        "sparse": replace(_SMALL_6, attention="segment_dilated", sparse_configurations=((64, 1), (256, 4), (512, 8))),
    }.items()
)

SPECS: dict[str, SamSpec] = {spec.name: spec for spec in _ROWS}

_REPVIT = {  # widths and depths of the published RepViT family
    "m0_9": RepVitSpec(widths=(48, 96, 192, 384), depths=(3, 3, 15, 2)),
    "m1_0": RepVitSpec(widths=(56, 112, 224, 448), depths=(3, 3, 15, 2)),
    "m1_1": RepVitSpec(widths=(64, 128, 256, 512), depths=(3, 3, 13, 2)),
    "m1_5": RepVitSpec(widths=(64, 128, 256, 512), depths=(5, 5, 25, 4)),
    "m2_3": RepVitSpec(),
}

# Ours: a stride of 8 keeps borders that a stride of 16 has to encode in channels, at the cost of few and narrow blocks.
_COMPACT_DECODER_2D = Decoder2dSpec(
    width=128, heads=4, mlp_width=512, extra_masks=0, iou_width=128, dense_clicks=True, refine=8
)
_COMPACT_REPVIT = RepVitSpec(widths=(32, 64, 128, 192), depths=(2, 2, 5, 1), strides=(2, 1, 1), out=128, detail=8)
_COMPACT_TINYVIT = TinyVitSpec(
    widths=(32, 64, 128, 160),
    depths=(1, 1, 3, 1),
    heads=(1, 2, 4, 5),
    windows=(8, 8, 8, 8),
    stem_strides=(2, 2),
    merge_strides=(2, 1, 1),
    mlp_ratio=3,
    out=128,
    detail=8,
)

_ROWS_2D = (
    Sam2dSpec("litemedsam", TinyVitSpec()),
    # RepMedSAM: M2.3 with the embedding that its run times imply, and as the encoder gives it.
    Sam2dSpec("repmedsam", _REPVIT["m2_3"], upsampling=4),
    Sam2dSpec("repmedsam_grid16", _REPVIT["m2_3"]),
    *(Sam2dSpec(f"repmedsam_{size}", _REPVIT[size], upsampling=4) for size in ("m0_9", "m1_0", "m1_1", "m1_5")),
    # The default that ships, and its teacher.
    Sam2dSpec("repmedsam_compact", _COMPACT_REPVIT, replace(_COMPACT_DECODER_2D, grow=40), margin=1),
    Sam2dSpec("litemedsam_compact", _COMPACT_TINYVIT, _COMPACT_DECODER_2D, margin=1),
)

SPECS_2D: dict[str, Sam2dSpec] = {spec.name: spec for spec in _ROWS_2D}

ALL_SPECS: dict[str, AnySpec] = {**SPECS, **SPECS_2D}


def get_spec(name: str) -> SamSpec:
    """The row of that name.

    Raises:
        KeyError: no such row; the message lists them.
    """
    return _row(SPECS, name)


def get_spec2d(name: str) -> Sam2dSpec:
    """The row of that name among the models for images.

    Raises:
        KeyError: no such row; the message lists them.
    """
    return _row(SPECS_2D, name)


def _row(rows: dict, name: str):
    if name not in rows:
        raise KeyError(f"unknown model spec {name!r}; known: {', '.join(rows)}")
    return rows[name]
