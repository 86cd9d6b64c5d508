"""PID runs from every kind of teacher, with every parametrisation, and its loss goes down."""

import pytest
import torch

from pidistill import load_student
from pidistill.methods.base import Batch
from pidistill.noise import Draws
from pidistill.students.base import labels_for
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config, read_preset

from every_source import SPECS


@pytest.fixture(params=SPECS)
def spec(request, tmp_path, mlp_teacher):
    """A teacher of one source."""
    (tmp_path / "teacher").mkdir()
    return SPECS[request.param](tmp_path / "teacher", mlp_teacher)


def make(spec, folder, **settings):
    """A trainer of three steps; `settings` are the method's."""
    values = {
        "teacher": spec,
        "max_train_steps": 3,
        "batch_size": 4,
        "preview_steps": 0,
        # A teacher of random weights that predicts noise is nowhere near data: a student that is
        # not anchored would have far to go.
        "method": {"name": "pid", "anchored": True, **settings},
    }
    return build_trainer(parse_config([read_preset("fast"), values]), folder)


def test_the_student_learns_and_samples_without_its_teacher(spec, tmp_path):
    for parametrisation in ("linear", "soft"):
        pid = make(spec, tmp_path / "run", parametrisation=parametrisation).method
        batch = Batch(Draws(0, 0, 2), labels_for(pid.student, 2), None)
        assert pid.loss(batch).loss.isfinite().all()

    run = make(spec, tmp_path / "run")
    method = run.method
    batch = Batch(Draws(99, 0, 8), labels_for(method.student, 8), None)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=5e-4)
    first = method.loss(batch).loss.mean().item()
    for _ in range(25):  # of one batch, so that a lower loss is no matter of luck
        loss = method.loss(batch).loss.mean()
        if loss < 0.9 * first:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * first

    assert [report.step for report in run.run()] == [1, 2, 3]
    student = load_student(tmp_path / "run")
    x = student.generate(3, seed=0).x
    assert x.shape == (3, *student.sample_shape)
    assert torch.isfinite(x).all()
