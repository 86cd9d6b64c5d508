"""Trackers that people already look at, by way of accelerate: TensorBoard, Weights & Biases, ...

`metrics.jsonl` is written whatever happens here; a tracker sees the same numbers.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from pidistill.errors import PidistillError

TRACKERS = {
    "tensorboard": 'pip install "pidistill[tracking]"',
    "wandb": "pip install wandb",
    "aim": "pip install aim",
    "clearml": "pip install clearml",
    "comet_ml": "pip install comet-ml",
    "dvclive": "pip install dvclive",
    "mlflow": "pip install mlflow",
    "swanlab": "pip install swanlab",
    "trackio": "pip install trackio",
}
"""The names that `report_to` takes beside `all`, and how each tracker is installed."""

PROJECT = "pidistill"
"""The project's name in every tracker."""

LOGS = "logs"
"""Folder in the run folder, for trackers that write files."""

PICTURE_OPTIONS: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers that are shown pictures, and what they have to be told about an array of them."""


def chosen_trackers(report_to: list[str]) -> list[str]:
    """The trackers that `report_to` names; `all` stands for those that are installed.

    Raises `PidistillError` when one is not installed.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    if "all" in report_to:
        if not installed:
            raise PidistillError(
                "report_to is 'all', but no tracker is installed; "
                f"{TRACKERS['tensorboard']}, or leave report_to out"
            )
        return installed
    for name in report_to:
        if name not in installed:
            raise PidistillError(
                f"the tracker {name!r} is not installed; {TRACKERS[name]}, or leave it out of "
                "report_to"
            )
    return report_to


@contextlib.contextmanager
def tracked(accelerator: Accelerator, folder: Path, step: int) -> Iterator[None]:
    """Open the accelerator's trackers for the run in `folder`, and close them after the block.

    Args:
        accelerator: Made with the names of `chosen_trackers`, and `folder / LOGS`.
        folder: The run folder.
        step: Step from which on anything that was logged before counts no more: the run died after
            a checkpoint, and does these steps again.

    Raises:
        PidistillError: A tracker does not start.
    """
    options = {
        "tensorboard": {"purge_step": step},
        "wandb": {"name": folder.resolve().name, "dir": str(folder)},
    }
    try:
        accelerator.init_trackers(PROJECT, init_kwargs=options)
    except Exception as error:  # each has its own: no account, no network, a broken installation
        raise PidistillError(
            f"a tracker did not start, of {', '.join(map(str, accelerator.log_with))}: "
            f"{str(error).rstrip('.')}; mend it, or leave it out of report_to"
        ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def track_picture(accelerator: Accelerator, picture: np.ndarray, step: int) -> None:
    """Show a grid of samples, (height, width, 3) uint8, to the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if tracker.name in PICTURE_OPTIONS:
            tracker.log_images({"samples": picture[None]}, step, **PICTURE_OPTIONS[tracker.name])
