"""PID runs from every kind of teacher, and its loss goes down."""

import pytest
import torch

from every_source import SPECS
from pidistill import load_student
from pidistill.data.noise import Draws
from pidistill.methods.base import Batch
from pidistill.student import labels_for
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config, read_preset


@torch.no_grad()
def loss(method):
    """The loss over 128 samples that training does not see."""
    student = method.student
    batch = Batch(Draws(99, 0, 128), labels_for(student, 128), None)
    return method.loss(batch).loss.mean().item()


@pytest.mark.parametrize("source", SPECS)
def test_the_loss_goes_down_and_the_student_samples_alone(source, tmp_path, mlp_teacher):
    made = tmp_path / "teacher"
    made.mkdir()
    settings = {
        "teacher": SPECS[source](made, mlp_teacher),
        "max_train_steps": 40,
        "batch_size": 16,
        "lr_warmup_steps": 5,
        "preview_steps": 0,
    }
    folder = tmp_path / "run"
    trainer = build_trainer(parse_config([read_preset("fast"), settings]), folder)
    before = loss(trainer.method)
    assert [report.step for report in trainer.run()] == list(range(1, 41))
    assert loss(trainer.method) < before
    student = load_student(folder)
    x = student.generate(3, seed=0).x
    assert x.shape == (3, *student.sample_shape)
    assert torch.isfinite(x).all()
