import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, load_teacher
from pidistill.comparison.budget import steps_within
from pidistill.comparison.costs import Cost
from pidistill.comparison.recipe import Budget
from pidistill.methods import method_class
from pidistill.training.assemble import build_method

from method_runs import METHODS, images_of, small

TEACHER = load_teacher("digits")


def built(name):
    config = small(name, teacher="digits")
    data = images_of(TEACHER) if method_class(name).needs == "images" else None
    return config, build_method(config, TEACHER, data)


BUILT = {name: built(name) for name in METHODS}
WITHOUT_KNOWLEDGE = sorted(set(METHODS) - {"knowledge"})


def not_measured():
    raise AssertionError("costs are not needed")


def steps(budget, name, measure_cost=not_measured, own_steps=False):
    config, method = BUILT[name]
    return steps_within(budget, config, method, measure_cost, own_steps=own_steps, origin=name)


@given(st.sampled_from(WITHOUT_KNOWLEDGE), st.integers(100, 10**7))
def test_steps_spend_the_evaluations_but_for_less_than_a_step(name, amount):
    config, method = BUILT[name]
    spent = config.batch_size * method.teacher_evaluations
    taken = steps(Budget(teacher_evaluations=amount), name)
    assert taken * spent <= amount < (taken + 1) * spent


def test_a_budget_of_images_is_the_same_for_all():
    assert {steps(Budget(images=801), name) for name in METHODS} == {100}


def test_seconds_are_spent_at_the_measured_cost():
    cost = Cost(seconds_per_step=0.25, preparation_seconds=10.0, memory=0)
    assert steps(Budget(seconds=60.0), "pid", lambda: cost) == 200


def test_pairs_are_paid_for_before_the_steps():
    _, method = BUILT["knowledge"]
    assert method.teacher_evaluations_before == 40 * 7
    assert steps(Budget(teacher_evaluations=280), "knowledge", own_steps=True) == 10


@pytest.mark.parametrize(
    ("budget", "name", "own_steps", "words"),
    [
        (Budget(teacher_evaluations=279), "knowledge", True, "280 teacher evaluations before"),
        (Budget(teacher_evaluations=15), "boot", False, "16 per step"),
        (Budget(teacher_evaluations=280), "knowledge", False, "set its max_train_steps"),
        (Budget(images=800), "pid", True, "remove max_train_steps"),
    ],
)
def test_either_the_budget_or_the_recipe_determines_the_steps(budget, name, own_steps, words):
    with pytest.raises(PidistillError, match=words):
        steps(budget, name, own_steps=own_steps)
