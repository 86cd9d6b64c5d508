"""A self-contained HTML page that compares a student with its teacher."""

from pathlib import Path

import torch
from torch import Tensor

from pidistill import images
from pidistill.denoiser import Denoiser
from pidistill.evaluation.pictures import trajectory_figure
from pidistill.evaluation.trajectory import (
    Paths,
    error_along_path,
    residual_along_path,
    rms,
    solve_paths,
)
from pidistill.report.page import write_page
from pidistill.report.plots import as_svg, data_uri, line_plot
from pidistill.students.path import PathStudent
from pidistill.training.log import read_log

GRID_SAMPLES = 60
COLUMNS = 10
STRIP_SAMPLES = 4
STRIP_COLUMNS = 14
ERROR_SAMPLES = 512
LOGGED = {
    "loss": "Training loss",
    "residual": "Distance of the residual",
    "disagreement": "Disagreement of teacher and auxiliary",
}
"""Plotted columns of a run's log, with their titles. The axis is logarithmic, so a column with
other than positive numbers is left out, as the loss of a correction."""


def write_report(
    path: str | Path,
    student: PathStudent,
    teacher: Denoiser,
    *,
    title: str,
    subtitle: str,
    table: tuple[list[str], list[list[str]]],
    context: str,
    error_curve: dict[int, float],
    provenance: dict[str, str],
    seed: int,
    steps: int,
) -> None:
    """Write the page about a student of images, or of points in the plane, to `path`.

    It is in the student's run folder.

    `table` has column names and rows, the student's row last; `context` is a sentence below it.
    `error_curve` maps training steps to RMS errors; `provenance` says how to reproduce the page.
    The teacher is solved in `steps` nodes from the noise of `seed`.
    """
    path = Path(path)
    paths = solve_paths(student, teacher, ERROR_SAMPLES, seed=seed, steps=steps)
    curves = {
        "sigma": paths.sigmas.tolist(),
        "error": [rms(level) for level in error_along_path(paths)],
        "residual": [rms(level) for level in residual_along_path(student, teacher, paths)],
    }
    log = read_log(path.parent)
    training = [
        line_plot(points, title=shown, y_label=name)
        for name, shown in LOGGED.items()
        if (points := [(line["step"], line[name]) for line in log if name in line])
        and min(value for _, value in points) > 0
    ]
    if error_curve:
        shown = "RMS distance to the teacher's samples"
        training.append(line_plot([*error_curve.items()], title=shown, y_label="RMS error"))
    write_page(
        path,
        "report.html",
        title=title,
        subtitle=subtitle,
        columns=table[0],
        rows=table[1],
        context=context,
        provenance=provenance,
        teacher_nfe=paths.teacher_nfe,
        samples=_pair(paths.teacher[-1], paths.student[-1], GRID_SAMPLES),
        frames=_frames(paths),
        strip="" if images.is_plane(student.sample_shape) else _strip(paths),
        training_plots=[as_svg(figure) for figure in training],
        path_plots=[as_svg(trajectory_figure(curves, [name])) for name in ("error", "residual")],
    )


def _frames(paths: Paths) -> list[dict[str, str]]:
    """The pictures for the slider, per noise level."""
    levels = zip(paths.sigmas.tolist(), paths.teacher, paths.student, strict=True)
    return [
        {
            "sigma": f"{sigma:.3g}",
            **_pair(_scaled(teacher, sigma), _scaled(student, sigma), 3 * COLUMNS),
        }
        for sigma, teacher, student in levels
    ]


def _strip(paths: Paths) -> str:
    """A few paths from noise to sample, the teacher's above the student's."""
    columns = torch.linspace(0, len(paths.sigmas) - 1, STRIP_COLUMNS).round().long().tolist()
    points = [
        _scaled(points[i, sample], paths.sigmas[i].item())
        for sample in range(STRIP_SAMPLES)
        for points in (paths.teacher, paths.student)
        for i in columns
    ]
    return _picture(torch.stack(points), STRIP_COLUMNS)


def _scaled(x: Tensor, sigma: float) -> Tensor:
    """Noisy samples scaled to the range of pictures."""
    return x / (1 + sigma**2) ** 0.5


def _pair(teacher: Tensor, student: Tensor, num: int) -> dict[str, str]:
    """Pictures of `num` images each, or of all points in the same axes, as data URIs."""
    pair = {"teacher": teacher, "student": student}
    if images.is_plane(tuple(teacher.shape[1:])):
        reach = images.reach_of(teacher)
        return {name: data_uri(images.scatter(x, reach=reach)) for name, x in pair.items()}
    return {name: _picture(x[:num]) for name, x in pair.items()}


def _picture(x: Tensor, columns: int = COLUMNS) -> str:
    """A grid of samples as a data URI; the page enlarges it."""
    zoom = 4 if x.shape[-1] <= 16 else 1
    return data_uri(images.grid(x, columns=columns, zoom=zoom))
