"""Pictures of an evaluation show what was measured, and nothing else."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from pidistill.data import load_data
from pidistill.evaluation import evaluate
from pidistill.evaluation.metrics import Measured
from pidistill.evaluation.neighbours import nearest_among
from pidistill.evaluation.pictures import (
    COLUMNS,
    nearest_picture,
    paths_figure,
    trajectory_figure,
)
from pidistill.evaluation.sampling import Sampler
from pidistill.images import grid


def test_points_in_the_plane_are_scattered(gaussian, gaussian_student, tmp_path):
    evaluate(
        gaussian_student,
        teacher=gaussian,
        num=20,
        metrics=["error", "trajectory", "diversity"],
        pictures=tmp_path / "new",
    )
    assert {file.name for file in (tmp_path / "new").iterdir()} == {
        "samples.png",
        "trajectory.png",
        "paths.png",
        "neighbours.png",
    }


def test_a_student_that_is_exact_has_the_paths_of_its_teacher(gaussian, gaussian_student):
    seen = SimpleNamespace(x=gaussian_student.generate(20, seed=0).x)
    subject = Sampler(gaussian_student, 1)
    figure = paths_figure(Measured(subject, gaussian, seen, None, None, None))
    teacher, measured = (
        np.stack([line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 1])
        for axes in figure.axes
    )
    assert teacher.shape == (12, 40, 2)
    assert np.abs(teacher - measured).max() < 0.05


def test_samples_of_classes_come_in_columns(mlp_student, tmp_path):
    mlp_student.class_names = ("ant", "bee", "cat")
    evaluate(mlp_student, num=100, metrics=[], pictures=tmp_path)
    x = mlp_student.generate(100, seed=0).x
    columns = grid(x, columns=9)
    with Image.open(tmp_path / "samples.png") as image:
        picture = np.asarray(image)
    headings = picture[: -len(columns)].reshape(-1, 3, picture.shape[1] // 3, 3)
    assert np.array_equal(picture[-len(columns) :], columns)
    assert np.array_equal(headings[:, 0], headings[:, 1])
    assert headings.min() < 200


def test_images_come_as_a_grid(tmp_path):
    x = load_data("digits").images[:130]
    evaluate(x, metrics=[], pictures=tmp_path)
    (file,) = tmp_path.iterdir()
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image), grid(x[:100], columns=COLUMNS))


def test_curves_leave_out_what_a_logarithm_cannot_show():
    figure = trajectory_figure(
        {"sigma": [80.0, 1.0, 0.002], "error": [0.0, 0.1, 0.2], "residual": [0.3, 0.2, 0.1]}
    )
    error, residual = (axes.lines[0] for axes in figure.axes)
    assert list(error.get_xdata()) == [1.0, 0.002]
    assert list(residual.get_ydata()) == [0.3, 0.2, 0.1]
    exact = trajectory_figure({"sigma": [80.0], "error": [0.0], "residual": [0.0]})
    assert not any(axes.lines for axes in exact.axes)


def test_samples_stand_above_their_nearest_images():
    images = load_data("digits").images[:50]
    samples = images[[7, 3, 9]] * 0.9
    nearest = nearest_among(samples, images)
    assert nearest.which.tolist() == [7, 3, 9]
    shown = nearest_picture(samples, images, nearest)
    order = nearest.distance.argsort()
    assert torch.equal(shown[:3], samples[order])
    assert torch.equal(shown[3:], images[nearest.which[order]])
