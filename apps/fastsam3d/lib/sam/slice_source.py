"""The slices of one image, as the network asks for them: read, brought to 8 bits, encoded once, kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from .propagation import SliceMask
from .session import size_in_bytes
from .slice_network import SliceNetwork, SlicePrompt
from .slices import SliceFrame, preprocess_image
from .timing import stage

_AT_ONCE = 64  # answers whose logits are in memory together
_IMAGES = 8  # 8-bit slices kept at hand
_SAMPLE = 20_000  # pixels from which a mask's grey is told


class Cache(Protocol):
    """Where embeddings are kept: an ImageSession, or a `Memory`."""

    def get(self, key: Hashable, default: Any = None) -> Any: ...

    def put(self, key: Hashable, value: Any) -> None: ...


class Memory:
    """A cache of at most so many bytes; the least recently used value goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._nbytes = 0

    def get(self, key: Hashable, default: Any = None) -> Any:
        """A kept value, which counts as its use, or the default."""
        if key not in self._values:
            return default
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value, and drops old ones for which there is no room any more."""
        self._nbytes += size_in_bytes(value) - size_in_bytes(self._values.pop(key, ()))
        self._values[key] = value
        while self._nbytes > self.max_bytes and len(self._values) > 1:
            self._nbytes -= size_in_bytes(self._values.popitem(last=False)[1])


class SliceSource:
    """Answers prompts on the slices of one image.

    Args:
        network: the network.
        image: gives a slice as an 8-bit image, (H, W) or (H, W, 3) uint8.
        frame: of every slice.
        cache: where embeddings are kept.
        key: what an embedding depends on apart from the slice's number.
        timings: milliseconds by stage, added to: crop, encode, decode, paste.
    """

    def __init__(
        self,
        network: SliceNetwork,
        image: Callable[[int], np.ndarray],
        frame: SliceFrame,
        cache: Cache,
        key: tuple = (),
        timings: dict[str, float] | None = None,
    ) -> None:
        self.network, self.frame, self.cache, self.key = network, frame, cache, key
        self.image = lru_cache(maxsize=_IMAGES)(image)
        self.timings = {} if timings is None else timings

    def predict(self, asked: Sequence[tuple[int, SlicePrompt]], coming: Sequence[int] = ()) -> list[SliceMask]:
        """Answers one prompt on each of some slices; see propagation.Predict."""
        answers: list[SliceMask] = []
        for begin in range(0, len(asked), _AT_ONCE):
            part = asked[begin : begin + _AT_ONCE]
            embeddings = self._embeddings([index for index, _ in part], coming)
            with stage(self.timings, "decode"):
                logits, iou = self.network.decode(embeddings, [prompt for _, prompt in part])
            with stage(self.timings, "paste"):
                answers += [self._mask(index, *answer) for (index, _), *answer in zip(part, logits, iou)]
        return answers

    def _mask(self, index: int, logits: np.ndarray, iou: float) -> SliceMask:
        mask, (y, x) = self.frame.paste(logits)
        if not mask.size:
            return SliceMask(mask, (y, x), float(iou))
        seen = self.image(index)[y : y + mask.shape[0], x : x + mask.shape[1]]
        step = max(1, int((mask.size / _SAMPLE) ** 0.5))
        inside = seen[::step, ::step][mask[::step, ::step]]
        inside = inside if inside.size else seen[mask]
        return SliceMask(mask, (y, x), float(iou), (float(inside.mean()), float(inside.std())))

    def _embeddings(self, indices: Sequence[int], coming: Sequence[int]) -> list[Tensor]:
        """Of each of these slices; where one is missing, those of `coming` are computed with it."""
        wanted = dict.fromkeys(indices)
        have = {index: self.cache.get((*self.key, index)) for index in wanted}
        if any(embedding is None for embedding in have.values()):
            missing = [index for index in dict.fromkeys([*wanted, *coming]) if have.get(index) is None]
            missing = [index for index in missing if index in have or self.cache.get((*self.key, index)) is None]
            have |= self._encode(missing)
        return [have[index] for index in indices]

    def _encode(self, indices: list[int]) -> dict[int, Tensor]:
        with stage(self.timings, "crop"):
            images = np.stack([preprocess_image(self.image(index), self.frame.size) for index in indices])
        with stage(self.timings, "encode"):
            found = dict(zip(indices, self.network.encode(images)))
        for index, embedding in found.items():
            self.cache.put((*self.key, index), embedding)
        return found
