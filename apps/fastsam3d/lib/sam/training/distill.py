"""Layer-wise distillation of the image encoder: a teacher of D layers, a student of D / m layers.

As published (FastSAM3D, Shen et al. 2024): the student's k-th layer learns to give what the teacher's (m k)-th gives, one
layer after another; then the neck (the embedding), then masks from prompts. Two baselines of the paper's ablation share all the
rest: "fitnets" learns all layers and the neck at once (Romero et al. 2015), "output" learns the neck alone (MobileSAM, Zhang et
al. 2023). All three get the same number of steps. Differences are divided by the teacher's own spread between places at that layer,
so that layers count alike.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import DataLoader

from ..anatomy.fields import Draw
from ..build import Sam3D
from ..device import has_bfloat16
from . import loop
from .data import TrainingPatches, occupancy
from .pool import PatchPool
from .pretrain import rounds_loss, unroll

logger = logging.getLogger(__name__)

MODES = ("progressive", "fitnets", "output")


@dataclass(frozen=True)
class DistillConfig:
    """How to distil.

    Attributes:
        spec: row of zoo.py of the student. mode: one of MODES.
        steps: of all phases together. mask_share: share of them, at the end, on masks from prompts.
        neck_share: share of the progressive phases that the neck gets; the layers divide the rest evenly.
        learning_rate, weight_decay, warmup_steps, clip: AdamW (published: 8e-4, 0.1); cosine to zero in each phase.
        mask_rate: the learning rate on masks from prompts (published for fine-tuning: 8e-5).
        objects, rounds: of the last phase, see unroll. box_share: of its steps.
        ema: decay of the averaged weights, which are saved for export.
        seed: of data and weights. save_every: steps between checkpoints.
    """

    spec: str = "fastsam3d_compact"
    mode: str = "progressive"
    steps: int = 2000
    mask_share: float = 0.3
    neck_share: float = 0.3
    learning_rate: float = 8e-4
    mask_rate: float = 8e-5
    weight_decay: float = 0.1
    warmup_steps: int = 20
    clip: float = 1.0
    objects: int = 4
    rounds: int = 3
    box_share: float = 0.25
    ema: float = 0.99
    seed: int = 1
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.steps < 1 or not 0 <= self.mask_share < 1 or not 0 < self.neck_share < 1:
            raise ValueError("steps must be at least 1, mask_share in [0, 1) and neck_share in (0, 1)")


@dataclass(frozen=True)
class Phase:
    """A part of a distillation: what is learned in steps [begin, end).

    Attributes:
        layers: student layers (from 1) whose outputs are compared. neck: compare the embedding. masks: prompts to masks.
        trained: the first so many layers learn (with the stem); with `neck` the neck does too.
    """

    name: str
    begin: int
    end: int
    layers: tuple[int, ...]
    neck: bool
    masks: bool
    trained: int


def phases(config: DistillConfig, depth: int) -> list[Phase]:
    """The phases of a mode for a student of `depth` layers; they fill `config.steps` without gaps."""
    masks = round(config.steps * config.mask_share)
    middle, every = config.steps - masks, tuple(range(1, depth + 1))
    last = [Phase("masks", middle, config.steps, (), False, True, depth)] if masks else []
    if config.mode == "fitnets":
        return [Phase("layers and neck", 0, middle, every, True, False, depth), *last]
    if config.mode == "output":
        return [Phase("neck", 0, middle, (), True, False, depth), *last]
    layered = round(middle * (1 - config.neck_share))
    bounds = [round(layered * n / depth) for n in range(depth + 1)]
    found = [Phase(f"layer {n}", bounds[n - 1], bounds[n], (n,), False, False, n) for n in every]
    return [*found, Phase("neck", layered, middle, (), True, False, depth), *last]


def factor(teacher: Sam3D, student: Sam3D) -> int:
    """How many teacher layers a student layer stands for.

    Raises:
        ValueError: depths that do not divide, or embeddings that cannot be compared.
    """
    t, s = teacher.spec.encoder, student.spec.encoder
    if t.depth % s.depth:
        raise ValueError(f"the teacher's depth must be a multiple of the student's, got {t.depth} and {s.depth}")
    if (t.width, t.out, t.grid, t.channels) != (s.width, s.out, s.grid, s.channels):
        raise ValueError(
            "teacher and student must agree in width, out, grid and channels, "
            f"got {(t.width, t.out, t.grid, t.channels)} and {(s.width, s.out, s.grid, s.channels)}"
        )
    return t.depth // s.depth


def inherit(student: Sam3D, teacher: Sam3D) -> list[str]:
    """Gives the student all of the teacher that is not a layer (stem, position, neck, prompt encoder, decoder).

    Returns:
        The names of the student's parameters that stay as they were.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    taken = {k: v for k, v in theirs.items() if ".blocks." not in k and k in own and own[k].shape == v.shape}
    student.load_state_dict(own | taken)
    return [k for k in own if k not in taken]


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference in units of the teacher's variance between places: what all places have in common tells nothing
    of an image, however large it is.

    Args:
        student, teacher: (B, g, g, g, channels).
    """
    teacher = teacher.float()
    return (student.float() - teacher).square().mean() / teacher.flatten(0, -2).var(0).mean().clamp_min(1e-6)


def compare(
    student: Sam3D, teacher: Sam3D, image: Tensor, phase: Phase, stages: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """Losses of one batch of whole patches (B, channels, S, S, S): a term for each layer, "neck", and "total".

    Args:
        stages: what the teacher's layers give, (B, g, g, g, width) each, where it is known already.
    """
    m = factor(teacher, student)
    with torch.no_grad():
        wanted = teacher.image_encoder.stages(image) if stages is None else stages
        embedding = teacher.image_encoder.embedding(wanted[-1]) if phase.neck else None
    found = student.image_encoder.stages(image)
    terms = {f"layer {k}": feature_loss(found[k], wanted[m * k]) for k in phase.layers}
    if phase.neck:
        terms["neck"] = feature_loss(
            student.image_encoder.embedding(found[-1]).movedim(1, -1), embedding.movedim(1, -1)
        )
    terms["total"] = sum(terms.values()) / len(terms)
    return terms


class Distillation:
    """One distillation in `folder`; `run()` goes on from its checkpoint if there is one.

    Args:
        student: fresh; it inherits from the teacher at the start. data: see TrainingPatches and PatchPool; None makes it.
        measure: figures of the averaged network for each row, such as its Dice; called before the first step too.
    """

    def __init__(
        self,
        config: DistillConfig,
        folder: Path,
        teacher: Sam3D,
        student: Sam3D,
        device: torch.device | str = "cpu",
        data: TrainingPatches | PatchPool | None = None,
        measure: Callable[[Sam3D], dict[str, float]] | None = None,
    ) -> None:
        self.measure = measure
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        factor(teacher, student)
        inherit(student, teacher)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.student = student.to(self.device).train()
        self.average = type(student)(student.spec).to(self.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.student.state_dict())
        groups = loop.decay_groups(self.student, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.phases = phases(config, student.spec.encoder.depth)
        self.half = has_bfloat16(self.device)
        self.step = 0
        self.rows: list[dict] = []
        self.data = data or TrainingPatches.of(student.spec, config.seed, config.objects)

    @property
    def checkpoint(self) -> Path:
        """The resumable state; `weights export-run` takes it."""
        return self.folder / "checkpoint.pt"

    def phase(self) -> Phase:
        """What the next step learns."""
        return next(p for p in self.phases if self.step < p.end)

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {
            "config": json.dumps(asdict(self.config)), "step": self.step, "rows": json.dumps(self.rows),
            **loop.states(model=self.student, average=self.average, optimizer=self.optimizer),
        }  # fmt: skip
        loop.save_atomic(state, self.checkpoint)

    def resume(self) -> bool:
        """Loads the checkpoint if there is one."""
        state = loop.read_checkpoint(self.checkpoint, self.device)
        if state is None:
            return False
        loop.restore(state, model=self.student, average=self.average, optimizer=self.optimizer)
        self.step, self.rows = state["step"], json.loads(state["rows"])
        return True

    def run(self) -> list[dict]:
        """Distils to the end; returns a row of mean losses, and of what `measure` found, for every `save_every` steps."""
        if self.resume():
            logger.info("resumed at step %d", self.step)
        elif self.measure:
            self.rows.append({"step": 0, "phase": "start"} | self.measure(self.average))
        self.data.seed += self.step  # other patches than before the interruption
        recent: list[float] = []
        engine = Engine(self._train_step)

        @engine.on(Events.ITERATION_COMPLETED)
        def after(engine: Engine) -> None:
            recent.append(engine.state.output)
            if self.step % self.config.save_every and self.step < self.config.steps:
                return
            name = next(p for p in self.phases if self.step <= p.end).name
            self.rows.append({"step": self.step, "phase": name, "loss": round(sum(recent) / len(recent), 6)})
            if self.measure:
                self.rows[-1] |= self.measure(self.average)
            recent.clear()
            logger.info("step %d of %d, %s: loss %.4f", self.step, self.config.steps, name, self.rows[-1]["loss"])
            self.save()

        if self.step < self.config.steps:
            engine.run(self._batches(), max_epochs=1, epoch_length=self.config.steps - self.step)
        return self.rows

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        return iter(DataLoader(self.data, batch_size=None))

    def _train_step(self, engine: Engine, batch: dict[str, Tensor]) -> float:
        c, phase = self.config, self.phase()
        used = (self.step - phase.begin) / max(1, phase.end - phase.begin)
        rate = c.mask_rate if phase.masks else c.learning_rate
        loop.set_rate(self.optimizer, loop.cosine_rate(rate, self.step - phase.begin, c.warmup_steps, used))
        self._free(phase)
        image = batch["image"].to(self.device).float()
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss = self._mask_loss(image, batch["target"]) if phase.masks else None
            if loss is None:
                stages = batch["stages"].to(self.device)[:, None] if "stages" in batch else None
                loss = compare(self.student, self.teacher, image, phase, stages)["total"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if loop.step_if_finite(self.optimizer, self.student.parameters(), c.clip):
            loop.follow(self.average, self.student, loop.average_decay(c.ema, self.step))
        self.step += 1
        return loss.item()

    def _free(self, phase: Phase) -> None:
        """Lets learn what the phase trains, and nothing else."""
        self.student.requires_grad_(phase.masks)
        encoder = self.student.image_encoder
        encoder.patch_embed.requires_grad_(True)
        encoder.pos_embed.requires_grad_(True)
        for block in encoder.blocks[: phase.trained]:
            block.requires_grad_(True)
        encoder.neck.requires_grad_(phase.neck or phase.masks)

    def _mask_loss(self, image: Tensor, target: Tensor) -> Tensor:
        c, draw = self.config, Draw(self.config.seed * 7919 + self.step)
        halves = target[:, : c.objects].to(self.device).float() / 64
        boxed = self.student.spec.decoder.boxes and draw.chance(c.box_share)
        cells = occupancy(halves, self.student.spec.cell // 2)
        outs, sharp = unroll(self.student, image, cells, c.rounds, boxed, draw.chance(0.5), 0.3, 0.35)
        return rounds_loss(outs, sharp, halves)["total"]
