"""Samples of a student by seed and index, and their labels."""

import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise
from pidistill.students.labels import labels_for

function_fixtures_are_fine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@function_fixtures_are_fine
@given(
    first=st.integers(0, 15),
    num=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_samples_depend_on_seed_and_index_only(mlp_student, first, num, batch_size, seed):
    done = []
    whole = mlp_student.generate(20, seed=seed, on_batch=done.append, batch_size=9)
    assert done == [9, 9, 2]
    part = mlp_student.generate(num, seed=seed, first=first, batch_size=batch_size)
    assert part.nfe == whole.nfe == 1
    torch.testing.assert_close(part.x, whole.x[first : first + num], rtol=0, atol=1e-5)


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


@pytest.mark.parametrize(
    ("num", "steps", "words"),
    [(3, 2, r"steps is 2, .* exactly 1 evaluation"), (0, 1, "num is 0"), (-1, 1, "num is -1")],
)
def test_other_numbers_of_steps_or_samples_are_refused(mlp_student, num, steps, words):
    with pytest.raises(PidistillError, match=words):
        mlp_student.generate(num, seed=0, steps=steps)


CONDITIONAL = types.SimpleNamespace(num_classes=4, source="a model")
UNCONDITIONAL = types.SimpleNamespace(num_classes=0, source="a model")


@given(st.integers(1, 50), st.integers(0, 50))
def test_labels_cycle_through_the_classes_by_sample_index(num, first):
    labels = labels_for(CONDITIONAL, first + num)
    assert labels.tolist() == [i % 4 for i in range(first + num)]
    assert torch.equal(labels_for(CONDITIONAL, num, first=first), labels[first:])


def test_labels_may_be_one_for_all_or_one_each_and_minus_one_is_none():
    for label in (2, torch.tensor(2), torch.tensor([2, 2, 2])):
        assert labels_for(CONDITIONAL, 3, label).tolist() == [2, 2, 2]
    assert labels_for(CONDITIONAL, 2, torch.tensor([-1, 3])).tolist() == [-1, 3]
    assert labels_for(UNCONDITIONAL, 3) is None


@pytest.mark.parametrize(
    ("model", "label", "words"),
    [
        *[
            (CONDITIONAL, label, r"expected 0 \.\. 3, or -1 for no label")
            for label in (4, -2, torch.tensor([0, 1, 7]))
        ],
        *[
            (CONDITIONAL, torch.zeros(shape, dtype=torch.int64), "expected one label, or 3 labels")
            for shape in ((2,), (1,), (3, 1))
        ],
        (UNCONDITIONAL, 0, "label is 0, but a model is not class-conditional"),
    ],
)
def test_labels_that_do_not_suit_are_refused(model, label, words):
    with pytest.raises(PidistillError, match=words):
        labels_for(model, 3, label)
