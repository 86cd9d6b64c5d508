"""A page about a student beside its teacher, in one file that opens without a network."""

import base64
import html
import importlib.resources
import io
import json
import string
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pidistill import images
from pidistill.denoiser import Denoiser
from pidistill.evaluation.plots import line_plot, training_curves
from pidistill.evaluation.trajectory import (
    Paths,
    error_along_path,
    residual_along_path,
    solve_paths,
)
from pidistill.files import write_text
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.training.log import read_log

GRID_SAMPLES = 60
COLUMNS = 10
STRIP_SAMPLES = 4
STRIP_COLUMNS = 14
ERROR_SAMPLES = 512


def write_report(
    file: Path,
    student: TrajectoryStudent,
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
    """Write the page about a student of images to `file`.

    Args:
        file: Where to; the log of the run is read from the same folder.
        student: The student.
        teacher: Its teacher.
        title: The page's title.
        subtitle: A line below it.
        table: Column names and rows; the last row is the student's.
        context: A sentence below the table.
        error_curve: RMS error against the teacher, by training step.
        provenance: What a reader needs to make the page again, by name.
        seed: Seed of the noise.
        steps: Nodes of the teacher's solver.
    """
    paths = solve_paths(student, teacher, ERROR_SAMPLES, seed=seed, steps=steps)
    frames = [
        {
            "sigma": f"{sigma:.3g}",
            "teacher": _picture(_scaled(paths.teacher[i, : 3 * COLUMNS], sigma), COLUMNS),
            "student": _picture(_scaled(paths.student[i, : 3 * COLUMNS], sigma), COLUMNS),
        }
        for i, sigma in enumerate(paths.sigmas.tolist())
    ]
    template = importlib.resources.files("pidistill") / "assets" / "report.html"
    text = string.Template(template.read_text("utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        table=_table(*table),
        context=html.escape(context),
        teacher_nfe=str(paths.teacher_nfe),
        teacher_grid=_picture(paths.teacher[-1, :GRID_SAMPLES], COLUMNS),
        student_grid=_picture(paths.student[-1, :GRID_SAMPLES], COLUMNS),
        last_frame=str(len(frames) - 1),
        frames=json.dumps(frames),
        strip=_strip(paths),
        training_plots=_figures(_training_plots(file.parent, error_curve)),
        path_plots=_figures(_path_plots(student, teacher, paths)),
        provenance=html.escape("\n".join(f"{key}: {value}" for key, value in provenance.items())),
    )
    write_text(file, text)


def _training_plots(folder: Path, error_curve: dict[int, float]) -> list[str]:
    plots = training_curves(read_log(folder))
    if error_curve:
        curve = ([float(step) for step in error_curve], list(error_curve.values()))
        plots.append(
            line_plot(
                {"error": curve},
                title="RMS distance to the teacher's samples",
                x_label="step",
                y_label="RMS error",
                log_y=True,
            )
        )
    return plots


def _path_plots(student: TrajectoryStudent, teacher: Denoiser, paths: Paths) -> list[str]:
    inner = paths.sigmas[1:]  # at sigma_max the error is 0 by construction
    levels = inner.tolist()
    error = error_along_path(student, paths.z, inner, paths.teacher[1:], paths.label)
    residual = residual_along_path(student, teacher, paths.z, inner, paths.label)
    return [
        line_plot(
            {"residual": (levels, residual)},
            title="Residual of the equation",
            x_label="noise level sigma",
            y_label="RMS residual",
            log_x=True,
            log_y=True,
        ),
        line_plot(
            {"error": (levels, error)},
            title="Distance to the teacher's path",
            x_label="noise level sigma",
            y_label="RMS error",
            log_x=True,
            log_y=True,
        ),
    ]


def _scaled(x: Tensor, sigma: float) -> Tensor:
    """Noisy samples brought to the scale of pictures."""
    return x / (1 + sigma**2) ** 0.5


def _strip(paths: Paths) -> str:
    """A few paths from noise to sample, teacher above student."""
    columns = torch.linspace(0, len(paths.sigmas) - 1, STRIP_COLUMNS).round().long()
    rows = []
    for sample in range(STRIP_SAMPLES):
        for points in (paths.teacher, paths.student):
            rows += [_scaled(points[i, sample], paths.sigmas[i].item()) for i in columns.tolist()]
    return _picture(torch.stack(rows), STRIP_COLUMNS)


def _picture(x: Tensor, columns: int) -> str:
    """Samples as a grid, in a data URL; the page enlarges it."""
    buffer = io.BytesIO()
    zoom = 4 if x.shape[-1] <= 16 else 1
    Image.fromarray(images.grid(x, columns=columns, zoom=zoom)).save(
        buffer, format="png", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figures(plots: list[str]) -> str:
    return "\n".join(f"<figure>{plot}</figure>" for plot in plots)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = [f"<tr>{head}</tr>"]
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        mark = ' class="student"' if index == len(rows) - 1 else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
