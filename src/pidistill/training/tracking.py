"""Experiment trackers, through accelerate: TensorBoard, Weights & Biases, ...

Trackers receive the same numbers as `metrics.jsonl`, which is always written.
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
"""The names that `report_to` accepts besides `all`, and how to install each tracker."""

PROJECT = "pidistill"
"""The project's name in every tracker."""

LOGS = "logs"
"""In a run folder: the files of trackers."""

PICTURE_OPTIONS: dict[str, dict[str, Any]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers that receive pictures, and their options for an array of pictures."""


def chosen_trackers(report_to: list[str]) -> list[str]:
    """The trackers that `report_to` names; `all` stands for every installed one.

    Raises `PidistillError` if one is not installed.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    if "all" in report_to:
        if not installed:
            raise PidistillError(
                "report_to is 'all', but no tracker is installed; "
                f"run {TRACKERS['tensorboard']}, or omit report_to"
            )
        return installed
    for name in report_to:
        if name not in installed:
            raise PidistillError(
                f"the tracker {name!r} is not installed; run {TRACKERS[name]}, or remove it from "
                "report_to"
            )
    return report_to


@contextlib.contextmanager
def tracked(accelerator: Accelerator, folder: Path, step: int) -> Iterator[None]:
    """Open the accelerator's trackers for the run in `folder`, and close them after the block.

    Args:
        accelerator: Built with the names from `chosen_trackers` and `folder / LOGS`.
        folder: The run folder.
        step: Earlier entries from this step on are discarded, since the resumed run repeats them.

    Raises:
        PidistillError: A tracker does not start.
    """
    options = {
        "tensorboard": {"purge_step": step},
        "wandb": {"name": folder.resolve().name, "dir": str(folder)},
    }
    try:
        accelerator.init_trackers(PROJECT, init_kwargs=options)
    except Exception as error:  # each tracker raises its own: no account, no network, ...
        raise PidistillError(
            f"one of the trackers {', '.join(map(str, accelerator.log_with))} did not start: "
            f"{str(error).rstrip('.')}; fix it, or remove it from report_to"
        ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def track_picture(accelerator: Accelerator, picture: np.ndarray, step: int) -> None:
    """Log a grid of samples, (height, width, 3) uint8, to the trackers that accept pictures."""
    for tracker in accelerator.trackers:
        if tracker.name in PICTURE_OPTIONS:
            tracker.log_images({"samples": picture[None]}, step, **PICTURE_OPTIONS[tracker.name])
