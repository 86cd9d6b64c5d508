"""The training loop: an accelerate loop over the updates of any method.

`Trainer.run` is a generator that yields after every optimizer step, so a command line, a notebook
or a test can drive it and display what it likes.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import ProjectConfiguration

from pidistill.data import Dataset
from pidistill.devices import wait_for
from pidistill.errors import PidistillError
from pidistill.files import held
from pidistill.methods.base import Batch, Losses, Method, Preparation, Run, Update
from pidistill.model_folder import write_description
from pidistill.noise import Draws, drawing_device
from pidistill.numerics import precise
from pidistill.processes import join_processes
from pidistill.training.batches import make_batch, seed_dropout
from pidistill.training.config import CONFIG_FILE, RunConfig
from pidistill.training.distributed import (
    compile_networks,
    compiles,
    make_accelerator,
    num_micro_batches,
    suit_device,
    uncompiled,
    whole_weights,
)
from pidistill.training.log import StepReport, append_to_log
from pidistill.training.losses import STUDENT, LogSigmaBins, Measured, require_losses
from pidistill.training.parts import TrainedPart, only
from pidistill.training.previews import draw_preview, num_in_preview, save_preview, validated
from pidistill.training.run_folder import write_start
from pidistill.training.state import RunState
from pidistill.training.tracking import LOGS, chosen_trackers, track_picture, tracked

log = logging.getLogger("pidistill")


class Trainer:
    """Trains the parts of a method and maintains the run folder."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: str | Path,
        *,
        data: Dataset | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        """Prepare a run; nothing is written yet.

        Args:
            config: The run's config.
            method: The method to train.
            folder: The run folder.
            data: Images, for a method that needs them.
            inputs: Content hashes for the run folder (`run_folder.input_hashes`).

        Raises:
            PidistillError: The batch cannot be divided as configured, or data are missing.
        """
        self.config, self.method, self.folder = config, method, Path(folder)
        self.inputs = inputs or {}
        if method.needs == "images" and data is None:
            raise PidistillError("this method trains on images; pass 'data'")
        self.accelerator = make_accelerator(
            config.mixed_precision,
            log_with=chosen_trackers(config.report_to) or None,
            project_config=ProjectConfiguration(str(folder), str(self.folder / LOGS)),
        )
        self.data = None if data is None else data.kept_on(self.accelerator.device)
        self.processes = join_processes()
        self.micro_batches = num_micro_batches(config, self.processes.count)
        self.micro_batch = config.batch_size // (self.micro_batches * self.processes.count)
        method.to(self.accelerator.device)
        suit_device(method, self.accelerator.device)
        self.compiles = compiles(config, method, self.accelerator.device)
        if self.compiles:
            compile_networks(method, self.accelerator.device)
        bins = LogSigmaBins(method.student.sigma_min, method.student.sigma_max)
        self.measured = Measured(bins, self.processes, self.accelerator.device)
        self.state = RunState(config, method, self.accelerator, self.measured)
        self.preview_steps = config.preview_steps
        self.prepared = False

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    @property
    def seconds(self) -> float:
        """Training time in seconds, without interruptions."""
        return self.state.seconds

    @property
    def teacher_evaluations(self) -> int:
        """Forward evaluations of the teacher so far."""
        return self.state.teacher_evaluations

    def prepare(self) -> Iterator[Preparation]:
        """Do the method's work before its first step, yielding the progress of this process's part.

        `run` does this too; call it first to display the progress.
        """
        run = Run(self.folder, self.config.teacher, self.config.seed, self.processes)
        with self._held(), uncompiled(self.method):
            for progress in self.method.prepare(run):
                if self.processes.is_main and not (self.folder / CONFIG_FILE).exists():
                    write_start(self.folder, self.config, self.inputs)
                yield progress
        self.prepared = True

    def run(
        self, should_stop: Callable[[], bool] = lambda: False
    ) -> Generator[StepReport, None, None]:
        """Train up to `max_train_steps`, yielding after every step.

        Resumes from the newest checkpoint in the folder, if any. Writes a checkpoint every
        `checkpointing_steps`, at the end, and when `should_stop` returns true in any process; all
        processes then stop after the same step. Interrupted preparation resumes in the next run.
        Torch's random generators and flags are restored.

        Raises:
            PidistillError: The loss is not finite, or another process trains in the folder.
                Earlier checkpoints are kept.
        """
        if not self.prepared:
            for _ in self.prepare():
                if should_stop():
                    return
        with self._held(), contextlib.ExitStack() as stack:
            self.state.resume(self.folder)
            again = self.step + 1 if self.step else 0
            stack.enter_context(tracked(self.accelerator, self.folder, again))
            if self.step == 0:
                self._preview()
            first = self.step + 1
            while self.step < self.config.max_train_steps:
                report = self.train_step()
                if self.step == first:
                    self._begin_folder()
                stop = self.processes.any(should_stop())  # it may change max_train_steps
                done = self.step == self.config.max_train_steps
                self._after_step(done, stop)
                yield report
                if stop:
                    return

    def _begin_folder(self) -> None:
        """Write what a run folder has from the first step on; a run that fails leaves nothing."""
        self.measured.require_finite()
        if self.processes.is_main:
            write_start(self.folder, self.config, self.inputs)
            write_description(self.folder, self.method.student, self.config.ema_rates[0])

    def _after_step(self, done: bool, stop: bool) -> None:
        """Write the log, a checkpoint and a preview, each if it is due."""
        config = self.config
        if self.step == 1:
            self._log_start()
        is_due = self.step % config.checkpointing_steps == 0 or done
        if self.step % config.logging_steps == 0 or done:
            self._log(is_due)
        if is_due or stop:
            self.state.save(self.folder, is_due=is_due)
        if done or (self.preview_steps and self.step % self.preview_steps == 0):
            self._preview()

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run folder, in the main process only."""
        return held(self.folder) if self.processes.is_main else contextlib.nullcontext()

    def batch(self, first: int) -> Batch:
        """The micro-batch of the samples `first ..`, counted over the whole run."""
        device = drawing_device(self.accelerator.device)
        draws = Draws(self.config.seed, first, self.micro_batch, device)
        return make_batch(self.method, self.data, draws, self.accelerator.device)

    def train_step(self) -> StepReport:
        """Take the updates of one optimizer step; writes nothing.

        Restores torch's random generators, which drive dropout.
        """
        config, method, state = self.config, self.method, self.state
        began = time.perf_counter()
        if method.start_phase(state.step, config.max_train_steps):
            state.restart_parts()
        accelerators = [] if self.accelerator.device.type == "cpu" else [self.accelerator.device]
        with (
            torch.random.fork_rng(accelerators),
            precise(tf32=config.allow_tf32, benchmark=True),
        ):
            for update in method.updates(state.step):
                self._take(update)
        method.after_step(state.step)
        state.step += 1
        state.teacher_evaluations += config.batch_size * method.teacher_evaluations
        if self._reads_after(state.step):  # the work until then is part of the time
            wait_for(self.accelerator.device)
        state.seconds += time.perf_counter() - began
        seen = state.step * config.batch_size
        return StepReport(state.step, seen, state.seconds, self.measured.loss.item)

    def _reads_after(self, step: int) -> bool:
        """Whether the log or a checkpoint reads from the device after `step`."""
        every = (self.config.logging_steps, self.config.checkpointing_steps)
        return step == self.config.max_train_steps or any(step % steps == 0 for steps in every)

    def _take(self, update: Update) -> None:
        """Take one update: accumulate gradients, then step its part."""
        part = self.state.parts[update.part]
        measured = []
        with only(part, self.state.parts.values()):
            for index in range(self.micro_batches):
                last = index == self.micro_batches - 1
                sync = contextlib.nullcontext() if last else self.accelerator.no_sync(part.wrapped)
                with sync:
                    losses = self._losses(part, update, index)
                    self.accelerator.backward(losses.loss.mean() / self.micro_batches)
                measured.append(dataclasses.replace(losses, loss=losses.loss.detach()))
        norm = part.step(self._learning_rate(part, self.step))
        self.measured.add(part.name, measured, norm, self.step + 1)

    def _learning_rate(self, part: TrainedPart, step: int) -> float:
        first, end = self.method.phase(self.config.max_train_steps)
        return part.learning_rate(step - first, end - first)

    def _losses(self, part: TrainedPart, update: Update, index: int) -> Losses:
        """The losses of this process's micro-batch `index` in the current step."""
        shard = index * self.processes.count + self.processes.index
        batch = self.batch(self.step * self.config.batch_size + shard * self.micro_batch)
        seed_dropout(batch.draws, self.accelerator.device)
        with self.accelerator.autocast():  # FSDP modules do not enter it themselves
            return require_losses(part.wrapped(update.loss, batch), part.name)

    def _log_start(self) -> None:
        """Log the losses of the first step, which are those of the untrained student."""
        start, _ = self.measured.means()
        if self.compiles:
            log.info("the first step took %.0f s, with compilation", self.seconds)
        log.info("before training: %s", ", ".join(f"{k} {v:.4g}" for k, v in start.items()))
        before = self.method.teacher_evaluations_before
        self._write_line(0, start, teacher_evals=before, teacher_backwards=0, seconds=0.0)

    def _log(self, is_due: bool) -> None:
        means, by_sigma = self.measured.take()
        validation: dict[str, Any] = {}
        if is_due:
            with uncompiled(self.method), whole_weights(self.state.parts[STUDENT].wrapped):
                validation = validated(self.method)
        self._write_line(
            self.step,
            means,
            **self.state.teacher_work(),
            **self.state.skipped_steps(),
            seconds=round(self.seconds, 3),
            loss_by_ln_sigma=by_sigma,
            **validation,
        )

    def _write_line(self, step: int, means: dict[str, float], **rest: Any) -> None:
        """Write a line of the log and send its numbers to the trackers."""
        line = {
            "step": step,
            "images": step * self.config.batch_size,
            **means,
            "learning_rate": self._learning_rate(self.state.parts[STUDENT], max(0, step - 1)),
            **rest,
        }
        if self.processes.is_main:
            append_to_log(self.folder, line)
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
        self.accelerator.log({key: numbers[key] for key in numbers if key != "step"}, step=step)

    def _preview(self) -> None:
        """Draw samples, if they are images or points in the plane."""
        if self.preview_steps and (num := num_in_preview(self.method.student.sample_shape)):
            with uncompiled(self.method), whole_weights(self.state.parts[STUDENT].wrapped):
                x = draw_preview(self.method, num)
            if self.processes.is_main:
                picture = save_preview(self.folder, self.step, x, self.method.student.num_classes)
                track_picture(self.accelerator, picture, self.step)
