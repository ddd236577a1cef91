"""Which clicks are on what a network was taught, so that it answers those and another one all the others.

Training for a task changes what a network says everywhere. So a published version keeps two: the taught network, and the one
that it came from. A router looks at a click with the eyes of the second, which nothing changes any more: at its features around
the click and within its own first answer. Experts chosen by a gate are an old idea (Jacobs et al. 1991); here there are two,
one of them frozen, so whatever is not sent to the taught one is answered as before, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .build import Sam3D
from .checkpoint_files import WeightsError
from .compute import computed
from .placement import first_prompt
from .prompts import Click, Prompts, name_key
from .segmenter import Segmentation, View, VolumeSegmenter
from .session import ImageSession

_REACH = 1 / 16
"""Features count so far around a click, as share of the patch's edge."""

_LARGEST = 6e4  # is kept in float16
_FARTHEST = 5.0  # standard deviations; what lies beyond counts as there
_NOISE, _PRIOR = 0.1, -1.0
_STRAYING = 0.15
_LEAST, _LEAST_OF_ONE = (-0.7, 0.3), -0.45


@dataclass(frozen=True)
class Router:
    """Kernel ridge regression of +1 (on what was taught) and -1 (elsewhere) over descriptions of clicks.

    Its prior mean is -1: what is like nothing that it has seen was not taught.

    Attributes:
        samples, taught: (N, D) float16 and (N,) uint8, descriptions and which of them are of clicks on what was taught; the
            next training adds to them.
        mean, scale: (D,) float32 of the descriptions. width: () float32, squared distance that is near.
        weight: (N,) float32 of the samples.
        least: () float32, the score from which on a click is on what was taught.
    """

    samples: Tensor
    taught: Tensor
    mean: Tensor
    scale: Tensor
    width: Tensor
    weight: Tensor
    least: Tensor

    @classmethod
    def fit(cls, samples: np.ndarray, taught: np.ndarray, cases: np.ndarray) -> Router:
        """Fits to descriptions (N, D) of clicks on what was taught (N,) bool and elsewhere, of cases (N,) by number.

        Both kinds count half. Fifteen in a hundred clicks elsewhere may go to the taught network, by routers that have not
        seen their case; for one case alone `least` is what this gives for more.

        Raises:
            ValueError: there is no click of one kind.
        """
        if not 0 < taught.sum() < len(taught):
            raise ValueError(
                f"a router needs clicks on what was taught and elsewhere, got {int(taught.sum())} of {len(taught)} on it"
            )
        samples = samples.astype(np.float16)
        router, scores = cls._fitted(samples, taught), []
        for case in np.unique(cases):
            rest = cases != case
            if 0 < taught[rest].sum() < rest.sum():
                other = cls._fitted(samples[rest], taught[rest])
                scores += [other.score(x) for x in samples[~rest & ~taught].astype(np.float32)]
        least = np.clip(np.quantile(scores, 1 - _STRAYING), *_LEAST) if scores else _LEAST_OF_ONE
        return replace(router, least=torch.tensor(float(least)))

    @classmethod
    def _fitted(cls, samples: np.ndarray, taught: np.ndarray) -> Router:
        count, on = len(taught), int(taught.sum())
        kept = torch.from_numpy(samples)
        x, y = kept.double(), torch.from_numpy(np.where(taught, 1.0, -1.0))
        mean, scale = x.mean(0), x.std(0, correction=0) + 1e-3
        z = _standardised(x, mean, scale)
        apart = _squared_distances(z, z)
        width = apart[apart > 0].median() if bool((apart > 0).any()) else torch.tensor(1.0)
        share = torch.where(y > 0, count / 2 / on, count / 2 / (count - on))
        weight = torch.linalg.solve((-apart / width).exp() + torch.diag(_NOISE / share), y - _PRIOR)
        mean, scale, width, weight = (t.float() for t in (mean, scale, width, weight))
        return cls(kept, torch.from_numpy(taught).to(torch.uint8), mean, scale, width, weight, torch.tensor(0.0))

    def taught_at(self, description: np.ndarray) -> bool:
        """Whether a click, described by (D,), is on what was taught.

        Raises:
            WeightsError: as `score`.
        """
        return self.score(description) > float(self.least)

    @computed
    def score(self, description: np.ndarray) -> float:
        """About 1 for a click, described by (D,), on what was taught, and -1 for others.

        Raises:
            WeightsError: the router was fitted to descriptions of another network.
        """
        if len(description) != len(self.mean):
            raise WeightsError(f"the router takes descriptions of {len(self.mean)} numbers, got {len(description)}")
        both = [
            _standardised(x, self.mean, self.scale) for x in (torch.from_numpy(description)[None], self.samples.float())
        ]
        near = (-_squared_distances(*both)[0] / self.width).exp()
        return float(near @ self.weight) + _PRIOR

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> Router:
        """From the tensors of the file `source`.

        Raises:
            WeightsError: they make no router.
        """
        names = tuple(cls.__dataclass_fields__)
        if set(tensors) != set(names) or tensors["samples"].ndim != 2:
            raise WeightsError(
                f"{source}: a router has the tensors {', '.join(names)}, got {', '.join(sorted(tensors))}"
            )
        count, width = tensors["samples"].shape
        shapes = {"samples": (count, width), "taught": (count,), "mean": (width,), "scale": (width,), "width": (),
                  "weight": (count,), "least": ()}  # fmt: skip
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape or not bool(torch.isfinite(tensors[name]).all()):
                raise WeightsError(f"{source}: the router's {name} must hold finite numbers in the shape {shape}")
        return cls(**{name: tensor.cpu() for name, tensor in tensors.items()})


class RoutedSegmenter(VolumeSegmenter):
    """A network that was taught something, and the one that answers everything else.

    Args:
        model: the taught network. base: the other one's segmenter, with a version of its own. router: chooses.
        names: what was taught; prompts that name one of these need no choice.
        weights_name, weights_version: of both together.
    """

    def __init__(
        self,
        model: Sam3D,
        base: VolumeSegmenter,
        router: Router,
        names: Iterable[str],
        weights_name: str,
        weights_version: str,
    ) -> None:
        super().__init__(model, base.spec, weights_name, weights_version, base.device)
        self.base, self.router, self.names = base, router, frozenset(map(name_key, names))

    def record_graphs(self) -> int:
        """See VolumeSegmenter."""
        return super().record_graphs() + self.base.record_graphs()

    def answering(
        self, session: ImageSession, prompts: Prompts, timings: dict[str, float] | None = None
    ) -> VolumeSegmenter:
        """This segmenter for prompts on what its network was taught, else the base's.

        Raises:
            PromptError: prompts that this scan cannot be asked. WeightsError: the router does not fit the base.
        """
        prompts.validate(session.volume.grid)
        if name_key(prompts.structure) in self.names:
            return self
        place = place_of(prompts)
        key = ("route", self.weights_version, place)
        taught = session.get(key)
        if taught is None:
            taught = self.router.taught_at(described(self.base, session, place, {} if timings is None else timings))
            session.put(key, taught)
        return self if taught else self.base

    def segment(self, session: ImageSession, prompts: Prompts) -> Segmentation:
        """See VolumeSegmenter."""
        timings: dict[str, float] = {}
        taught = self.answering(session, prompts, timings) is self
        found = super().segment(session, prompts) if taught else self.base.segment(session, prompts)
        spent = {name: timings.get(name, 0.0) + found.timings_ms.get(name, 0.0) for name in found.timings_ms | timings}
        return replace(found, timings_ms=spent, weights=self.weights_name, version=self.weights_version, taught=taught)

    def look(self, session: ImageSession, prompts: Prompts, timings: dict[str, float] | None = None) -> View:
        """See VolumeSegmenter."""
        if self.answering(session, prompts, timings) is self:
            return super().look(session, prompts, timings)
        return self.base.look(session, prompts, timings)


def described(segmenter: VolumeSegmenter, session: ImageSession, place_ijk: tuple[int, ...], timings: dict[str, float]):
    """What a network sees of the thing at a voxel: (D,) float32.

    For each of its feature maps the value at the voxel, mean and deviation around it, and the mean within the network's own
    mask of one click there; and that mask's size and predicted IoU.
    """
    click = Prompts((Click(tuple(int(v) for v in place_ijk)),))
    view = segmenter.glance(session, click, timings)
    return _description(view, view.frame.to_patch(np.array([place_ijk], dtype=np.float64))[0], segmenter)


def place_of(prompts: Prompts) -> tuple[int, ...]:
    """The voxel that says what prompts are on: the box's middle, else the first click on the object, else the first."""
    first = first_prompt(prompts)
    if first.box is None:
        return first.clicks[0].ijk
    return tuple(int(v) for v in (np.array(first.box.low_ijk) + np.array(first.box.high_ijk)) // 2)


@computed
def _description(view: View, place: np.ndarray, segmenter: VolumeSegmenter) -> np.ndarray:
    size, edge = segmenter.spec.patch_size, segmenter.spec.mask_size
    mask = torch.from_numpy(segmenter.cells(view)).float()[None].to(segmenter.device)
    parts = []
    for features in (view.embedding[0], *view.embedding[1]):
        count = min(edge, features.shape[-1])
        x = F.adaptive_avg_pool3d(features[0].float(), count)
        at = ((place + 0.5) * count / size).astype(int).clip(0, count - 1)
        reach = max(1, int(_REACH * count))
        around = x[(slice(None), *(slice(max(0, a - reach), a + reach + 1) for a in at))].flatten(1)
        share = F.adaptive_avg_pool3d(mask, count)
        within = (x * share).sum((1, 2, 3)) / share.sum().clamp_min(1e-6)
        parts += [x[(slice(None), *at)], around.mean(1), around.std(1, correction=0), within]
    parts.append(torch.tensor([float(mask.sum().log1p()), view.iou], device=mask.device))
    return torch.cat(parts).clamp(-_LARGEST, _LARGEST).cpu().numpy()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _standardised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((x - mean) / scale).clamp(-_FARTHEST, _FARTHEST)
