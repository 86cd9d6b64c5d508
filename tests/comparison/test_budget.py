import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, load_teacher
from pidistill.comparison.budget import Pace, steps_within
from pidistill.comparison.recipe import Budget
from pidistill.methods import method_class

from method_runs import METHODS, images_of, small

TEACHER = load_teacher("digits")


def built(name, **changes):
    config = small(name, teacher="digits", **changes)
    kind = method_class(name)
    data = images_of(TEACHER) if kind.needs == "images" else None
    return config, kind.build(config.method, teacher=TEACHER, data=data, network=None)


BUILT = {name: built(name) for name in METHODS}
WITHOUT_KNOWLEDGE = sorted(set(METHODS) - {"knowledge"})


def no_pace():
    raise AssertionError("the pace is not asked for")


def steps(budget, name, pace=no_pace, own_steps=False):
    config, method = BUILT[name]
    return steps_within(budget, config, method, pace, own_steps=own_steps, origin=name)


@given(st.sampled_from(WITHOUT_KNOWLEDGE), st.integers(100, 10**7))
def test_steps_spend_the_evaluations_but_for_less_than_a_step(name, amount):
    config, method = BUILT[name]
    spent = config.batch_size * method.teacher_evaluations
    taken = steps(Budget(teacher_evaluations=amount), name)
    assert taken * spent <= amount < (taken + 1) * spent


def test_a_budget_of_images_is_the_same_for_all():
    assert {steps(Budget(images=801), name) for name in METHODS} == {100}


def test_seconds_are_spent_at_the_pace_that_is_measured():
    pace = Pace(seconds_per_step=0.25, seconds_before=10.0)
    assert steps(Budget(seconds=60.0), "pid", lambda: pace) == 200


def test_pairs_are_paid_for_before_the_steps():
    _, method = BUILT["knowledge"]
    assert method.teacher_evaluations_before == 40 * 7
    assert steps(Budget(teacher_evaluations=280), "knowledge", own_steps=True) == 10
    with pytest.raises(PidistillError, match="spends 280 teacher evaluations before"):
        steps(Budget(teacher_evaluations=279), "knowledge", own_steps=True)


def test_what_spends_nothing_says_itself_how_long_it_trains():
    with pytest.raises(PidistillError, match="set its max_train_steps"):
        steps(Budget(teacher_evaluations=280), "knowledge")


def test_the_budget_decides_where_it_can():
    with pytest.raises(PidistillError, match="leave it out"):
        steps(Budget(images=800), "pid", own_steps=True)


def test_a_budget_below_one_step():
    with pytest.raises(PidistillError, match="spends 16 teacher evaluations a step"):
        steps(Budget(teacher_evaluations=15), "boot")
