"""PID runs from every kind of teacher, and its loss goes down."""

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
def run(request, tmp_path, mlp_teacher):
    """A trainer of three steps, from a teacher of one source."""
    made = tmp_path / "teacher"
    made.mkdir()
    settings = {
        "teacher": SPECS[request.param](made, mlp_teacher),
        "max_train_steps": 3,
        "batch_size": 4,
        "preview_steps": 0,
        # A teacher of random weights that predicts noise is nowhere near data: a student that is
        # not anchored would have far to go.
        "method": {"name": "pid", "anchored": True},
    }
    config = parse_config([read_preset("fast"), settings])
    return build_trainer(config, tmp_path / "run")


def test_the_student_learns_and_samples_without_its_teacher(run, tmp_path):
    method = run.method
    batch = Batch(Draws(99, 0, 8), labels_for(method.student, 8), None)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=5e-4)
    losses = []
    for _ in range(25):  # of one batch, so that a lower loss is no matter of luck
        loss = method.loss(batch).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]

    assert [report.step for report in run.run()] == [1, 2, 3]
    student = load_student(tmp_path / "run")
    x = student.generate(3, seed=0).x
    assert x.shape == (3, *student.sample_shape)
    assert torch.isfinite(x).all()
