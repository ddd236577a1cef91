"""What fine-tuning is for every kind of model: epochs, clock, schedule, averaged weights, checkpoints, and how far to go.

Ignite runs the epochs. What a model kind adds are the loss of a step and the figures of a validation (finetune.py,
finetune2d.py). Every random choice follows from (seed, step, pass), so a resumed run, and a run on several processes,
compute what one uninterrupted process would.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..anatomy.fields import Draw
from ..build import Sam2D, Sam3D
from ..device import has_bfloat16
from . import loop
from .finetune_config import TuningConfig
from .patches import PatchSet

logger = logging.getLogger(__name__)

_LOSS_WEIGHT = 2.0
_SHARES = (0.25, 0.5, 0.75, 1.0)


class Stopped(Exception):
    """Training was asked to stop; its checkpoint is written, and the next run goes on from there."""


class Tuning:
    """One training in `folder`; `run()` goes on from its checkpoint if there is one.

    A kind of model gives `memory_format`, `loss` and `scores`.

    Args:
        model: the network that it starts from; it is changed.
        patches: what to train on.
        minutes: of the config's budget that this training may use; None takes the config's.
        on_epoch: called with the row of every finished epoch (first process only).
        should_stop: asked between steps.
    """

    memory_format: torch.memory_format

    def __init__(
        self,
        config: TuningConfig,
        folder: Path,
        model: Sam3D | Sam2D,
        patches: PatchSet,
        device: torch.device | str = "cpu",
        minutes: float | None = None,
        on_epoch: Callable[[dict], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.minutes = config.minutes if minutes is None else minutes
        self.patches, self.on_epoch, self.should_stop = patches, on_epoch, should_stop
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spec = model.spec
        self.model = model.to(self.device, memory_format=self.memory_format).requires_grad_(True)
        self.model.image_encoder.requires_grad_(not config.freeze_encoder)
        self.train_mode()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.start = {k: v.clone() for k, v in self.average.items()}
        self.best = self.start
        self.optimizer = torch.optim.AdamW(
            loop.decay_groups(self.model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
        )
        self.rank, self.world = loop.processes()
        if config.batch % self.world:
            raise ValueError(f"batch must be a multiple of the {self.world} processes, got {config.batch}")
        self.half = config.half and has_bfloat16(self.device)
        self.step, self.seconds, self.begun, self.clock = 0, 0.0, time.monotonic(), 0.0
        self.rows: list[dict] = []
        self.known = 0.0
        self.losses: list[float] = []
        self.done = False

    def train_mode(self) -> None:
        """The model as it is trained."""
        self.model.train()

    def loss(self, seed: int) -> Tensor:
        """Loss of one pass, with gradients; every random choice follows from the seed."""
        raise NotImplementedError

    def scores(self) -> tuple[list[float], list[float]]:
        """Dice of the model as it is, in eval mode: on annotated structures of `patches.validation`, and on what it knew."""
        raise NotImplementedError

    @property
    def checkpoint(self) -> Path:
        """The resumable state."""
        return self.folder / "checkpoint.pt"

    def _score(self, dice: float, known: float) -> float:
        """What the best epoch has most of: Dice on the annotated structures, and no loss on what was known."""
        return dice - _LOSS_WEIGHT * max(0.0, self.known - known)

    def save(self) -> None:
        """Writes the checkpoint (first process)."""
        if self.rank:
            return
        state = {
            "step": self.step, "seconds": self._elapsed(), "rows": json.dumps(self.rows), "done": self.done,
            "known": self.known, "average": self.average, "best": self.best,
            **loop.states(model=self.model, optimizer=self.optimizer),
        }  # fmt: skip
        loop.save_atomic(state, self.checkpoint)

    def resume(self) -> bool:
        """Loads the checkpoint if there is one."""
        state = loop.read_checkpoint(self.checkpoint, self.device)
        if state is None:
            return False
        loop.restore(state, model=self.model, optimizer=self.optimizer)
        self.average, self.best = state["average"], state["best"]
        self.step, self.seconds, self.done = state["step"], state["seconds"], state["done"]
        self.rows, self.known = json.loads(state["rows"]), state["known"]
        return True

    def run(self) -> dict[str, Tensor]:
        """Trains until epochs, budget or patience are used up; returns the averaged weights that validated best.

        Raises:
            Stopped: `should_stop` said so. ValueError: the loss is not finite any more.
        """
        if self.resume():
            logger.info("resumed %s after %d epochs", self.folder.name, len(self.rows))
        if self.done:
            return self.best
        self.begun, self.clock = time.monotonic(), self.seconds
        if not self.rows:
            self.known = self.validate(self.start)[1]
        engine = Engine(self._train_step)
        stopper = EarlyStopping(self.config.patience, lambda _: self.rows[-1]["score"], engine)
        board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) if self.rank == 0 else None

        @engine.on(Events.ITERATION_COMPLETED)
        def after_step(engine: Engine) -> None:
            if board:
                board.add_scalar("loss/step", engine.state.output, self.step)
            if self.minutes and self.clock > 60 * self.minutes:
                engine.terminate()
                if self.losses:
                    self._finish_epoch(board)

        @engine.on(Events.EPOCH_COMPLETED)
        def after_epoch(engine: Engine) -> None:
            if self.losses:  # else the budget ended it at the same step
                self._finish_epoch(board)

        engine.add_event_handler(Events.EPOCH_COMPLETED, stopper)
        left = self.config.epochs - self.step // self.config.steps_per_epoch
        try:
            if left > 0:
                engine.run(range(self.config.steps_per_epoch), max_epochs=left)
        finally:
            if board:
                board.close()
        self.best, self.done = self._blended(), True
        self.save()
        return self.best

    def _blended(self) -> dict[str, Tensor]:
        """The best average, drawn back towards the start as far as validation asks for (Wortsman et al. 2022, WiSE-FT).

        What was learned grows with the share of the way, what is forgotten with its square; so a part of the way often has
        most of the one and little of the other.
        """
        if all(torch.equal(self.best[k], v) for k, v in self.start.items()):
            return self.best
        found = []
        for share in _SHARES:
            mixed = {
                k: v.lerp(self.best[k], share) if v.is_floating_point() else self.best[k] for k, v in self.start.items()
            }
            found.append((self._score(*self.validate(mixed)), share, mixed))
        score, share, mixed = max(found, key=lambda item: item[:2])
        logger.info(
            "%s: %.0f %% of the way from the served weights is best (score %.4f)", self.folder.name, 100 * share, score
        )
        return mixed

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.begun

    def _progress(self) -> float:
        """Share of the schedule that is used, by steps or by time."""
        by_step = self.step / (self.config.epochs * self.config.steps_per_epoch)
        by_time = self.clock / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_step, by_time))

    def _train_step(self, engine: Engine, _: Any) -> float:
        """One optimiser step on this process's share of the batch; returns the loss of the whole batch."""
        if self.should_stop():
            raise Stopped(f"stopped after {len(self.rows)} epochs")
        c = self.config
        loop.set_rate(self.optimizer, loop.cosine_rate(c.learning_rate, self.step, c.warmup_steps, self._progress()))
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for index in range(self.rank, c.batch, self.world):
            term = self.loss((c.seed * 1_000_003 + self.step) * 4099 + index) * self.world / c.batch
            term.backward()
            loss += term.item()
        loss = self._share(loss)
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} at step {self.step}; lower learning_rate ({c.learning_rate})")
        loop.step_if_finite(self.optimizer, [p for p in self.model.parameters() if p.requires_grad], c.clip)
        decay = loop.average_decay(c.ema, self.step)
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        self.losses.append(loss)
        return loss

    def _share(self, loss: float) -> float:
        """Averages gradients, loss and clock over the processes; returns the loss."""
        mean = torch.tensor([loss], device=self.device)
        for p in self.model.parameters():
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.model.parameters() if p.requires_grad]
        self.clock = loop.mean_over_processes([*gradients, mean], self._elapsed())
        return float(mean)

    def _finish_epoch(self, board: SummaryWriter | None) -> None:
        """Validates, keeps the best average, tells the caller and writes the checkpoint."""
        dice, known = self.validate(self.average)
        score = self._score(dice, known)
        better = all(score >= row["score"] for row in self.rows)
        row = {
            "epoch": len(self.rows) + 1, "step": self.step, "loss": round(float(np.mean(self.losses)), 5),
            "dice": round(dice, 5), "known": round(known, 5), "score": round(score, 5),
            "seconds": round(self._elapsed(), 1),
        }  # fmt: skip
        self.rows.append(row)
        self.losses = []
        if better:
            self.best = {k: v.clone() for k, v in self.average.items()}
        if board:
            board.add_scalar("loss/epoch", row["loss"], self.step)
            board.add_scalar("dice/validation", row["dice"], self.step)
            board.add_scalar("dice/known", row["known"], self.step)
            board.flush()
        self.save()
        if self.rank == 0:
            self.on_epoch(row)

    @torch.no_grad()
    def validate(self, weights: dict[str, Tensor]) -> tuple[float, float]:
        """Mean Dice with these weights: on annotated structures, and on what the served model knew.

        The first on images of the training cases that training does not use, the second on what else `scores` measures.
        They say when training has converged and how far to go; whether the model is better is for the gate, on other
        cases.
        """
        current = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        self.model.eval()
        learned, known = self.scores()
        self.model.load_state_dict(current)
        self.train_mode()
        result = torch.tensor([np.mean(learned or [0.0]), np.mean(known or [0.0])], dtype=torch.float32)
        result = result.to(self.device)
        loop.mean_over_processes([result], 0.0)  # so that all processes stop, and choose, alike
        return float(result[0]), float(result[1])

    def pick(self, draw: Draw) -> Path:
        """A file to train on: generated in `rehearsal` of the cases, else annotated."""
        known = self.patches.rehearsal[: len(self.patches.rehearsal) - len(self.set_aside())]
        rehearse = bool(known) and draw.chance(self.config.rehearsal)
        return draw.choice(list(known if rehearse else self.patches.train))

    def set_aside(self) -> tuple[Path, ...]:
        """The generated cases that only validation sees: a quarter of them."""
        return self.patches.rehearsal[len(self.patches.rehearsal) - len(self.patches.rehearsal) // 4 :]
