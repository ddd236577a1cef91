"""Training of a whole promptable model on generated anatomy and real scans, with simulated clicks and boxes.

One patch a step, many objects from one embedding, several rounds with the previous logits as mask prompt. The schedule
follows the time budget, so that the same recipe runs for twenty minutes on a laptop or for a day on a GPU; it can be
stopped and resumed at any minute (checkpoint.pt) and needs no MONAI Label.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..anatomy.fields import Draw
from ..anatomy.generator import MIX, generate
from ..build import Sam3D, build_sam
from ..intensity import normalise
from ..losses import hard_dice, mask_loss, surface_loss
from ..spec import SamSpec
from ..zoo import get_spec
from . import loop
from .data import TrainingPatches, case_edge, cut, load_scans, occupancy, pick_targets, read_split
from .prompting import boxes, error_clicks

logger = logging.getLogger(__name__)

VALIDATION_SEED = 2_000_000_000  # training draws its cases below 2**31 at random; these few are never drawn on purpose


@dataclass(frozen=True)
class PretrainConfig:
    """A recipe; see recipes/*.json.

    Attributes:
        spec: row of zoo.py. seed: of weights and data. minutes: time budget, over all resumed runs.
        learning_rate, weight_decay, warmup_steps, clip: AdamW; cosine to zero over the budget.
        objects: targets a patch. rounds: (share, objects, rounds) of the kinds of step.
        box_share: steps that begin with a box; half of them with a click too.
        uniform_share: clicks placed anywhere in the error region instead of in its middle.
        repeat_share: rounds after the first that bring no new click, only the mask before (as published, where one
            random round and the last are such); so the model learns to improve its own mask.
        stages: (until this share of the budget, edge of the cubes, cubes a step): small cubes first, because what
            convolutions and clicks must learn is local and costs an eighth there.
        real_share, reuse: see TrainingPatches. mix: (scene, share) of the generated cases.
        ema: decay of the averaged weights, which are what is published.
    """

    spec: str = "fastsam3d_compact"
    seed: int = 1
    minutes: float = 100.0
    learning_rate: float = 6e-4
    weight_decay: float = 0.05
    warmup_steps: int = 150
    clip: float = 1.0
    objects: int = 4
    rounds: tuple[tuple[float, int, int], ...] = ((0.6, 4, 3), (0.25, 3, 5), (0.15, 2, 7))
    stages: tuple[tuple[float, int, int], ...] = ((0.45, 64, 4), (1.0, 128, 1))
    box_share: float = 0.25
    uniform_share: float = 0.3
    repeat_share: float = 0.35
    real_share: float = 0.3
    reuse: int = 2
    mix: tuple[tuple[str, float], ...] = tuple(MIX.items())
    ema: float = 0.999
    workers: int = 0

    @classmethod
    def read(cls, path: Path) -> PretrainConfig:
        """From a JSON file.

        Raises:
            ValueError: unknown keys; the message lists the known ones.
        """
        return loop.config_from(cls, loop.read_json(path), str(path))


def unroll(
    model: Sam3D,
    image: Tensor,
    target: Tensor,
    rounds: int,
    with_box: bool,
    click_first: bool,
    uniform_share: float,
    repeat_share: float = 0.0,
    learn: Collection[int] | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Simulated rounds of prompts.

    Args:
        image: (V, channels, s, s, s); cubes smaller than the spec's get a random place in its position grid.
        target: (V, K, m, m, m) occupancy in [0, 1].
        learn: the rounds to learn from; the others run without gradients, in a third of the time. None for all.

    Returns:
        For each round to learn from the logits (V * K, 1, m, m, m) and the predicted IoU (V * K, 1); the sharpened logits of the last.
    """
    spec, (cubes, objects) = model.spec, target.shape[:2]
    window = None
    if image.shape[-1] != spec.patch_size:
        free = spec.encoder.grid - image.shape[-1] // spec.encoder.patch + 1
        window = torch.randint(0, free, (cubes, 3), device=image.device)
    features, skips = model.encode(image, window)
    if cubes > 1:
        features = features.repeat_interleave(objects, 0)
        skips = tuple(s.repeat_interleave(objects, 0) for s in skips)
    embedding = (features, skips)
    window = None if window is None else window.repeat_interleave(objects, 0)
    truth = target.flatten(0, 1)[:, None] > 0.5
    m, k = target.shape[-1], cubes * objects
    cell = spec.cell
    previous = torch.zeros(k, 1, m, m, m, device=image.device)
    points = torch.zeros(k, 0, 3, device=image.device)
    labels = torch.zeros(k, 0, dtype=torch.long, device=image.device)
    if with_box:
        corners, corner_labels = boxes(truth, 0.05, cell)
        points, labels = torch.cat([points, corners], 1), torch.cat([labels, corner_labels], 1)
    current, out = None, []
    for index in range(rounds):
        repeated = index > 0 and float(torch.rand(())) < repeat_share
        if not repeated and (index > 0 or click_first or not with_box):
            point, label = error_clicks(current, truth, uniform_share, cell)
            points, labels = torch.cat([points, point], 1), torch.cat([labels, label], 1)
        learned = learn is None or index in learn
        with torch.set_grad_enabled(learned and torch.is_grad_enabled()):
            logits, iou = model.decode(embedding, (points, labels), previous, window)
        if learned:
            out.append((logits.float(), iou))
        current = previous = logits.detach().float()
    return out, model.sharpen(embedding, logits)


def rounds_loss(outs: list[tuple[Tensor, Tensor]], sharp: Tensor, halves: Tensor) -> dict[str, Tensor]:
    """Loss of what `unroll` returned.

    Args:
        halves: (V, K, n, n, n) occupancy in [0, 1] at the resolution of sharpened logits.

    Returns:
        "total"; "first" and "last": Dice terms of those rounds; "sharp": that of the sharpened logits, if there are any.
    """
    truth = occupancy(halves, halves.shape[-1] // outs[0][0].shape[-1]).flatten(0, 1)[:, None]
    terms = [mask_loss(logits, truth, iou) for logits, iou in outs]
    out = {"first": terms[0]["dice"], "last": terms[-1]["dice"], "total": sum(t["total"] for t in terms) / len(terms)}
    if sharp.shape[-1] == halves.shape[-1]:
        fine = surface_loss(sharp, halves.flatten(0, 1)[:, None])
        out["sharp"], out["total"] = fine["dice"], out["total"] + fine["total"]
    return out


def _widened(value: Tensor, like: Tensor | None) -> Tensor:
    """A convolution's weight with zeros for the inputs that only `like` has; anything else as it is."""
    more = 0 if like is None or like.ndim != 5 else like.shape[1] - value.shape[1]
    return F.pad(value, (0, 0) * 3 + (0, more)) if more > 0 else value


def validation_cases(spec: SamSpec, count: int) -> list[tuple[Tensor, Tensor]]:
    """Fixed generated cases that no training draws: image (1, channels, S, S, S) and occupancy (1, K, m, m, m)."""
    found = []
    for seed in range(VALIDATION_SEED, VALIDATION_SEED + count):
        case = cut(Draw(seed), generate(seed, case_edge(spec)), spec.patch_size)
        target = pick_targets(Draw(seed), case.label.contiguous(), 4)
        if len(target):
            arrays = (x.contiguous().numpy() for x in (case.image, case.inside))
            image = torch.from_numpy(normalise(*arrays, spec.intensity))
            found.append((image[None], occupancy(target[None].float() / 64, spec.cell // 2)))
    return found


def with_others_images(cases: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The cases, each with the image of the next one: a network that does as well on these does not look at the image."""
    return [(cases[(n + 1) % len(cases)][0], target) for n, (_, target) in enumerate(cases)]


@torch.no_grad()
def dice_per_click(
    model: Sam3D, cases: Iterable[tuple[Tensor, Tensor]], clicks: int = 5, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Mean Dice of the mask grid's cells after 1, 3 and `clicks` simulated clicks: dice_1, dice_3, ..."""
    rows, device = [], torch.device(device)
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    for image, target in cases:
        image = image.to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outs, _ = unroll(model, image, target.to(device), clicks, False, True, 0.0)
        truth = target.to(device)[0, :, None] > 0.5
        rows.append(torch.stack([hard_dice(x > 0, truth) for x, _ in outs]))
    torch.set_rng_state(torch_state)
    mean = torch.cat(rows, dim=1).mean(1)
    return {f"dice_{n}": round(float(mean[n - 1]), 4) for n in (1, 3, clicks)}


class Pretraining:
    """State of one run in `folder`: model, averaged model, optimizer, clock. `run()` trains until the budget is used."""

    def __init__(
        self, config: PretrainConfig, folder: Path, shared: Path | None, split: Path, device: torch.device | str
    ) -> None:
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.spec = get_spec(config.spec)
        largest = max(edge for _, edge, _ in config.stages)
        if largest > self.spec.patch_size:
            raise ValueError(
                f"stages: cubes may have at most the {self.spec.patch_size} voxels an axis of {config.spec}'s patch, got {largest}"
            )
        self.model = build_sam(self.spec).to(self.device, memory_format=torch.channels_last_3d)
        self.average = build_sam(self.spec).to(self.device, memory_format=torch.channels_last_3d).eval()
        self.average.load_state_dict(self.model.state_dict())
        groups = loop.decay_groups(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds, self.started, self.clock = 0, 0.0, time.monotonic(), 0.0
        self.rank, self.world = loop.processes()
        scans = load_scans(shared, read_split(split)) if shared else []
        self.data = TrainingPatches.of(
            self.spec, config.seed + 100_003 * self.rank, config.objects, scans, real_share=config.real_share,
            reuse=config.reuse, mix=dict(config.mix),
        )  # fmt: skip
        self.running: dict[str, float] = {}

    @property
    def checkpoint(self) -> Path:
        """The resumable state."""
        return self.folder / "checkpoint.pt"

    def elapsed(self) -> float:
        """Seconds of training over all runs."""
        return self.seconds + time.monotonic() - self.started

    def save(self) -> None:
        """Write the checkpoint; a killed process loses at most the time since the last one."""
        state = {
            "config": json.dumps(asdict(self.config)), "step": self.step, "seconds": self.elapsed(),
            **loop.states(model=self.model, average=self.average, optimizer=self.optimizer),
        }  # fmt: skip
        loop.save_atomic(state, self.checkpoint)

    def warm_start(self, checkpoint: Path, fresh: tuple[str, ...] = ()) -> list[str]:
        """Begin with the averaged weights of another run; see `begin_with`."""
        weights = torch.load(checkpoint, map_location=self.device, weights_only=True)["average"]
        return self.begin_with(weights, str(checkpoint), fresh)

    def begin_with(self, weights: Mapping[str, Tensor], name: str, fresh: tuple[str, ...] = ()) -> list[str]:
        """Begin with other weights; parameters that they lack keep their fresh values.

        Where a convolution of this model sees more maps than that of the other, the weights of the new ones begin at 0.

        Args:
            weights: as in the model's state_dict. name: for the message.
            fresh: beginnings of names whose parameters keep fresh values all the same.

        Returns:
            The names of the parameters that are fresh.

        Raises:
            ValueError: there are parameters that this model lacks, or of another shape.
        """
        own = self.model.state_dict()
        weights = {k: _widened(v, own.get(k)) for k, v in weights.items() if not k.startswith(fresh)}
        odd = [k for k, v in weights.items() if k not in own or own[k].shape != v.shape]
        if odd:
            raise ValueError(f"{name} does not fit {self.spec.name}: {', '.join(odd[:5])} have no place there")
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        self.average.load_state_dict(self.model.state_dict())
        return missing

    def resume(self) -> bool:
        """Load the checkpoint if there is one."""
        state = loop.read_checkpoint(self.checkpoint, self.device)
        if state is None:
            return False
        loop.restore(state, model=self.model, average=self.average, optimizer=self.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.data.seed += self.step  # other patches than before the interruption
        return True

    def set_rate(self) -> None:
        """Warm-up by steps, then cosine by elapsed time (the processes' common clock)."""
        c = self.config
        rate = loop.cosine_rate(c.learning_rate, self.step, c.warmup_steps, self.clock / (60 * c.minutes))
        loop.set_rate(self.optimizer, rate)

    def set_stage(self) -> None:
        """Cubes of the coming samples, by the share of the budget that is used."""
        progress = self.clock / (60 * self.config.minutes)
        stage = next((s for s in self.config.stages if progress < s[0]), self.config.stages[-1])
        self.data.edge, self.data.cubes = stage[1], stage[2]

    def share_gradients(self) -> None:
        """Average gradients and clock over the processes; one process only reads its clock."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.clock = loop.mean_over_processes(grads, self.elapsed())

    def train_step(self, engine: Engine, batch: dict[str, Tensor]) -> dict[str, float]:
        """One optimiser step on one patch."""
        c = self.config
        self.set_rate()
        self.set_stage()
        self.model.train()
        draw = Draw(c.seed * 7919 + self.step)
        image = batch["image"].to(self.device).float().contiguous(memory_format=torch.channels_last_3d)
        _, objects, rounds = c.rounds[draw.weighted(share for share, _, _ in c.rounds)]
        halves = batch["target"][:, :objects].to(self.device).float() / 64
        target = occupancy(halves, self.spec.cell // 2)
        with_box = draw.chance(c.box_share)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            outs, sharp = unroll(
                self.model, image, target, rounds, with_box, draw.chance(0.5), c.uniform_share, c.repeat_share,
                learn={0, draw.integer(0, rounds), rounds - 1},
            )  # fmt: skip
        terms = rounds_loss(outs, sharp, halves)
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        self.share_gradients()
        if loop.step_if_finite(self.optimizer, self.model.parameters(), c.clip):
            loop.follow(self.average, self.model, loop.average_decay(c.ema, self.step))
        else:
            logger.warning("step %d skipped: gradient is not finite", self.step)
        self.step += 1
        return {name: term.item() for name, term in terms.items()}

    def validate(self, cases: int = 10, clicks: int = 5) -> dict[str, float]:
        """Mean Dice after 1, 3 and `clicks` clicks on fixed generated cases, averaged weights."""
        return dice_per_click(self.average, validation_cases(self.spec, cases), clicks, self.device)

    def run(self, resume: bool = True, validate_minutes: float = 10.0, save_minutes: float = 3.0) -> dict[str, float]:
        """Train until the budget is used; returns the last validation."""
        if resume and self.resume():
            logger.info("resumed at step %d, %.1f minutes", self.step, self.seconds / 60)
        self.started = time.monotonic()
        self.clock = self.elapsed()
        self.set_stage()
        loader = DataLoader(
            self.data,
            batch_size=None,
            num_workers=self.config.workers,
            prefetch_factor=4 if self.config.workers else None,
        )
        engine = Engine(self.train_step)
        last = {"save": self.elapsed(), "validate": self.elapsed()}
        result: dict[str, float] = {}

        @engine.on(Events.ITERATION_COMPLETED)
        def after(engine: Engine) -> None:
            for key, value in engine.state.output.items():
                self.running[key] = value if key not in self.running else 0.98 * self.running[key] + 0.02 * value
            now = self.clock
            if now > 60 * self.config.minutes:
                engine.terminate()
            if self.rank:
                return
            if self.step % 25 == 0:
                means = " ".join(f"{k} {v:.3f}" for k, v in self.running.items())
                logger.info("step %d  %.1f/%.0f min  %s", self.step, now / 60, self.config.minutes, means)
            if now - last["save"] > 60 * save_minutes:
                self.save()
                last["save"] = now
            if now - last["validate"] > 60 * validate_minutes:
                result.update(self.validate())
                logger.info("validation at step %d: %s", self.step, result)
                with open(self.folder / "validation.jsonl", "a") as f:
                    f.write(
                        json.dumps({"step": self.step, "minutes": round(now / 60, 2), **self.running, **result}) + "\n"
                    )
                last["validate"] = now

        engine.run(loader, max_epochs=1, epoch_length=10**9)
        if self.rank:
            return result
        self.save()
        result.update(self.validate(cases=30))
        logger.info("finished at step %d: %s", self.step, result)
        return result
