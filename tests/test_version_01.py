"""Folders that version 0.1 wrote: their students and teachers give the same samples, bit for bit.

Each was trained for 20 or 30 steps on the digits; `samples.npz` holds what 0.1 drew from it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pidistill import PidistillError, initial_noise, load_student, load_teacher, solve
from pidistill.methods.pid import PIDSettings
from pidistill.settings import read_toml
from pidistill.students.labels import labels_for
from pidistill.training.config import parse_config

FOLDERS = Path(__file__).parent / "fixtures" / "v01"
STUDENTS = ("pid", "pid-linear", "pid-soft", "boot", "consistency", "progressive", "knowledge")


def samples_of(name):
    return torch.from_numpy(np.load(FOLDERS / name / "samples.npz")["samples"])


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_draws_the_same_samples(name):
    student = load_student(FOLDERS / name)
    assert torch.equal(student.generate(6, seed=5).x, samples_of(name))


def test_its_raw_weights_are_available_too():
    raw, averaged = (load_student(FOLDERS / "pid", ema=ema) for ema in (0, 0.9))
    assert not torch.equal(raw.network.output.weight, averaged.network.output.weight)


def test_a_teacher_draws_the_same_samples():
    teacher = load_teacher(f"native:{FOLDERS / 'teacher'}")
    z = initial_noise(teacher, 6, seed=5)
    solution = solve(teacher, z, steps=8, label=labels_for(teacher, 6))
    assert torch.equal(solution.x, samples_of("teacher"))


def config_of(name):
    return parse_config([read_toml(FOLDERS / name / "config.toml")])


@pytest.mark.parametrize("name", ["teacher", *STUDENTS])
def test_its_config_is_read(name):
    config = config_of(name)
    expected = {"teacher": "denoising"}.get(name, name.partition("-")[0])
    assert config.method.name == expected
    assert config.max_train_steps == (30 if name == "teacher" else 20)


def test_its_pid_settings_are_those_of_today():
    assert config_of("pid").method == PIDSettings(step=0.1)
    assert config_of("pid-soft").method == PIDSettings(parametrisation="soft", step=0.1)


def test_removed_settings_are_refused_by_name():
    with pytest.raises(PidistillError, match=r"'trajectory-log-odds'.* 0\.1"):
        load_student(FOLDERS / "pid-log-odds")
    with pytest.raises(PidistillError, match=r"parametrisation.*log-odds.*linear"):
        config_of("pid-log-odds")
