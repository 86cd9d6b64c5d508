"""The training loop: an accelerate loop over any method, which it does not know by name.

`Trainer.run` is a generator that yields after every optimizer step, so that a command line, a
notebook or a test drives it and shows what it likes.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from pidistill import images
from pidistill.data import Dataset
from pidistill.errors import PidistillError
from pidistill.files import clear_leftovers, held, sync
from pidistill.methods.base import Batch, Losses, Method, Preparation, Run
from pidistill.model_folder import (
    MODEL_FILE,
    describe,
    description_text,
    weights_name,
    write_description,
)
from pidistill.noise import Draws
from pidistill.numerics import set_numerics
from pidistill.processes import join_processes
from pidistill.sharding import load_whole, whole_tensors
from pidistill.storage import read_tensors, write_tensors
from pidistill.training.averages import EMA
from pidistill.training.best import Best
from pidistill.training.checkpoint import (
    clear_unfinished,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    truncate_log,
    write_checkpoint,
)
from pidistill.training.config import CONFIG_FILE, RunConfig, config_text, write_config
from pidistill.training.distributed import (
    block_names,
    compile_networks,
    make_accelerator,
    parts_of_batch,
    whole_weights,
)
from pidistill.training.heartbeat import Heartbeat
from pidistill.training.log import LOG_FILE, PREVIEW_COLUMNS, PREVIEWS
from pidistill.training.measured import batch_means, where_not_finite
from pidistill.training.tracking import LOGS, chosen_trackers, track_picture, tracked

log = logging.getLogger("pidistill")

METHOD_FILE = "method.safetensors"
"""In a checkpoint: what a method keeps beside the student."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
}

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,
    "linear": lambda fraction: 1 - fraction,
    "cosine": lambda fraction: (1 + math.cos(math.pi * fraction)) / 2,
}


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What is known after an optimizer step."""

    step: int
    """Optimizer steps done."""
    images: int
    """Samples seen."""
    loss: float
    """Mean loss of the step, over all processes."""
    seconds: float
    """Time spent training, interruptions left out."""


def seed_dropout(draws: Draws, device: torch.device) -> None:
    """Seed torch's generators, which dropout draws from, by the first sample of a batch.

    So a resumed run drops what the straight one does.
    """
    first = Draws(draws.seed, draws.first, 1)
    seed = int(first.uniform("dropout").item() * 2**53)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would do it for all devices
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class LossModule(nn.Module):
    """The one module that accelerate wraps: its forward is the method's loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.student = method.student
        self._loss = method.loss
        self._no_split_modules = block_names(method.student)  # accelerate's name

    def forward(self, batch: Batch) -> Losses:
        """The losses of the student on `batch`."""
        return self._loss(batch)


class Trainer:
    """Trains the student of a method and keeps its run folder."""

    def __init__(
        self, config: RunConfig, method: Method, folder: Path, *, data: Dataset | None = None
    ) -> None:
        """Prepare a run; nothing is written yet.

        Args:
            config: The run's config.
            method: What is trained.
            folder: The run folder.
            data: Images, for a method that needs them.

        Raises:
            PidistillError: The batch cannot be divided as the config says, or data are missing.
        """
        set_numerics()
        self.config, self.method, self.folder, self.data = config, method, folder, data
        if method.needs == "images" and data is None:
            raise PidistillError("this method trains on images; name a data set with 'data'")
        self.accelerator = make_accelerator(
            config.mixed_precision,
            log_with=chosen_trackers(config.report_to) or None,
            project_config=ProjectConfiguration(str(folder), str(folder / LOGS)),
        )
        self.processes = join_processes()
        self.parts = parts_of_batch(config, self.processes.count)
        self.micro_batch = config.batch_size // (self.parts * self.processes.count)
        method.to(self.accelerator.device)
        if config.torch_compile:
            compile_networks(method, self.accelerator.device)
        student = method.student
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = OPTIMIZERS[config.optimizer](
            parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
        )
        self.module, self.optimizer = self.accelerator.prepare(LossModule(method), optimizer)
        self.ema = EMA(student, config.ema_rates, warmup=config.ema_warmup)
        self.best = Best()
        self.preview_steps = config.preview_steps
        self.heartbeat = Heartbeat(
            folder if self.processes.is_main else None,
            config.max_train_steps,
            config.batch_size,
        )
        self.step = 0
        self.seconds = 0.0
        self.teacher_evaluations = method.teacher_evaluations_before
        self.prepared = False
        self.sums: dict[str, float] = {}
        self.summed_steps = 0

    def prepare(self) -> Iterator[Preparation]:
        """Do what the method needs before its first step, yielding as it goes on.

        `run` does it too; this is for those who want to show how far it is. Several processes share
        the work, and each yields how far its own part is.
        """
        run = Run(self.folder, self.config.teacher, self.config.seed, self.processes)
        with self._held(), self.heartbeat.preparing():
            for progress in self.method.prepare(run):
                if self.processes.is_main and not (self.folder / CONFIG_FILE).exists():
                    write_config(self.folder / CONFIG_FILE, self.config)
                self.heartbeat.prepared(progress)
                yield progress
        self.prepared = True

    def run(
        self, should_stop: Callable[[], bool] = lambda: False
    ) -> Generator[StepReport, None, None]:
        """Train up to `max_train_steps`, yielding after every step.

        Resumes from the newest checkpoint where the folder has one. A checkpoint is written every
        `checkpointing_steps`, at the end, and when `should_stop` turns true in any of the
        processes: all of them stop after the same step. Preparation that is cut goes on in the next
        run.

        Raises:
            PidistillError: The loss is not finite, or another process trains in the folder. What
                was saved before stays.
        """
        if not self.prepared:
            for _ in self.prepare():
                if should_stop():
                    return
        with self._held(), contextlib.ExitStack() as watched:
            self._resume()
            self._require_steps_left()
            watched.enter_context(self.heartbeat.training(self.step))
            again = self.step + 1 if self.step else 0
            watched.enter_context(tracked(self.accelerator, self.folder, again))
            if self.processes.is_main:
                write_config(self.folder / CONFIG_FILE, self.config)
                self._write_description()
            if self.step == 0:
                self._measure_start()
                self._preview()
            while self.step < self.config.max_train_steps:
                report = self.train_step()
                self.heartbeat.trained(self.step, report.loss)
                done = self.step == self.config.max_train_steps
                stop = self.processes.any(should_stop())
                if self.step % self.config.logging_steps == 0 or done:
                    self._write_log_line()
                if self.step % self.config.checkpointing_steps == 0 or done or stop:
                    self._save()
                if done or (self.preview_steps and self.step % self.preview_steps == 0):
                    self._preview()
                yield report
                if stop:
                    return

    def _require_steps_left(self) -> None:
        if self.step > self.config.max_train_steps:
            raise PidistillError(
                f"max_train_steps is {self.config.max_train_steps}, but the run in {self.folder} "
                f"has done {self.step} steps; expected at least as many"
            )

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run folder, which is the first process's business where there are several."""
        if self.processes.is_main:
            return held(self.folder)
        return contextlib.nullcontext()

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step` of the phase under way, counted from 0."""
        config = self.config
        first, end = self.method.phase(config.max_train_steps)
        done = step - first
        warmup = min(1.0, (done + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
        decay = DECAYS[config.lr_scheduler](min(1.0, done / max(1, end - first)))
        return config.learning_rate * warmup * max(decay, config.lr_end)

    def batch(self, first: int) -> Batch:
        """The micro-batch whose samples are numbered `first ..` over the whole run."""
        draws = Draws(self.config.seed, first, self.micro_batch)
        device = self.accelerator.device
        student = self.method.student
        num_classes = student.num_classes
        if self.method.needs == "images":
            assert self.data is not None
            index = draws.integers("train image", len(self.data.images))
            labels = self.data.labels
            label = labels[index].to(device) if labels is not None and num_classes else None
            return Batch(draws, label, self.data.images[index].to(device))
        label = draws.integers("train label", num_classes).to(device) if num_classes else None
        return Batch(draws, label, None)

    @torch.no_grad()
    def _measure_start(self) -> None:
        """Log the losses of the untrained student: how far a copied network is from the answer."""
        measured = [self._losses(part) for part in range(self.parts)]
        self.sums = self._means(measured)
        self.summed_steps = 1
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.sums.items())
        log.info("before training: %s", numbers)
        self._write_log_line()

    def train_step(self) -> StepReport:
        """Take one optimizer step; nothing is written."""
        config, accelerator = self.config, self.accelerator
        began = time.perf_counter()
        if self.method.start_phase(self.step, config.max_train_steps):
            self.optimizer.state.clear()
            self.ema = EMA(self.method.student, config.ema_rates, warmup=config.ema_warmup)
            self.best = Best()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        measured = []
        for part in range(self.parts):
            last = part == self.parts - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                losses = self._losses(part)
                accelerator.backward(losses.loss.mean() / self.parts)
            measured.append(dataclasses.replace(losses, loss=losses.loss.detach()))
        means = self._means(measured)
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.module.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step - self.method.phase(config.max_train_steps)[0])
        self.method.after_step(self.step)
        self.step += 1
        self.teacher_evaluations += config.batch_size * self.method.teacher_evaluations
        for name, mean in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean
        self.summed_steps += 1
        self.best.update(means["loss"])
        self.seconds += time.perf_counter() - began
        return StepReport(self.step, self.step * config.batch_size, means["loss"], self.seconds)

    def _losses(self, part: int) -> Losses:
        """The losses of micro-batch `part` of this process in the coming step."""
        shard = part * self.processes.count + self.processes.index
        batch = self.batch(self.step * self.config.batch_size + shard * self.micro_batch)
        seed_dropout(batch.draws, self.accelerator.device)
        with self.accelerator.autocast():  # FSDP's modules do not do it by themselves
            losses: Losses = self.module(batch)
        return losses

    def _means(self, measured: list[Losses]) -> dict[str, float]:
        """The means of a batch over all processes, all of which raise where they are not finite."""
        means = batch_means(measured, self.processes)
        if not math.isfinite(means["loss"]):
            raise PidistillError(
                f"the loss is {means['loss']} at step {self.step + 1} "
                f"({where_not_finite(measured, self.processes)}); the last checkpoint is kept; "
                "lower --learning-rate, or set max_grad_norm"
            )
        return means

    def _write_log_line(self) -> None:
        means = {name: total / self.summed_steps for name, total in self.sums.items()}
        self.sums, self.summed_steps = {}, 0
        images_seen = self.step * self.config.batch_size
        line = {
            "step": self.step,
            "images": images_seen,
            "loss": means.pop("loss"),
            **means,
            "learning_rate": self.learning_rate(max(0, self.step - 1)),
            "teacher_evals": self.teacher_evaluations,
            "seconds": round(self.seconds, 3),
        }
        if self.processes.is_main:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({key: line[key] for key in line if key != "step"}, step=self.step)

    def _save(self) -> None:
        """Write a checkpoint, then the weights at the top of the run folder.

        The main process does, with what it gathers from those that hold parts of it.
        """
        student, is_main = self.method.student, self.processes.is_main
        weights = {weights_name(0): whole_tensors(student.state_dict(), is_main)}
        for index, rate in enumerate(self.config.ema_rates):
            weights[weights_name(rate)] = whole_tensors(self.ema.weights(index), is_main)
        optimizer = whole_tensors(optimizer_tensors(self.optimizer), is_main)
        if not is_main:
            return
        for name, tensors in weights.items():
            for key, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise PidistillError(
                        f"weight {key!r} of {name} is not finite after step {self.step}; the last "
                        "checkpoint is kept; lower --learning-rate, or set max_grad_norm"
                    )
        config = self.config
        # Not where it was interrupted: the best is the same however often that happens.
        if self.step % config.checkpointing_steps == 0 or self.step == config.max_train_steps:
            self.best.judge(self.step)
        values: dict[str, Any] = {
            "seconds": self.seconds,
            "teacher_evals": self.teacher_evaluations,
            "sums": self.sums,
            "summed_steps": self.summed_steps,
            "best": dataclasses.asdict(self.best),
            "method": self.method.state_values(),
        }
        if self.accelerator.scaler is not None:
            values["scaler"] = self.accelerator.scaler.state_dict()
        files = {**weights, "optimizer.safetensors": optimizer}
        method_tensors = self.method.state_tensors()
        if method_tensors:
            files[METHOD_FILE] = method_tensors
        if (self.folder / LOG_FILE).exists():  # a checkpoint never knows more than the log
            sync(self.folder / LOG_FILE)
        write_checkpoint(
            self.folder / "state",
            self.step,
            files,
            values,
            keep=config.checkpoints_total_limit,
            texts={  # with them, a checkpoint is a run folder that can be sampled from
                MODEL_FILE: description_text(student, config.ema_rates[0]),
                CONFIG_FILE: config_text(config),
            },
            best=self.best.step if config.keep_best else None,
        )
        if describe(student) != self.description:
            self._write_description()
        self._write_weights(weights)

    def _write_description(self) -> None:
        """Write what the weights at the top of the run folder are for."""
        student = self.method.student
        self.description = describe(student)
        write_description(self.folder, student, self.config.ema_rates[0])

    def _write_weights(self, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write the weights at the top of the run folder, from where they are loaded."""
        for name, tensors in weights.items():
            write_tensors(self.folder / name, tensors)

    def _resume(self) -> None:
        """Take everything from the newest checkpoint, if there is one."""
        found = newest_checkpoint(self.folder / "state", log.warning)
        if self.processes.is_main:
            for folder in (self.folder, self.folder / PREVIEWS):
                clear_leftovers(folder)
            clear_unfinished(self.folder / "state")
            truncate_log(self.folder / LOG_FILE, -1 if found is None else found[1]["step"])
        if found is None:
            return
        checkpoint, manifest = found
        names = [weights_name(rate) for rate in (0, *self.config.ema_rates)]
        weights = {name: read_tensors(checkpoint / name) for name in names}
        load_whole(self.method.student, weights[names[0]])
        for index, name in enumerate(names[1:]):
            self.ema.load(index, weights[name])
        if self.processes.is_main:  # it may have died before it wrote them
            self._write_weights(weights)
        load_optimizer(self.optimizer, checkpoint)
        values = manifest["values"]
        kept = checkpoint / METHOD_FILE
        self.method.load_state(read_tensors(kept) if kept.exists() else {}, values["method"])
        self.teacher_evaluations = values["teacher_evals"]
        self.step = manifest["step"]
        self.seconds, self.sums = values["seconds"], values["sums"]
        self.summed_steps = values["summed_steps"]
        self.best = Best(**values["best"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        log.info("resumed at step %d", self.step)

    @torch.no_grad()
    def _preview(self) -> None:
        """Draw a grid of samples, where samples are images."""
        shape = self.method.student.sample_shape
        if not (self.preview_steps and images.is_image(shape)):
            return
        with whole_weights(self.module):
            x: Tensor = self.method.preview(40)
        if not self.processes.is_main:
            return
        folder = self.folder / PREVIEWS
        folder.mkdir(exist_ok=True)
        picture = images.grid(x, columns=PREVIEW_COLUMNS)
        images.save_png(folder / f"step-{self.step:09d}.png", picture)
        track_picture(self.accelerator, picture, self.step)
