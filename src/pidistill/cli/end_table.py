"""What the verbs that train say at the end: a table, and what to do next."""

import shlex
from typing import TYPE_CHECKING, Any

from pidistill.cli.console import Out

if TYPE_CHECKING:
    from pidistill.training.trainer import Trainer

COLUMNS = ["", "steps", "images", "seconds", "images/s", "teacher evaluations", "loss"]


def print_end(out: Out, trainer: "Trainer", what: str) -> None:
    """Print what the training of `what`, the student or the teacher, took and came to."""
    from pidistill.training.log import read_log

    folder, config = trainer.folder, trainer.config
    images = trainer.step * config.batch_size
    last = (read_log(folder) or [{}])[-1]
    facts: dict[str, Any] = {
        "out": str(folder),
        "step": trainer.step,
        "images": images,
        "seconds": trainer.seconds,
        "images_per_second": images / max(trainer.seconds, 1e-9),
        "teacher_evals": trainer.teacher_evaluations,
        **({"loss": last["loss"]} if "loss" in last else {}),
    }
    row = [
        what,
        f"{trainer.step:,}",
        f"{images:,}",
        f"{trainer.seconds:,.1f}",
        f"{facts['images_per_second']:,.0f}",
        f"{trainer.teacher_evaluations:,}",
        f"{facts['loss']:.4g}" if "loss" in facts else "-",
    ]
    out.say(f"{folder} holds the {what} after {trainer.step} steps")
    out.table("", COLUMNS, [row])
    out.say(f"next: {_next(trainer, 'finished')}")
    out.result(facts)


def print_stop(out: Out, trainer: "Trainer") -> None:
    """Say where a run that was stopped is, and how it goes on."""
    total = trainer.config.max_train_steps
    out.stderr.print(
        f"{trainer.folder} is saved at step {trainer.step} of {total}; "
        f"next: {_next(trainer, 'stopped')}",
        markup=False,
        soft_wrap=True,
    )


def _next(trainer: "Trainer", state: str) -> str:
    """The command to type next, now that training is `finished` or `stopped`."""
    from pidistill.images import is_image

    folder, config = trainer.folder, trainer.config
    name = shlex.quote(str(folder))
    is_teacher = config.method.name == "denoising"
    if state == "stopped":
        verb = f"train-teacher {shlex.quote(str(config.data))}" if is_teacher else "distill"
        return f"pidistill {verb} --out {name} --resume"
    if is_teacher:
        return f"pidistill distill --teacher {shlex.quote(f'native:{folder}')} --out DIR"
    suffix = "png" if is_image(tuple(trainer.method.student.sample_shape)) else "npz"
    return f"pidistill sample {name} -n 100 --out samples.{suffix}"
