"""The state of a run: everything that determines how it continues, in memory and in checkpoints.

A run that is killed at any point and resumed ends bit for bit like an uninterrupted one.
"""

import dataclasses
import logging
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
from pidistill.training.config import CONFIG_FILE, INPUTS_FILE, RunConfig, config_text
from pidistill.training.log import LOG_FILE, PREVIEWS, Best, truncate_log
from pidistill.training.losses import STUDENT, Measured
from pidistill.training.parts import TrainedPart

log = logging.getLogger("pidistill")

METHOD_FILE = "method.safetensors"
"""In a checkpoint: the method's tensors besides those of its parts."""


class RunState:
    """The state of a run."""

    def __init__(
        self, config: RunConfig, method: Method, accelerator: Accelerator, measured: Measured
    ) -> None:
        """The state before the first step; `measured` is empty."""
        self.config, self.method = config, method
        self.accelerator, self.is_main = accelerator, measured.processes.is_main
        self.measured = measured
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
        self.best = Best()

    def teacher_work(self) -> dict[str, int]:
        """What the teacher has done so far, as the log shows it."""
        backwards = self.method.teacher_backwards(self.step, self.config.max_train_steps)
        return {
            "teacher_evals": self.teacher_evaluations,
            "teacher_backwards": round(self.config.batch_size * backwards),
        }

    def skipped_steps(self) -> dict[str, int]:
        """The updates that fp16 skipped so far, as the log shows them."""
        if self.accelerator.scaler is None:
            return {}
        return {"skipped_steps": self.measured.num_overflows()}

    def restart_parts(self) -> None:
        """Begin a phase: restart optimizers, averages and the search for the best checkpoint."""
        self._adopt_settings()
        for part in self.parts.values():
            part.restart()
        self.best = Best()
        self.measured.restart_average()

    def _adopt_settings(self) -> None:
        """Let every part train by the method's optimizer settings for the current phase."""
        for part in self.method.parts():
            self.parts[part.name].adopt(part.optimizer)

    def save(self, folder: Path, *, is_due: bool) -> None:
        """Write a checkpoint, then the student's weights at the top of the run folder.

        All processes must call it; the main process gathers the shards and writes.

        Args:
            folder: The run folder.
            is_due: Whether an uninterrupted run would write this checkpoint too. Only such
                checkpoints may be the best, so interruptions do not change which one is.

        Raises:
            PidistillError: A loss or a weight is not finite; the last checkpoint is kept.
        """
        self.measured.require_finite()
        average, values = self.measured.best_average(), self._values()
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
            self.best.judge(self.step, average)
        method_tensors = self.method.state_tensors()
        if method_tensors:
            files[METHOD_FILE] = method_tensors
        if (folder / LOG_FILE).exists():  # the log must not lag behind a checkpoint
            sync(folder / LOG_FILE)
        config = self.config
        write_checkpoint(
            folder / "state",
            self.step,
            files,
            {**values, "best": dataclasses.asdict(self.best)},
            keep=config.checkpoints_total_limit,
            texts={  # they make a checkpoint a run folder that can be sampled from
                MODEL_FILE: description_text(self.method.student, config.ema_rates[0]),
                CONFIG_FILE: config_text(config),
                INPUTS_FILE: (folder / INPUTS_FILE).read_text(),
            },
            best=self.best.step if config.keep_best else None,
        )
        self.write_student(folder, weights[STUDENT])

    def write_student(self, folder: Path, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write the student at the top of the run folder, where `load_student` expects it."""
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
        """The state other than tensors and the best, as JSON values; `resume` restores it."""
        scaler = self.accelerator.scaler
        return {
            "seconds": self.seconds,
            **self.teacher_work(),
            "measured": self.measured.values(),
            "num_updates": {name: part.num_updates for name, part in self.parts.items()},
            "method": self.method.state_values(),
            **({} if scaler is None else {"scaler": scaler.state_dict()}),
        }

    def resume(self, folder: Path) -> None:
        """Restore the newest checkpoint in the run folder, if there is one.

        Later and unfinished output is removed.

        Raises:
            PidistillError: All checkpoints are damaged, or the newest is from version 0.1 or beyond
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
                f"{folder} was trained with pidistill 0.1; this version can sample and evaluate it "
                "but not resume its training"
            )
        self.step = manifest["step"]
        if self.step > self.config.max_train_steps:
            raise PidistillError(
                f"max_train_steps is {self.config.max_train_steps}, but the run in {folder} has "
                f"done {self.step} steps; expected at least {self.step}"
            )
        for name, part in self.parts.items():
            part.load(checkpoint, values["num_updates"][name])
        kept = checkpoint / METHOD_FILE
        self.method.load_state(read_tensors(kept) if kept.exists() else {}, values["method"])
        self._adopt_settings()
        self.seconds, self.teacher_evaluations = values["seconds"], values["teacher_evals"]
        self.measured.load(values["measured"])
        self.best = Best(**values["best"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        if self.is_main:  # the previous process may have died before writing them
            names = self.parts[STUDENT].weight_files()
            self.write_student(folder, {name: read_tensors(checkpoint / name) for name in names})
        log.info("resumed at step %d", self.step)
