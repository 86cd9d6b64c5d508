"""The state of a run: everything that decides how it goes on, in memory and in checkpoints.

A run that is killed anywhere and resumed ends, bit for bit, where an uninterrupted one ends.
"""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.files import clear_leftovers, sync
from pidistill.methods.base import Method
from pidistill.model_folder import MODEL_FILE, description_text, write_description
from pidistill.storage import read_tensors, write_tensors
from pidistill.training.checkpoint import clear_unfinished, newest_checkpoint, write_checkpoint
from pidistill.training.config import CONFIG_FILE, RunConfig, config_text
from pidistill.training.log import LOG_FILE, PREVIEWS, Best, Means, truncate_log
from pidistill.training.losses import BatchMeans
from pidistill.training.parts import TrainedPart

log = logging.getLogger("pidistill")

STUDENT = "student"
"""The name of the part that every method has."""

METHOD_FILE = "method.safetensors"
"""In a checkpoint: what a method keeps beside its parts."""


class RunState:
    """Where a run stands."""

    def __init__(
        self, config: RunConfig, method: Method, accelerator: Accelerator, *, is_main: bool
    ) -> None:
        """The state before the first step; `is_main` says whether this process writes files."""
        self.config, self.method = config, method
        self.accelerator, self.is_main = accelerator, is_main
        self.parts = {
            part.name: TrainedPart(
                part,
                config,
                accelerator,
                ema_rates=config.ema_rates,
                ema_warmup=config.ema_warmup,
            )
            for part in method.parts()
        }
        self.step = 0
        self.seconds = 0.0
        self.teacher_evaluations = method.teacher_evaluations_before
        self.means, self.means_by_sigma = Means(), Means()
        self.best = Best()

    def take_in(self, part: TrainedPart, measured: BatchMeans, grad_norm: float) -> None:
        """Take in what an update measured, for the next line of the log."""
        prefix = "" if part.name == STUDENT else f"{part.name}_"
        for name, value in measured.means.items():
            self.means.add(f"{prefix}{name}", value)
        if math.isfinite(grad_norm):  # fp16 skips a step whose gradients overflow
            self.means.add(f"{prefix}grad_norm", grad_norm)
        if part.name == STUDENT:
            self.best.update(measured.means["loss"])
            for edge, (mean, count) in measured.by_sigma.items():
                self.means_by_sigma.add(edge, mean, count)

    def restart_parts(self) -> None:
        """Begin a phase: optimizers, averages and the search for the best checkpoint anew."""
        for part in self.parts.values():
            part.restart()
        self.best = Best()

    def save(self, folder: Path, *, is_due: bool) -> None:
        """Write a checkpoint, then the student's weights at the top of the run folder.

        The main process does, with what it gathers from those that hold parts of it.

        Args:
            folder: The run folder.
            is_due: Whether the checkpoint would be written if nobody had interrupted the run. Only
                such a one may be the best, which is then the same however often that happens.

        Raises:
            PidistillError: A weight is not finite; the last checkpoint stays.
        """
        weights = {name: part.weights(self.is_main) for name, part in self.parts.items()}
        optimizers = [part.optimizer_state(self.is_main) for part in self.parts.values()]
        if not self.is_main:
            return
        files: dict[str, dict[str, Tensor]] = {}
        for content in (*weights.values(), *optimizers):
            files.update(content)
        for content in weights.values():
            self._require_finite(content, self.step)
        if is_due:
            self.best.judge(self.step)
        method_tensors = self.method.state_tensors()
        if method_tensors:
            files[METHOD_FILE] = method_tensors
        if (folder / LOG_FILE).exists():  # a checkpoint never knows more than the log
            sync(folder / LOG_FILE)
        config = self.config
        write_checkpoint(
            folder / "state",
            self.step,
            files,
            self._values(),
            keep=config.checkpoints_total_limit,
            texts={  # with them, a checkpoint is a run folder that can be sampled from
                MODEL_FILE: description_text(self.method.student, config.ema_rates[0]),
                CONFIG_FILE: config_text(config),
            },
            best=self.best.step if config.keep_best else None,
        )
        self.write_student(folder, weights[STUDENT])

    def write_student(self, folder: Path, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write the student at the top of the run folder, from where it is loaded."""
        write_description(folder, self.method.student, self.config.ema_rates[0])
        for name, tensors in weights.items():
            write_tensors(folder / name, tensors)

    @staticmethod
    def _require_finite(files: dict[str, dict[str, Tensor]], step: int) -> None:
        for name, tensors in files.items():
            for key, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise PidistillError(
                        f"weight {key!r} of {name} is not finite after step {step}; the last "
                        "checkpoint is kept; lower learning_rate, or set max_grad_norm"
                    )

    def _values(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, as JSON values; `resume` is its inverse."""
        scaler = self.accelerator.scaler
        return {
            "seconds": self.seconds,
            "teacher_evals": self.teacher_evaluations,
            "means": self.means.sums,
            "means_by_sigma": self.means_by_sigma.sums,
            "best": dataclasses.asdict(self.best),
            "num_updates": {name: part.num_updates for name, part in self.parts.items()},
            "method": self.method.state_values(),
            **({} if scaler is None else {"scaler": scaler.state_dict()}),
        }

    def resume(self, folder: Path) -> None:
        """Take everything from the newest checkpoint in the run folder, if there is one.

        What was written after it, or only half, is cleared away.

        Raises:
            PidistillError: All checkpoints are damaged; or the newest is of version 0.1, or beyond
                `max_train_steps`.
        """
        found = newest_checkpoint(folder / "state", log.warning)
        if self.is_main:
            for place in (folder, folder / PREVIEWS):
                clear_leftovers(place)
            clear_unfinished(folder / "state")
            truncate_log(folder, -1 if found is None else found[1]["step"])
        if found is None:
            return
        checkpoint, manifest = found
        values = manifest["values"]
        if "num_updates" not in values:
            raise PidistillError(
                f"{folder} was trained by pidistill 0.1, and its training cannot be resumed by "
                "this version; sampling and evaluating it work"
            )
        self.step = manifest["step"]
        if self.step > self.config.max_train_steps:
            raise PidistillError(
                f"max_train_steps is {self.config.max_train_steps}, but the run in {folder} has "
                f"done {self.step} steps; expected at least as many"
            )
        for name, part in self.parts.items():
            part.load(checkpoint, values["num_updates"][name])
        kept = checkpoint / METHOD_FILE
        self.method.load_state(read_tensors(kept) if kept.exists() else {}, values["method"])
        self.seconds, self.teacher_evaluations = values["seconds"], values["teacher_evals"]
        self.means, self.means_by_sigma = Means(values["means"]), Means(values["means_by_sigma"])
        self.best = Best(**values["best"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        if self.is_main:  # a process that died may not have come to write them
            names = self.parts[STUDENT].weight_files()
            self.write_student(folder, {name: read_tensors(checkpoint / name) for name in names})
        log.info("resumed at step %d", self.step)
