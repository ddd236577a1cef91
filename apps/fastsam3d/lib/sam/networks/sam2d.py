"""Prompt encoder and mask decoder for images: points, boxes and a low-resolution mask -> mask logits, predicted IoU.

Frames: points and boxes are (x, y) in pixels of the model's image, x along columns; a pixel's centre lies at +0.5.
Source of the ideas: SAM (Kirillov et al. 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import Sam2dSpec
from .connectedness import clicked_cells, far_from_clicks, prompted_maps
from .grow import Grow
from .layers import ChannelNorm, Perceptron, zero_
from .prompt_maps import BOX_HIGH, BOX_LOW, NEGATIVE, PADDING, POSITIVE, likeness, prompt_maps
from .transformer import TwoWayTransformer

_INTENSITIES = 2
_FOLD = 2


class PositionEncoding2D(nn.Module):
    """Random Fourier features of two coordinates: channels sin, cos."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def encode(self, coords: Tensor) -> Tensor:
        """(..., 2) x, y in [0, 1] -> (..., 2 * features)."""
        x, y = self.positional_encoding_gaussian_matrix
        coords = 2 * coords - 1
        # Not a matrix product: autocast would round places to bfloat16, which has three digits.
        angle = (coords[..., :1] * x + coords[..., 1:] * y) * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid(self, edge: int) -> Tensor:
        """(1, C, edge, edge)."""
        matrix = self.positional_encoding_gaussian_matrix
        axis = (torch.arange(edge, device=matrix.device, dtype=matrix.dtype) + 0.5) / edge
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return self.encode(torch.stack([x, y], dim=-1)).movedim(-1, 0)[None]


class PromptEncoder2D(nn.Module):
    """See the module. State-dict keys are the published ones."""

    def __init__(self, spec: Sam2dSpec) -> None:
        super().__init__()
        width = spec.decoder.width
        self.set_sizes(spec)
        self.dense_clicks = spec.decoder.dense_clicks
        self.pe_layer = PositionEncoding2D(width // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(4 if self.dense_clicks else 1, 4, 2, stride=2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv2d(16, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def set_sizes(self, spec: Sam2dSpec) -> None:
        """Sizes of image, embedding and masks; no parameter depends on them."""
        self.image_size, self.edge, self.mask_size = spec.image_size, spec.grid, spec.mask_size

    def dense_position(self) -> Tensor:
        """Position encoding of the embedding's cells, (1, width, g, g)."""
        return self.pe_layer.grid(self.edge)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Points (B, N, 2) and labels (B, N) -> (B, N, width).

        Labels: 1 positive, 0 negative, -1 padding, 2 / 3 low / high corner of a box.
        """
        out = self.pe_layer.encode((points + 0.5) / self.image_size)
        out = torch.where((labels == PADDING)[..., None], self.not_a_point_embed.weight, out)
        for value, embedding in enumerate(self.point_embeddings):
            out = out + (labels == value)[..., None] * embedding.weight
        return out

    def gather(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Clicks and box corners in one list: coordinates (B, N, 2) and labels (B, N); arguments as those of `forward`."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        b = next((len(x) for x in (points and points[0], boxes, mask) if x is not None), 1)
        coords, labels = matrix.new_empty(b, 0, 2), torch.empty(b, 0, dtype=torch.long, device=matrix.device)
        if points is not None:
            coords, labels = points
        if boxes is not None:
            corners = labels.new_tensor([BOX_LOW, BOX_HIGH]).expand(b, 2)
            coords, labels = torch.cat([coords, boxes.reshape(b, 2, 2)], dim=1), torch.cat([labels, corners], dim=1)
        elif points is not None:
            coords = torch.cat([coords, coords.new_zeros(len(coords), 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), PADDING)], dim=1)
        return coords, labels

    def maps(self, coords: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Prompts of `gather` drawn on the mask grid, (B, 4, 4g, 4g), see `prompt_maps`."""
        return prompt_maps(coords.flip(-1), labels, mask, self.mask_size, self.image_size / self.mask_size)

    def cells(self, coords: Tensor) -> Tensor:
        """Coordinates of `gather` as cells of the masks (B, N, 2), row and column."""
        return coords.flip(-1).div(self.image_size / self.mask_size, rounding_mode="floor")

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts.

        Args:
            points: (coordinates (B, N, 2), labels (B, N) of 1, 0 or -1) or None. As published a padding point follows
                them where there is no box.
            boxes: (B, 4) x0, y0, x1, y1 (or with axes of length 1 between, as the baseline passes it), or None.
            mask: (B, 1, 4g, 4g) logits, or None.

        Returns:
            sparse (B, N + 1 or N + 2, width); dense (B, width, g, g), or (1, width, g, g) where nothing is drawn.
        """
        return self.encode(*self.gather(points, boxes, mask), mask)

    def encode(
        self, coords: Tensor, labels: Tensor, mask: Tensor | None, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode the prompts of `gather`.

        Args:
            given: (B,) bool, False where the mask counts as None; None for all True.

        Returns:
            As `forward`.
        """
        sparse = self.embed_points(coords, labels)
        if self.dense_clicks:
            return sparse, self.mask_downscaling(self.maps(coords, labels, mask))
        nothing = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, self.edge, self.edge)
        if mask is None:
            return sparse, nothing
        dense = self.mask_downscaling(mask)
        return sparse, dense if given is None else torch.where(given[:, None, None, None], dense, nothing)


class Refinement(nn.Module):
    """Joins upscaled features, the image and its detail, prompt maps and `likeness`, all (B, ., m, m).

    It adds to the features, and nothing at first (the last convolution starts at zero). No convolution is dilated: on CPUs
    torch 2.13 gives garbage as the bfloat16 gradients of dilated convolutions of single channels.
    """

    def __init__(self, channels: int, detail: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.join = nn.Conv2d(channels + 3 + detail + 4 + 3, hidden, 1)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.far = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.out = zero_(nn.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor, detail: Tensor, maps: Tensor, alike: Tensor) -> Tensor:
        parts = (x, detail.expand(len(x), -1, -1, -1), maps, alike)
        y = F.relu(self.join(torch.cat([part.to(x.dtype) for part in parts], dim=1)))
        y = F.relu(self.mix(self.near(y)))
        return x + self.out(F.relu(self.far(y)))


class MaskDecoder2D(nn.Module):
    """See the module. State-dict keys are the published ones."""

    def __init__(self, spec: Sam2dSpec) -> None:
        super().__init__()
        d = spec.decoder
        w, masks = d.width, d.extra_masks + 1
        self.transformer = TwoWayTransformer(d.depth, w, d.heads, d.mlp_width)
        self.iou_token = nn.Embedding(1, w)
        self.mask_tokens = nn.Embedding(masks, w)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(w, w // 4, 2, stride=2),
            ChannelNorm(w // 4),
            nn.GELU(),
            nn.ConvTranspose2d(w // 4, w // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(w, w, w // 8, 3) for _ in range(masks))
        self.iou_prediction_head = Perceptron(w, d.iou_width, masks, 3)
        self.width = w
        self.refinement = Refinement(w // 8, d.refine) if d.refine else None
        self.grow = None
        if d.grow:
            self.grow = Grow(
                2, d.grow, fold=_FOLD, intensities=_INTENSITIES, maps=4 + 3 + 5 * _INTENSITIES, features=w // 8,
                fine=3 + d.refine, coarse=w,
            )  # fmt: skip

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool = False,
        maps: Tensor | None = None,
        clicks: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks.

        Args:
            image: (1 or B, width, g, g) embedding, the encoder's detail in the channels behind. image_pe: (1, width, g, g).
            sparse: (B, t, width). dense: (1 or B, width, g, g).
            multimask: masks 1.. instead of mask 0.
            maps: (B, 4, 4g, 4g) prompts as maps, for a decoder that refines.
            clicks: (B, N, 2) cells of the masks (row, column) and labels (B, N), for a decoder that grows.

        Returns:
            logits (B, masks, 4g, 4g) and predicted IoU (B, masks).
        """
        image, detail = image[:, : self.width], image[:, self.width :]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        source = (image + dense).flatten(2).transpose(1, 2)  # batch 1 as long as all prompts share it
        tokens, source = self.transformer(source, image_pe.flatten(2).transpose(1, 2), tokens)
        x = self.output_upscaling(source.transpose(1, 2).unflatten(2, image.shape[-2:]))
        if self.refinement is not None:
            detail = F.pixel_shuffle(detail, 4)
            alike = likeness(detail[:, :3].detach().float(), maps.float())
            x = self.refinement(x, detail, maps, alike)
        first, last = (1, len(self.output_hypernetworks_mlps)) if multimask else (0, 1)
        kernels = [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in range(first, last)]
        masks = torch.einsum("bmc,bcyx->bmyx", torch.stack(kernels, dim=1), x)
        if self.grow is not None:
            masks = masks.float() + self._grown(
                masks, x, detail, torch.cat([maps.float(), alike], dim=1), clicks, image
            )
        return masks, self.iou_prediction_head(tokens[:, 0])[:, first:last]

    def _grown(
        self, masks: Tensor, x: Tensor, detail: Tensor, maps: Tensor, clicks: tuple[Tensor, Tensor], image: Tensor
    ) -> Tensor:
        """What `Grow` adds to the masks; as in `forward`, but detail (1 or B, ., 4g, 4g), and maps with `likeness` behind."""
        intensity = grey_and_rank(detail[:, :3].detach().float())
        cells, labels = clicks[0] // _FOLD, clicks[1]
        folded = F.avg_pool2d(intensity, _FOLD)
        signs = (labels == POSITIVE, labels == NEGATIVE)
        found = [clicked_cells(cells, sign, folded.shape[2:]) for sign in signs]
        far = tuple(far_from_clicks(folded, cells, sign) for sign in signs)
        known = prompted_maps(folded, *found, far, F.avg_pool2d(maps[:, 3:4], _FOLD) > 0)
        known = F.interpolate(known, scale_factor=_FOLD)
        return self.grow(masks, x, torch.cat([maps, known], dim=1), intensity, detail, image)


def grey_and_rank(picture: Tensor) -> Tensor:
    """Mean over the colours and its rank among the pixels.

    Args:
        picture: (b, 3, m, m) in [0, 1].

    Returns:
        (b, 2, m, m) in [-1, 1].
    """
    grey = picture.mean(1).clamp(0, 1)
    flat = grey.flatten(1)
    levels, order = flat.sort(dim=1)
    group = F.pad((levels.diff(dim=1) != 0).long(), (1, 0)).cumsum(1)  # equal values are one group
    size = torch.zeros_like(group).scatter_add_(1, group, torch.ones_like(group))
    below_and_up_to = (2 * size.cumsum(1) - size).gather(1, group)  # values below it, and those up to it, in one sum
    rank = torch.zeros_like(group).scatter_(1, order, below_and_up_to)
    return torch.stack([grey, (rank / (2 * flat.shape[1])).unflatten(1, grey.shape[1:])], dim=1) * 2 - 1
