"""Training of the 2D models in three stages: teacher, encoder distillation, fine-tuning.

    teacher    TinyViT with prompt encoder and decoder, prompts to masks
    distill    RepViT's embeddings towards the teacher's; the decoder is not touched
    finetune   RepViT from `distill`, prompt encoder and decoder from the teacher, prompts to masks

The last two are the recipe of RepMedSAM, and its values are the defaults (recipe2d.py). A stage lasts so many epochs or
minutes; it can be stopped and resumed at any minute (checkpoint.pt) and shared by several processes (torchrun).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from ..build import Sam2D, build_sam2d
from ..losses import embedding_divergence, hard_dice, mask_loss
from ..zoo import get_spec2d
from . import loop
from .data import LabelledScan
from .data2d import ImageBatches, Mix
from .folders2d import OwnSlices
from .prompting2d import Prompting, occupancy, prompt_rounds, unroll
from .recipe2d import Recipe2d, Stage

logger = logging.getLogger(__name__)

ENCODER = "image_encoder."
DETAIL = "image_encoder.detail."
VALIDATION_SEED = 987_654_321


def shrink(image: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and masks (B, K, S, S) bool at a whole fraction of their size; no object vanishes."""
    factor = image.shape[-1] // size
    if factor == 1:
        return image, target
    share = F.avg_pool2d(target.float(), factor)
    mostly = share > 0.5
    return F.avg_pool2d(image, factor), torch.where(mostly.flatten(2).any(2)[..., None, None], mostly, share > 0)


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a run, on the CPU.

    Raises:
        FileNotFoundError: there is no such run yet.
    """
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"{checkpoint} is not there: run that stage first (--stage, with the same --out)")
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]


def prompt_loss(model: Sam2D, image: Tensor, target: Tensor, stage: Stage) -> dict[str, Tensor]:
    """Named terms of one pass with simulated prompts; "total" is what is minimised.

    Args:
        image: (B, 3, S, S) float32 in [0, 1], on the model's device. target: (B, K, S, S) bool, every object non-empty.
            Both are brought to the model's present image size.
        stage: its prompting, losses and precision.
    """
    image, target = shrink(image, target, model.spec.image_size)
    image = image.contiguous(memory_format=torch.channels_last)
    with _fast(image.device, stage.half):
        share = float(torch.rand(()))
        kinds = stage.prompting.rounds
        rounds = next((n for i, (_, n) in enumerate(kinds) if share < sum(s for s, _ in kinds[: i + 1])), kinds[-1][1])
        outs = unroll(model, image, target, stage.prompting, rounds)
    truth = occupancy(target.flatten(0, 1)[:, None], model.spec.mask_size)
    terms = [mask_loss(logits, truth, iou, stage.loss_weights, stage.balance) for logits, iou in outs]
    return {
        "total": sum(t["total"] for t in terms) / len(terms),
        "first": terms[0]["dice"], "last": terms[-1]["dice"], "iou": terms[-1]["iou"],
    }  # fmt: skip


@contextmanager
def _fast(device: torch.device, half: bool) -> Iterator[None]:
    """Autocast to bfloat16, if that is wanted, and the attention that is fast on the device."""
    kernels = [SDPBackend.MATH] if device.type == "cpu" else list(_FAST_ATTENTION)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half), sdpa_kernel(kernels):
        yield


class Training2d:
    """One stage of a recipe in `folder / stage`: model, averaged model, optimizer, clock. `run()` trains.

    Args:
        recipe, stage: what to do. folder: of the whole recipe; stages find each other in it.
        scans: real labelled scans that may train. own: the user's slices.
        from_scratch: fine-tune an encoder that was not distilled (the paper's ablation).
        teacher: checkpoint of the teacher; None: that of the same folder.
    """

    def __init__(
        self,
        recipe: Recipe2d,
        stage: str,
        folder: Path,
        device: torch.device | str = "cpu",
        scans: list[LabelledScan] | None = None,
        own: OwnSlices | None = None,
        from_scratch: bool = False,
        teacher: Path | None = None,
    ) -> None:
        self.recipe, self.stage, self.config = recipe, stage, recipe.stages[stage]
        self.root, self.folder, self.device = Path(folder), Path(folder) / stage, torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.spec = recipe.spec_of(stage)
        self.model = build_sam2d(self.spec)
        self.teacher: Sam2D | None = None
        if stage != "teacher":
            self._take_from_earlier_stages(teacher or self.root / "teacher" / "checkpoint.pt", from_scratch)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.average = build_sam2d(self.spec).to(self.device, memory_format=torch.channels_last).eval()
        self.average.load_state_dict(self.model.state_dict())
        trained = self.model.image_encoder if stage == "distill" else self.model
        if stage == "distill" and trained.detail is not None:
            trained.detail.requires_grad_(False)  # the teacher's: what its decoder reads is not distilled
        self.trained = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(loop.decay_groups(trained, self.config.weight_decay), betas=(0.9, 0.98))
        self.rank, self.world = loop.processes()
        self.scans, self.own = scans or [], own
        self.step, self.seconds, self.clock, self.best = 0, 0.0, 0.0, -float("inf")
        self.started = time.monotonic()
        self.running: dict[str, float] = {}

    def _take_from_earlier_stages(self, teacher: Path, from_scratch: bool) -> None:
        state = averaged(teacher)
        own = self.model.state_dict()
        heads = {k: v for k, v in state.items() if not k.startswith(ENCODER) or k.startswith(DETAIL)}
        if self.stage == "distill":
            self.teacher = build_sam2d(get_spec2d(self.recipe.teacher)).eval()
            self.teacher.load_state_dict(state)
            self.teacher.to(self.device, memory_format=torch.channels_last)
        elif not from_scratch:
            own |= {k: v for k, v in averaged(self.root / "distill" / "checkpoint.pt").items() if k.startswith(ENCODER)}
        self.model.load_state_dict(own | heads)

    @property
    def checkpoint(self) -> Path:
        """The resumable state."""
        return self.folder / "checkpoint.pt"

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch, over all processes."""
        c = self.config
        images = c.epoch_images or (c.visits * self.own.count if self.own else 2000)
        return max(1, images // (c.images * c.passes * self.world))

    def progress(self) -> float:
        """Share of the stage that is done."""
        c = self.config
        return self.clock / (60 * c.minutes) if c.minutes else self.step / (c.epochs * self.steps_per_epoch)

    def elapsed(self) -> float:
        """Seconds of training over all runs."""
        return self.seconds + time.monotonic() - self.started

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {
            "config": json.dumps({"spec": self.spec.name, "stage": self.stage, "recipe": asdict(self.recipe)}),
            "step": self.step, "seconds": self.elapsed(), "best": self.best,
            **loop.states(model=self.model, average=self.average, optimizer=self.optimizer),
        }  # fmt: skip

    def resume(self) -> bool:
        """Load the checkpoint if there is one; images and prompts go on where they were."""
        state = loop.read_checkpoint(self.checkpoint, self.device)
        if state is None:
            return False
        loop.restore(state, model=self.model, average=self.average, optimizer=self.optimizer)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        return True

    def warm_start(self, checkpoint: Path) -> list[str]:
        """Begin with the averaged weights of another run of that spec; parameters that it lacks, or has in another
        shape, keep their fresh values.

        Returns:
            The names of those parameters.
        """
        own = self.model.state_dict()
        fitting = {k: v for k, v in averaged(checkpoint).items() if k in own and own[k].shape == v.shape}
        for model in (self.model, self.average):
            model.load_state_dict(self.model.state_dict() | fitting)
        return sorted(own.keys() - fitting.keys())

    def stream(self, number: int) -> ImageBatches:
        """The images of the number-th pass of all processes; passes and processes are interchangeable."""
        c = self.config
        objects = 1 if self.stage == "distill" else c.objects
        return ImageBatches(
            self.recipe.seed + 100_003 * number, self.spec.image_size, c.images, objects, c.mix, self.scans,
            self.own.training if self.own else None, self.step,
        )  # fmt: skip

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of two encoders' embeddings; detail, which rides behind them, is left to fine-tuning."""
        width = self.spec.encoder.out
        return embedding_divergence(student[:, :width], teacher[:, :width])

    def size(self) -> int:
        """Edge of the coming images."""
        progress = self.progress()
        return next((edge for until, edge in self.config.sizes if progress < until), self.spec.image_size)

    def loss(self, model: Sam2D, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms of one pass; "total" is what is minimised."""
        image, target = batch["image"].to(self.device), batch["target"].to(self.device)
        if self.teacher is None:
            return prompt_loss(model, image, target, self.config)
        image = shrink(image, target, model.spec.image_size)[0].contiguous(memory_format=torch.channels_last)
        with _fast(self.device, self.config.half):
            with torch.no_grad():  # convolutions and windows take any size
                wanted = self.teacher.image_encoder(image)
            return {"total": self.divergence(model.image_encoder(image), wanted)}

    def gradients(self, batches: tuple[dict[str, Tensor], ...]) -> dict[str, float]:
        """Gradients of one step, the mean over its passes and over all processes; returns the mean terms."""
        self.model.train()
        self.model.set_image_size(self.size())
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for place, batch in enumerate(batches):
            number = self.rank * len(batches) + place
            torch.manual_seed((self.recipe.seed * 7919 + self.step) * 1009 + number)
            terms = self.loss(self.model, batch)
            (terms["total"] / len(batches)).backward()
            for key, value in terms.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach()) / len(batches)
        shared = [p.grad for p in self.trained if p.grad is not None]
        shared += [b for b in self.model.buffers() if b.is_floating_point()]
        self.clock = loop.mean_over_processes(shared, self.elapsed())
        return totals

    def train_step(self, engine: Engine, batches: tuple[dict[str, Tensor], ...]) -> dict[str, float]:
        """One optimiser step."""
        c = self.config
        terms = self.gradients(batches)
        loop.set_rate(self.optimizer, loop.cosine_rate(c.learning_rate, self.step, c.warmup_steps, self.progress()))
        if loop.step_if_finite(self.optimizer, self.trained, c.clip or float("inf")):
            loop.follow(self.average, self.model, loop.average_decay(c.ema, self.step))
        else:
            logger.warning("step %d skipped: gradient is not finite", self.step)
        self.step += 1
        return terms

    @torch.no_grad()
    def validate(self, batches: int = 10) -> dict[str, float]:
        """On fixed images: Dice of tight boxes on the mask grid, or the divergence; "score" is better when larger.

        The images are held-out files of the user, else generated (no training stream has that seed).
        """
        c = self.config
        mix = dataclasses.replace(c.mix, cases=2, scans=0, own=0) if self.own is None else Mix(0, 0, 0, 0, 40, 1)
        source = self.own.held_out if self.own else None
        stream = ImageBatches(VALIDATION_SEED, self.spec.image_size, 4, 4, mix, [], source)
        kept, values = torch.get_rng_state(), []
        torch.manual_seed(0)
        tight = Prompting(tight_share=1.0)
        for _, batch in zip(range(batches), iter(stream)):
            image = batch["image"].to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=c.half):
                if self.teacher is not None:
                    found = self.divergence(self.average.image_encoder(image), self.teacher.image_encoder(image))
                    values.append(found[None])
                    continue
                embedding = self.average.encode(image).repeat_interleave(batch["target"].shape[1], 0)
                truth = batch["target"].to(self.device).flatten(0, 1)[:, None]
                logits, _ = prompt_rounds(self.average, embedding, truth, tight, 1)[0]
            values.append(hard_dice(logits > 0, occupancy(truth, logits.shape[-1]) > 0.5))
        torch.set_rng_state(kept)
        mean = round(float(torch.cat(values).mean()), 4)
        return {"divergence": mean, "score": -mean} if self.teacher is not None else {"dice_box": mean, "score": mean}

    def _validate_and_keep(self) -> dict[str, float]:
        result = self.validate()
        logger.info("%s: validation at step %d: %s", self.stage, self.step, result)
        row = {"step": self.step, "minutes": round(self.clock / 60, 2), **self.running, **result}
        with open(self.folder / "validation.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")
        if result["score"] > self.best:
            self.best = result["score"]
            kept = {k: v for k, v in self.state().items() if k not in ("model", "optimizer")}
            loop.save_atomic(kept, self.folder / "best.pt")
        return result

    def run(self, resume: bool = True, save_minutes: float = 2.0) -> dict[str, float]:
        """Train until the budget is used; returns the last validation. best.pt holds the best validated weights."""
        if resume and self.resume():
            logger.info("%s: resumed at step %d, %.1f minutes", self.stage, self.step, self.seconds / 60)
        self.started = time.monotonic()
        self.clock = self.elapsed()
        if self.progress() >= 1:
            return self._validate_and_keep() if self.rank == 0 else {}
        numbers = range(self.rank * self.config.passes, (self.rank + 1) * self.config.passes)
        loaders = [DataLoader(self.stream(n), batch_size=None) for n in numbers]
        engine = Engine(self.train_step)
        last = {"save": self.clock, "validate": self.clock}

        @engine.on(Events.ITERATION_COMPLETED)
        def after(engine: Engine) -> None:
            for key, value in engine.state.output.items():
                self.running[key] = value if key not in self.running else 0.98 * self.running[key] + 0.02 * value
            if self.progress() >= 1:
                engine.terminate()
            if self.rank:
                return
            if self.step % 25 == 0:
                means = " ".join(f"{k} {v:.3f}" for k, v in self.running.items())
                logger.info("%s: step %d  %.1f min  %s", self.stage, self.step, self.clock / 60, means)
            if self.clock - last["save"] > 60 * save_minutes:
                loop.save_atomic(self.state(), self.checkpoint)
                last["save"] = self.clock
            timed = self.config.minutes is not None
            due = self.clock - last["validate"] > 60 * self.config.validate_minutes
            if due if timed else self.step % self.steps_per_epoch == 0:
                self._validate_and_keep()
                last["validate"] = self.clock

        engine.run(zip(*loaders), max_epochs=1, epoch_length=10**9)
        if self.rank:
            return {}
        result = self._validate_and_keep()
        loop.save_atomic(self.state(), self.checkpoint)
        logger.info("%s: finished at step %d: %s", self.stage, self.step, result)
        return result


_FAST_ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
