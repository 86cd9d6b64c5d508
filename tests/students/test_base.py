"""Samples of a student by seed and index, and their labels."""

import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise
from pidistill.students.base import labels_for

function_fixtures_are_fine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@function_fixtures_are_fine
@given(num=st.integers(1, 20), batch_size=st.integers(1, 21), seed=st.integers(0, 9))
def test_the_batch_size_changes_no_sample(mlp_student, num, batch_size, seed):
    whole = mlp_student.generate(20, seed=seed)
    part = mlp_student.generate(num, seed=seed, batch_size=batch_size)
    assert part.nfe == whole.nfe == 1
    torch.testing.assert_close(part.x, whole.x[:num], rtol=0, atol=1e-5)


def test_samples_are_the_student_at_sigma_min_from_the_initial_noise(mlp_student):
    z = initial_noise(mlp_student, 5, seed=3)
    label = torch.tensor([0, 1, 2, 0, 1])
    expected = mlp_student(z, torch.full((5,), mlp_student.sigma_min), label)
    x, nfe = mlp_student.generate(5, seed=3)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert nfe == 1


def test_another_seed_gives_other_samples(mlp_student):
    assert not torch.allclose(mlp_student.generate(3, seed=0).x, mlp_student.generate(3, seed=1).x)


def test_every_batch_is_reported(mlp_student):
    done = []
    mlp_student.generate(10, seed=0, batch_size=4, on_batch=done.append)
    assert done == [4, 4, 2]


def test_a_trajectory_student_samples_in_one_step_only(mlp_student):
    with pytest.raises(PidistillError, match=r"steps is 2, .* exactly 1 evaluation"):
        mlp_student.generate(3, seed=0, steps=2)


@pytest.mark.parametrize("num", [0, -1])
def test_no_samples_are_refused(mlp_student, num):
    with pytest.raises(PidistillError, match=f"num is {num}"):
        mlp_student.generate(num, seed=0)


CONDITIONAL = types.SimpleNamespace(num_classes=4, source="a model")
UNCONDITIONAL = types.SimpleNamespace(num_classes=0, source="a model")


@given(st.integers(1, 50), st.integers(0, 50))
def test_labels_cycle_through_the_classes_by_sample_index(num, first):
    labels = labels_for(CONDITIONAL, first + num)
    assert labels.tolist() == [i % 4 for i in range(first + num)]
    assert torch.equal(labels_for(CONDITIONAL, num, first=first), labels[first:])


@pytest.mark.parametrize("label", [2, torch.tensor(2), torch.tensor([2, 2, 2])])
def test_labels_may_be_one_for_all_or_one_each(label):
    assert labels_for(CONDITIONAL, 3, label).tolist() == [2, 2, 2]


def test_minus_one_is_no_label():
    assert labels_for(CONDITIONAL, 2, torch.tensor([-1, 3])).tolist() == [-1, 3]


@pytest.mark.parametrize("label", [4, -2, torch.tensor([0, 1, 7])])
def test_a_label_out_of_range_is_refused(label):
    with pytest.raises(PidistillError, match=r"expected 0 \.\. 3, or -1 for no label"):
        labels_for(CONDITIONAL, 3, label)


@pytest.mark.parametrize("shape", [(2,), (1,), (3, 1)])
def test_labels_of_another_number_are_refused(shape):
    with pytest.raises(PidistillError, match="expected one label, or 3 labels"):
        labels_for(CONDITIONAL, 3, torch.zeros(shape, dtype=torch.int64))


def test_an_unconditional_model_accepts_no_label():
    assert labels_for(UNCONDITIONAL, 3) is None
    with pytest.raises(PidistillError, match="label is 0, but a model is not class-conditional"):
        labels_for(UNCONDITIONAL, 3, 0)


@function_fixtures_are_fine
@given(first=st.integers(0, 15), num=st.integers(1, 5))
def test_a_part_of_a_longer_list_has_its_samples_and_labels(mlp_student, first, num):
    whole = mlp_student.generate(20, seed=3)
    part = mlp_student.generate(num, seed=3, first=first, batch_size=2)
    torch.testing.assert_close(part.x, whole.x[first : first + num], rtol=0, atol=1e-5)
