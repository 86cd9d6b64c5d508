"""What an evaluation looks like: samples, errors along the path, neighbours."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pidistill import images
from pidistill.evaluation.diversity import LOOK_THE_SAME, Nearest, as_pixels
from pidistill.evaluation.measures import Evidence
from pidistill.evaluation.plots import STUDENT, TEACHER, finish_axes, save_figure

GRID = 100
COLUMNS = 10
PAIRS = 30
"""Samples that are shown beside their nearest training image."""
POINTS = 2000
"""Points of a scatter plot."""


def write_pictures(folder: Path, evidence: Evidence, metrics: dict[str, Any]) -> None:
    """Write pictures of what was measured into `folder`.

    They are `samples.png`; `trajectory.png`, the error and the residual against the noise level;
    `neighbours.png`, distances to nearest neighbours; and `nearest.png`, samples beside their
    nearest training images. What was not measured is not drawn.

    Args:
        folder: Where to; it is made where it is missing.
        evidence: What was seen.
        metrics: What was measured of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x = as_pixels(evidence.seen.x)
    drawable = images.is_image(tuple(x.shape[1:]))
    if drawable:
        images.save_png(folder / "samples.png", images.grid(x[:GRID], columns=COLUMNS))
    elif x.ndim == 2 and x.shape[1] == 2:
        save_figure(points_figure(x, evidence), folder / "samples.png")
    if "trajectory" in metrics:
        save_figure(trajectory_figure(metrics["trajectory"]), folder / "trajectory.png")
    if "nearest_sample" in metrics:
        figure = neighbours_figure(
            evidence.neighbours,
            evidence.training_neighbours if "nearest_training_image" in metrics else None,
        )
        save_figure(figure, folder / "neighbours.png")
    if "nearest_training_image" in metrics and drawable:
        picture = nearest_picture(evidence, evidence.training_neighbours[0])
        images.save_png(folder / "nearest.png", images.grid(picture, columns=COLUMNS))


def points_figure(x: Tensor, evidence: Evidence) -> Figure:
    """Samples (n, 2) in the plane, over the teacher's."""
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if evidence.of_teacher is not None:
        teacher = evidence.of_teacher.x[:POINTS]
        axes.scatter(teacher[:, 0], teacher[:, 1], s=3, color=TEACHER, alpha=0.5, label="teacher")
    axes.scatter(x[:POINTS, 0], x[:POINTS, 1], s=3, color=STUDENT, alpha=0.5, label="measured")
    axes.set_aspect("equal")
    finish_axes(axes, title="Samples", x_label="", y_label="")
    axes.legend(fontsize=8, frameon=False, markerscale=4)
    return figure


def trajectory_figure(curves: dict[str, Any]) -> Figure:
    """The error and the residual against the noise level, side by side."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("error", "residual"),
        ("Distance to the teacher's path", "Residual of the equation"),
        strict=True,
    ):
        levels = zip(curves["sigma"], curves[name], strict=True)
        shown = [(sigma, value) for sigma, value in levels if value > 0]  # 0 at sigma_max: it is z
        if shown:
            axes.plot(*zip(*shown, strict=True), color=STUDENT, linewidth=1.6, marker=".")
            axes.set_xscale("log")
            axes.set_yscale("log")
        finish_axes(axes, title=title, x_label="noise level sigma", y_label=f"RMS {name}")
    return figure


def neighbours_figure(
    among: tuple[Nearest, Nearest | None], training: tuple[Nearest, Nearest | None] | None
) -> Figure:
    """How far samples are from their nearest neighbours, beside the teacher's samples."""
    panels = [("Nearest other sample", among)]
    if training is not None:
        panels.append(("Nearest image of the reference", training))
    figure = Figure(figsize=(4.8 * len(panels), 3.2), layout="constrained")
    for axes, (title, (own, of_teacher)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        distances = [("measured", STUDENT, own.distance)]
        if of_teacher is not None:
            distances.insert(0, ("teacher", TEACHER, of_teacher.distance))
        reach = max(distance.max().item() for _, _, distance in distances)
        for name, color, distance in distances:
            axes.hist(
                distance.numpy(),
                bins=50,
                range=(0, max(reach, LOOK_THE_SAME)),
                density=True,
                histtype="step",
                linewidth=1.6,
                color=color,
                label=name,
            )
        axes.axvline(LOOK_THE_SAME, color="#111827", linewidth=0.8, ls=":", label="look the same")
        finish_axes(axes, title=title, x_label="RMS distance in pixels", y_label="density")
        axes.legend(fontsize=8, frameon=False)
    return figure


def nearest_picture(evidence: Evidence, nearest: Nearest) -> Tensor:
    """Rows of samples, each above the row of their nearest training images.

    The samples are those that are nearest of all: copies would come first.
    """
    assert evidence.images is not None
    order = nearest.distance.argsort()[:PAIRS]
    samples = as_pixels(evidence.seen.x[order])
    originals = as_pixels(evidence.images[nearest.which[order]])
    rows = zip(samples.split(COLUMNS), originals.split(COLUMNS), strict=True)
    return torch.cat([torch.cat([above, below]) for above, below in rows])
