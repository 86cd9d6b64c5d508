"""Pictures of an evaluation: samples, errors along the path, neighbours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pidistill import images
from pidistill.evaluation.metrics import Measured
from pidistill.evaluation.neighbours import LOOK_THE_SAME, Nearest
from pidistill.evaluation.sampling import TEACHER_STEPS, Sampler, Subject
from pidistill.evaluation.streaming import as_pixels
from pidistill.evaluation.trajectory import solve_paths
from pidistill.report.plots import STUDENT, TEACHER, finish_axes, log_axis, save_png
from pidistill.students.path import PathStudent

GRID = 100
COLUMNS = 10
PAIRS = 30
"""Samples shown with their nearest training image."""
PATHS = 12
"""Paths in the plane that are drawn."""
POINTS = 2000
"""Points in a scatter plot."""


def write_pictures(folder: Path, measured: Measured, metrics: dict[str, Any]) -> None:
    """Write pictures into `folder`, which is created if missing.

    They are `samples.png`, with classes in columns; `trajectory.png`, error and residual against
    the noise level; `paths.png`, paths in the plane; `neighbours.png`, distances to nearest
    neighbours; and `nearest.png`, samples with their nearest training images. Only what is in
    `metrics` is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x = as_pixels(measured.seen.x)
    drawable = images.is_image(tuple(x.shape[1:]))
    if drawable:
        images.save_png(folder / "samples.png", _grid(x[:GRID], measured.subject))
    elif images.is_plane(tuple(x.shape[1:])):
        of_teacher = None if measured.of_teacher is None else measured.of_teacher.x
        save_png(points_figure(x, of_teacher), folder / "samples.png")
    if "trajectory" in metrics:
        save_png(trajectory_figure(metrics["trajectory"]), folder / "trajectory.png")
        if images.is_plane(tuple(x.shape[1:])):
            save_png(paths_figure(measured), folder / "paths.png")
    has_training = "nearest_training_image" in metrics
    if "nearest_sample" in metrics:
        training = measured.training_neighbours if has_training else None
        save_png(neighbours_figure(measured.neighbours, training), folder / "neighbours.png")
    if has_training and drawable:
        nearest = measured.training_neighbours[0]
        picture = nearest_picture(x, measured.reference_pixels, nearest)
        images.save_png(folder / "nearest.png", images.grid(picture, columns=COLUMNS))


def _grid(x: Tensor, subject: Subject) -> np.ndarray:
    """Samples whose labels go round the classes of `subject`, in columns by class if they fit."""
    model = subject.model if isinstance(subject, Sampler) else None
    columns = None if model is None else images.columns_by_class(len(x), model.num_classes)
    if model is None or columns is None:
        return images.grid(x, columns=COLUMNS)
    names = model.class_names or [str(label) for label in range(model.num_classes)]
    titles = [names[column % len(names)] for column in range(columns)]
    return images.grid(x, columns=columns, titles=titles)


def paths_figure(measured: Measured) -> Figure:
    """Paths in the plane from the same noise, the teacher's and the student's, among the samples.

    Points are divided by the standard deviation of data at their noise level.
    """
    sampler, teacher = measured.subject, measured.teacher
    assert isinstance(sampler, Sampler)
    assert isinstance(sampler.model, PathStudent)
    assert teacher is not None
    paths = solve_paths(sampler.model, teacher, PATHS, seed=sampler.seed, steps=TEACHER_STEPS)
    scale = (paths.sigmas.square() + teacher.sigma_data**2).rsqrt()[:, None, None]
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = {"teacher": measured.of_teacher, "measured": measured.seen}
    for axes, points, (name, seen) in zip(
        panels, (paths.teacher, paths.student), drawn.items(), strict=True
    ):
        if seen is not None:
            shown = seen.x[:POINTS] / teacher.sigma_data
            axes.scatter(shown[:, 0], shown[:, 1], s=3, color=TEACHER, alpha=0.3)
        for path in (points.cpu() * scale.cpu()).unbind(1):
            (line,) = axes.plot(path[:, 0], path[:, 1], linewidth=1.2)
            axes.plot(*path[-1], "o", color=line.get_color(), markersize=4)
        axes.set_aspect("equal")
        finish_axes(axes, title=f"Paths: {name}", x_label="", y_label="")
    return figure


def points_figure(x: Tensor, teacher_x: Tensor | None) -> Figure:
    """Scatter plot of samples (n, 2) and of the teacher's."""
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, color, points in (("teacher", TEACHER, teacher_x), ("measured", STUDENT, x)):
        if points is not None:
            shown = points[:POINTS]
            axes.scatter(shown[:, 0], shown[:, 1], s=3, color=color, alpha=0.5, label=name)
    axes.set_aspect("equal")
    finish_axes(axes, title="Samples", x_label="", y_label="")
    axes.legend(fontsize=8, frameon=False, markerscale=4)
    return figure


def trajectory_figure(
    curves: dict[str, Any], names: Sequence[str] = ("error", "residual")
) -> Figure:
    """Error and residual, or one of them, against the noise level, from `metrics["trajectory"]`."""
    figure = Figure(figsize=(4.8 * len(names), 3.2), layout="constrained")
    titles = {"error": "Distance to the teacher's path", "residual": "Residual of the equation"}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        levels = zip(curves["sigma"], curves[name], strict=True)
        least = 1e-4 * max(curves[name])  # at sigma_max it is z, up to rounding
        shown = [(sigma, value) for sigma, value in levels if value > least]
        if shown:
            axes.plot(*zip(*shown, strict=True), color=STUDENT, linewidth=1.6, marker=".")
            log_axis(axes.xaxis)
            log_axis(axes.yaxis)
        finish_axes(axes, title=titles[name], x_label="noise level sigma", y_label=f"RMS {name}")
    return figure


def neighbours_figure(
    among: tuple[Nearest, Nearest | None], training: tuple[Nearest, Nearest | None] | None
) -> Figure:
    """Histograms of distances to nearest neighbours, for samples and the teacher's samples."""
    panels = {"Nearest other sample": among, "Nearest image of the reference": training}
    shown = [(title, pair) for title, pair in panels.items() if pair is not None]
    figure = Figure(figsize=(4.8 * len(shown), 3.2), layout="constrained")
    for axes, (title, (own, of_teacher)) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        lines = (("teacher", TEACHER, of_teacher), ("measured", STUDENT, own))
        distances = [(name, color, found.distance) for name, color, found in lines if found]
        reach = max(distance.max().item() for _, _, distance in distances)
        style: dict[str, Any] = {"histtype": "step", "density": True, "linewidth": 1.6, "bins": 50}
        for name, color, distance in distances:
            span = (0, max(reach, LOOK_THE_SAME))
            axes.hist(distance.numpy(), range=span, color=color, label=name, **style)
        axes.axvline(LOOK_THE_SAME, color="#111827", linewidth=0.8, ls=":", label="look the same")
        finish_axes(axes, title=title, x_label="RMS distance in pixels", y_label="density")
        axes.legend(fontsize=8, frameon=False)
    return figure


def nearest_picture(x: Tensor, originals: Tensor, nearest: Nearest) -> Tensor:
    """Rows of samples, each above a row of their nearest images in `originals`.

    Shows the samples with the smallest distances, so copies come first.
    """
    order = nearest.distance.argsort()[:PAIRS]
    found = as_pixels(originals[nearest.which[order]])
    rows = zip(x[order].split(COLUMNS), found.split(COLUMNS), strict=True)
    return torch.cat([torch.cat(pair) for pair in rows])
