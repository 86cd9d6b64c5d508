"""What the verbs that train say at the end: a table, and what to do next."""

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


def _next(trainer: "Trainer", state: str) -> str | None:
    from pidistill.images import is_image
    from pidistill.watching.status import next_command

    config = {"method": {"name": trainer.config.method.name}, "data": trainer.config.data}
    shape = tuple(trainer.method.student.sample_shape)
    return next_command(trainer.folder, state, config, is_image(shape))
