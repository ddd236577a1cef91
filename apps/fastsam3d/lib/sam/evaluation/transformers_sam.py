"""SAM ViT-B and MedSAM ViT-B through the `transformers` package, for boxes in slices and photographs.

The package is no requirement of the app. Weights are a local folder in its format (config.json, model.safetensors), such
as facebook/sam-vit-base or wanglab/medsam-vit-base; nothing is downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..intensity import grey_range, to_8bit
from ..prompts import Prompts
from ..session import ImageSession
from .interface import Answer, Ask, ModelError, Wanted
from .scans import flat_image

NAMES = ("sam_vit_b", "medsam")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TransformersSam:
    """A `SamModel` as the evaluation's `Model`.

    Args:
        name: one of NAMES. folder: its weights.

    Raises:
        ModelError: the package is not installed, or there are no usable weights in the folder.
    """

    clicks, boxes, automatic = False, True, False

    def __init__(self, name: str, folder: Path, device: torch.device | str = "cpu") -> None:
        self.name, self.version = name, sam_version(name, folder)
        try:
            from transformers import SamModel

            model = SamModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except ImportError as error:
            raise ModelError(f"{name}: the package transformers does not work here: {error}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{name}: {folder} holds no weights of transformers' SamModel: {error}") from error
        self._model = model.to(device).eval()
        self._size = int(model.config.vision_config.image_size)
        self._device = torch.device(device)

    @contextmanager
    def open(self, session: ImageSession, path: Path, wanted: Wanted) -> Iterator[Ask]:
        """See `Model.open`."""
        pixels = flat_image(path)
        limits = grey_range(session.volume.array) if pixels is None else None

        def ask(prompts: Prompts) -> Answer:
            box = prompts.box
            if box is None or prompts.clicks or box.low_ijk[2] != box.high_ijk[2]:
                raise ModelError(f"{self.name} takes one box in one slice; use --protocol box2d")
            begin = time.perf_counter()
            k = box.low_ijk[2]
            image = to_8bit(session.volume.array[:, :, k].T, *limits) if pixels is None else pixels
            mask = np.zeros(session.volume.grid.shape, dtype=bool)
            mask[:, :, k] = self._segment(session, k, image, [*box.low_ijk[:2], *box.high_ijk[:2]]).T
            return Answer(mask, time.perf_counter() - begin)

        yield ask

    def uncertainty(self, session: ImageSession, prompts: Prompts) -> None:
        """It has none to offer."""
        return None

    @torch.inference_mode()
    def _segment(self, session: ImageSession, k: int, image: np.ndarray, box_xy: list[int]) -> np.ndarray:
        """(H, W) bool of a box x0, y0, x1, y1 in an image (H, W) or (H, W, 3) uint8, which is encoded once."""
        height, width = image.shape[:2]
        scale = self._size / max(height, width)
        inner = tuple(int(n * scale + 0.5) for n in (height, width))
        key = ("transformers", self.version, k)
        embedding = session.get(key)
        if embedding is None:
            embedding = self._model.get_image_embeddings(_pixels(image, inner, self._size).to(self._device))
            session.put(key, embedding)
        boxes = torch.tensor([[box_xy]], dtype=torch.float32, device=self._device) * scale
        answer = self._model(image_embeddings=embedding, input_boxes=boxes, multimask_output=False)
        logits = F.interpolate(answer.pred_masks[0].float(), (self._size,) * 2, mode="bilinear", align_corners=False)
        logits = F.interpolate(
            logits[..., : inner[0], : inner[1]], (height, width), mode="bilinear", align_corners=False
        )
        return (logits[0, 0] > 0).cpu().numpy()


def sam_version(name: str, folder: Path | None) -> str:
    """What the weights in a folder are, without loading them.

    Raises:
        ModelError: the package is not installed, or there are no weights.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f"{name} needs the package transformers: pip install transformers") from error
    weights = Path(folder or "") / "model.safetensors"
    if folder is None or not weights.is_file():
        raise ModelError(
            f"{name} needs a folder with config.json and model.safetensors: --weights {name}=FOLDER, got {folder}"
        )
    return f"{weights.stat().st_size} bytes of {weights.stat().st_mtime_ns}, transformers {transformers.__version__}"


def _pixels(image: np.ndarray, inner: tuple[int, int], size: int) -> Tensor:
    """(1, 3, size, size): resized to `inner` (bilinear), scaled as SAM was trained, padded at the right and below."""
    colours = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    resized = Image.fromarray(colours).resize(inner[::-1], Image.Resampling.BILINEAR)
    values = (np.asarray(resized, dtype=np.float32) / 255 - _MEAN) / _STD
    padded = np.zeros((3, size, size), dtype=np.float32)
    padded[:, : inner[0], : inner[1]] = np.moveaxis(values, -1, 0)
    return torch.from_numpy(padded)[None]
