"""The app's settings: every `--conf KEY VALUE` of the command line, parsed once into one frozen value."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODELS = ("fastsam3d", "sam_med3d", "repmedsam", "repmedsam_2d", "litemedsam", "litemedsam_2d")
DEFAULT_MODEL = "fastsam3d"
WEIGHTS_MODELS = tuple(name for name in MODELS if not name.endswith("_2d"))
"""The models that have weights of their own; see `weights_model`."""

MODEL_DIR = Path(__file__).resolve().parents[1] / "model"
"""The app's folder of weights."""

DEFAULT_LABELS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "right lung",
    "left lung",
    "esophagus",
    "trachea",
    "thyroid gland",
    "heart",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "duodenum",
    "small bowel",
    "colon",
    "urinary bladder",
    "prostate or uterus",
    "spinal cord",
    "vertebra",
    "lesion",
)

# Keys that MONAI Label itself, its bundled app starters and its documentation use; they mean nothing here.
_OF_MONAI_LABEL = frozenset(
    {
        "auth_token",
        "auto_update_scoring",
        "bundles",
        "sam2",
        "scribbles",
        "server_mode",
        "skip_scoring",
        "skip_strategies",
        "skip_trainers",
        "tracking",
        "use_pretrained_model",
        "zoo_repo",
        "zoo_source",
    }
)
STRATEGIES = ("random", "first", "uncertainty")
_MEMORY_SHARE = 4
_MAX_DEFAULT_CACHE_GB = 8.0
_MIN_DEFAULT_CACHE_GB = 1.0
_MAX_LABEL_LENGTH = 64


class ConfError(ValueError):
    """A `--conf` key or value that the app does not accept."""


@dataclass(frozen=True)
class AppConf:
    """The app's settings.

    Attributes:
        models: names of the models to offer, in order; a model whose weights are missing is not shown to clients.
        labels: label name -> number (>= 1), in the order in which viewers list them.
        device: "cpu", "cuda" or "cuda:N"; "auto" takes CUDA when it is there.
        weights: model name -> a weights file, a folder or a name of the registry; models that are not named choose
            by themselves.
        cache_gb: memory for resident volumes and embeddings, in GiB.
        threads: threads for one inference; 0 leaves torch's choice.
        strategy: what is served where a client asks for a random sample, as OHIF always does.
        preload: load the weights when the server starts rather than on the first click.
        upload_gb: the most that one request may send, and an archive in it unpack to, in GiB.
    """

    models: tuple[str, ...] = MODELS
    labels: Mapping[str, int] = field(
        default_factory=lambda: types.MappingProxyType({name: i + 1 for i, name in enumerate(DEFAULT_LABELS)})
    )
    device: str = "auto"
    weights: Mapping[str, str] = field(default_factory=lambda: types.MappingProxyType({}))
    cache_gb: float = field(default_factory=lambda: default_cache_gb())
    threads: int = 0
    strategy: str = "random"
    preload: bool = True
    upload_gb: float = 2.0

    def weights_of(self, model: str) -> str | None:
        """What was configured for a model; the two tasks of a model for slices share their weights."""
        return self.weights.get(model) or self.weights.get(weights_model(model))

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 2**30)

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_gb * 2**30)

    @classmethod
    def parse(cls, conf: Mapping[str, str] | None) -> AppConf:
        """Reads the dictionary that MONAI Label makes of `--conf KEY VALUE` pairs.

        Raises:
            ConfError: for an unknown key or an unusable value; the message says what is allowed.
        """
        given = {key: str(value).strip() for key, value in (conf or {}).items()}
        unknown = sorted(set(given) - set(_PARSERS) - _OF_MONAI_LABEL)
        if unknown:
            raise ConfError(
                f"--conf knows the keys {', '.join(sorted(_PARSERS))}; got {', '.join(map(repr, unknown))}."
            )
        return cls(**{key: parse(given[key]) for key, parse in _PARSERS.items() if key in given})


def weights_model(model: str) -> str:
    """The model whose weights a model uses: `repmedsam_2d` those of `repmedsam`."""
    return model.removesuffix("_2d")


def default_cache_gb() -> float:
    """A quarter of the machine's memory, between 1 and 8 GiB."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, OSError, ValueError):
        return _MIN_DEFAULT_CACHE_GB
    return min(_MAX_DEFAULT_CACHE_GB, max(_MIN_DEFAULT_CACHE_GB, total / _MEMORY_SHARE))


def parse_labels(text: str) -> Mapping[str, int]:
    """Reads "liver,spleen" (numbered from 1) or "liver:5,spleen:1" (numbers given); all numbered or none.

    Raises:
        ConfError: for an empty, repeated or reserved name, or a number that is not a whole number of at least 1.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ConfError(
            f"--conf labels needs at least one name, such as liver,spleen or liver:1,spleen:2; got {text!r}."
        )
    numbered = [":" in item for item in items]
    if any(numbered) and not all(numbered):
        raise ConfError(f"--conf labels takes a number with every name or with none, got {text!r}.")
    labels: dict[str, int] = {}
    for position, item in enumerate(items, start=1):
        name, _, number = item.partition(":")
        name = name.strip()
        if not name or len(name) > _MAX_LABEL_LENGTH or not name.isprintable() or name.lower() == "background":
            raise ConfError(
                f"A label's name has 1 to {_MAX_LABEL_LENGTH} printable characters and is not 'background', got {name!r}."
            )
        value = _whole_number("labels", number, low=1, shown=item) if number else position
        if name in labels or value in labels.values():
            raise ConfError(f"--conf labels must name and number each label once, {item!r} repeats.")
        labels[name] = value
    return types.MappingProxyType(labels)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("all",):
        return MODELS
    if not names or not set(names) <= set(MODELS):
        raise ConfError(f"--conf models takes {', '.join(MODELS)} (several with commas) or all, got {text!r}.")
    return names


def _weights(text: str) -> Mapping[str, str]:
    chosen: dict[str, str] = {}
    for item in (item.strip() for item in text.split(",")):
        model, equals, where = (part.strip() for part in item.partition("="))
        if not equals:
            model, where = DEFAULT_MODEL, item
        if model not in MODELS or not where or model in chosen:
            raise ConfError(
                f"--conf weights takes a path or a registry name for {DEFAULT_MODEL}, or model=path,... for each of "
                f"{', '.join(MODELS)}; got {text!r}."
            )
        chosen[model] = where
    return types.MappingProxyType(chosen)


def _device(text: str) -> str:
    kind, colon, index = text.lower().partition(":")
    if kind in ("auto", "cpu") and not colon or kind == "cuda" and (not colon or index.isdecimal()):
        return text.lower()
    raise ConfError(f"--conf device takes auto, cpu, cuda or cuda:N, got {text!r}.")


def _cache_gb(text: str) -> float:
    return _gibibytes("cache_gb", text)


def _upload_gb(text: str) -> float:
    return _gibibytes("upload_gb", text)


def _gibibytes(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfError(f"--conf {key} takes a positive number of GiB, got {text!r}.")
    return value


def _threads(text: str) -> int:
    return _whole_number("threads", text, low=0)


def _strategy(text: str) -> str:
    if text not in STRATEGIES:
        raise ConfError(f"--conf strategy takes {', '.join(STRATEGIES)}, got {text!r}.")
    return text


def _preload(text: str) -> bool:
    value = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in value:
        raise ConfError(f"--conf preload takes true or false, got {text!r}.")
    return value[text.lower()]


def _whole_number(key: str, text: str, low: int, shown: str | None = None) -> int:
    if not text.strip().isdecimal() or int(text) < low:
        raise ConfError(f"--conf {key} takes whole numbers of at least {low}, got {shown or text!r}.")
    return int(text)


_PARSERS = {
    "models": _models,
    "labels": parse_labels,
    "device": _device,
    "weights": _weights,
    "cache_gb": _cache_gb,
    "threads": _threads,
    "strategy": _strategy,
    "preload": _preload,
    "upload_gb": _upload_gb,
}
