"""Frozen descriptions of the networks. A variant is a row of data (zoo.py), never a second builder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EncoderSpec:
    """A 3D image encoder.

    Attributes:
        image_size: edge of the input cube, voxels.
        patch: edge of one token's patch, voxels.
        channels: input channels (see SamSpec.intensity).
        width, depth, heads, mlp_ratio: of the transformer.
        out: channels of the embedding.
        residual: "normed" (FastSAM3D: z = norm2(x); z + mlp(z)) or "plain" (SAM-Med3D: x + mlp(norm2(x))).
        feedforward_layers: layers without attention.
        window: edge of padded attention windows in tokens, 0 for global attention in every layer.
        global_layers: layers that attend globally although window is set.
        attention: "dense", "strided" (as published), "strided_fp16" (its float16 interface) or "segment_dilated".
        sparse_configurations: (segment, dilation) pairs of "segment_dilated".
        relative_position: the published position term (dense) and its tables.
        stem_widths: channels at strides 2, 4, 8 of a convolutional stem, whose features also reach a decoder that
            refines; () for the published patch embedding.
        token_norm: each channel of the tokens is brought to mean 0 and variance 1 over the patch before positions are added, and
            so is the embedding.
    """

    image_size: int = 128
    patch: int = 16
    channels: int = 1
    width: int = 768
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    out: int = 384
    residual: str = "normed"
    feedforward_layers: tuple[int, ...] = (0, 1)
    window: int = 0
    global_layers: tuple[int, ...] = ()
    attention: str = "dense"
    sparse_configurations: tuple[tuple[int, int], ...] = ()
    relative_position: bool = True
    stem_widths: tuple[int, ...] = ()
    token_norm: bool = False

    @property
    def grid(self) -> int:
        """Tokens an axis."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class DecoderSpec:
    """Prompt encoder and mask decoder.

    Attributes:
        width: channels of embedding and tokens; divisible by 3 (three position channels) and by 8.
        heads, mlp_width, depth: of the two-way transformer.
        extra_masks: mask tokens beside mask 0 (3 as published, never supervised there).
        iou_width: hidden width of the IoU head.
        swapped_axes: as published, the dense position grid pairs the first Gaussian row with array axis 1 and the
            second with axis 0 although clicks use axis 0 first.
        boxes: the prompt encoder has box corner embeddings (the published files have none).
        dense_clicks: clicks and box also enter as maps beside the mask prompt (positive, negative, box).
        refine: convolutions on the upscaled features, fed with the stem's features and the dense prompt maps.
        appearance: tokens know what was clicked, and maps say where else it looks like that (networks/appearance.py).
        grow: channels of the U-Net that mends the logits, fed with connectedness to the clicks (networks/grow.py); 0 for
            none. Needs `refine` and `appearance`.
        sharpen: channels of the head that doubles the resolution of the logits (networks/sharpen.py); 0 for none.
        likeness: the embedding at clicks is compared with that of every token (networks/likeness.py).
    """

    width: int = 384
    heads: int = 8
    mlp_width: int = 2048
    depth: int = 2
    extra_masks: int = 3
    iou_width: int = 256
    swapped_axes: bool = True
    boxes: bool = False
    dense_clicks: bool = False
    refine: bool = False
    appearance: bool = False
    grow: int = 0
    sharpen: int = 0
    likeness: bool = False


@dataclass(frozen=True)
class SamSpec:
    """One promptable 3D segmenter: networks, and how volumes and clicks reach them.

    Attributes:
        intensity: normalisation of the patch, see intensity.py.
        lattice: "corner" (as published: lattice of the resampled volume) or "click" (centred on the click).
        replay: how several clicks reach the network: "last" (one at a time with the previous logits) or "all"
            (accumulated, with the previous logits).
        spacing_mm: edge of a patch voxel.
        connected: parts of a mask that hold no click on the object are left out (see postprocess.py).
        half: the network runs in bfloat16 where the device does that natively (it was trained so, or with AMP as published).
        first_passes: decoder passes over the first prompt, each with the logits of the pass before as mask prompt; more
            than one only for models that were trained with rounds that bring no new click.
        background_passes: decoder passes over a later click on the background, likewise.
        steady: share of the logits before a click that is kept far away from it (see postprocess.py); 0 as published.
        zoom: after a first look at the first prompt the patch is placed anew: coarser where the object leaves it,
            finer where the object is small (see placement.py). Needs lattice "click".
        looks: with zoom, the predicted IoU decides for a click between the first look, the second, and a closer one.
        far_clicks: how many clicks, far off in its own mask, the network is told with a first click in lung; see lungs.py.
    """

    name: str
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    spacing_mm: float = 1.5
    intensity: str = "znorm_positive"
    lattice: str = "corner"
    replay: str = "all"
    connected: bool = False
    half: bool = False
    first_passes: int = 1
    background_passes: int = 1
    steady: float = 0.0
    zoom: bool = False
    looks: bool = False
    far_clicks: int = 0

    @property
    def patch_size(self) -> int:
        """Edge of the patch, voxels."""
        return self.encoder.image_size

    @property
    def mask_size(self) -> int:
        """Edge of the low-resolution masks, voxels (four a token, as published)."""
        return 4 * self.encoder.grid

    @property
    def cell(self) -> int:
        """Edge of a voxel of the low-resolution masks, voxels of the patch."""
        return self.patch_size // self.mask_size


@dataclass(frozen=True)
class TinyVitSpec:
    """A TinyViT image encoder in the form of LiteMedSAM.

    Stage 0 is convolutional, the others attend in windows.

    Attributes:
        image_size: edge of the input, pixels.
        widths, depths, heads, windows: per stage; heads and windows of stage 0 are not used.
        stem_strides: of the two convolutions of the patch embedding; (1, 1) are 1x1 convolutions, so that stage 0
            works at full resolution.
        merge_strides: of the three patch mergings between the stages.
        expansion: of the convolutional blocks. mlp_ratio: of the attention blocks.
        out: channels of the embedding. detail: see RepVitSpec.
    """

    image_size: int = 256
    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    stem_strides: tuple[int, int] = (1, 1)
    merge_strides: tuple[int, ...] = (2, 2, 1)
    expansion: int = 4
    mlp_ratio: int = 4
    out: int = 256
    detail: int = 0

    @property
    def grid(self) -> int:
        """Edge of the embedding."""
        return self.image_size // math.prod(self.stem_strides + self.merge_strides)


@dataclass(frozen=True)
class RepVitSpec:
    """A RepViT image encoder with SAM's neck. Defaults: M2.3, as in RepViT-SAM and RepMedSAM.

    Attributes:
        image_size: edge of the input, pixels (the network itself takes any size).
        widths: channels per stage. depths: blocks per stage without the downsampling block that starts stages 1 to 3.
        strides: of the downsampling blocks that start stages 1 to 3, after a stem of stride 4. As published for SAM the
            last is 1. (The published code decides that by an input of 320 channels; here it holds for every width.)
        out: channels of the embedding.
        detail: channels of fine features at four times the grid's resolution, as cheap convolutions see them; they and
            the image itself ride in the embedding as 16 * (3 + detail) channels behind the first `out`, for a decoder
            that refines. 0 for none.
    """

    image_size: int = 256
    widths: tuple[int, ...] = (80, 160, 320, 640)
    depths: tuple[int, ...] = (7, 7, 35, 2)
    strides: tuple[int, ...] = (2, 2, 1)
    out: int = 256
    detail: int = 0

    @property
    def grid(self) -> int:
        """Edge of the embedding."""
        return self.image_size // (4 * math.prod(self.strides))


@dataclass(frozen=True)
class Decoder2dSpec:
    """Prompt encoder and mask decoder for images: SAM's.

    Attributes:
        width: channels of embedding and tokens; divisible by 8.
        heads, mlp_width, depth: of the two-way transformer.
        extra_masks: mask tokens beside mask 0.
        iou_width: hidden width of the IoU head.
        dense_clicks: clicks and box also enter as maps beside the mask prompt (positive, negative, box).
        refine: convolutions join the upscaled features, the encoder's detail, the prompt maps, and how much each pixel
            looks like what is prompted; needs dense_clicks and an encoder with that many detail channels; 0 for none.
        grow: see DecoderSpec; needs `refine`.
    """

    width: int = 256
    heads: int = 8
    mlp_width: int = 2048
    depth: int = 2
    extra_masks: int = 3
    iou_width: int = 256
    dense_clicks: bool = False
    refine: int = 0
    grow: int = 0


@dataclass(frozen=True)
class Sam2dSpec:
    """One promptable segmenter of images and slices.

    Attributes:
        upsampling: how many times the embedding is enlarged (bilinear, no parameters) before it meets the prompts. The
            published run times of RepMedSAM say 4: its encoder gives 16x16 and its decoder worked on 64x64.
        margin: pixels of the model's image by which a slice's box is widened for the next slice; 3 as published.
    """

    name: str
    encoder: TinyVitSpec | RepVitSpec
    decoder: Decoder2dSpec = field(default_factory=Decoder2dSpec)
    upsampling: int = 1
    margin: int = 3

    @property
    def image_size(self) -> int:
        """Edge of the model's image, pixels."""
        return self.encoder.image_size

    @property
    def grid(self) -> int:
        """Edge of the embedding that the decoder sees."""
        return self.upsampling * self.encoder.grid

    @property
    def mask_size(self) -> int:
        """Edge of the low-resolution masks, pixels (four a cell of the embedding)."""
        return 4 * self.grid


AnySpec = SamSpec | Sam2dSpec
