import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, load_teacher
from pidistill.comparison import costs
from pidistill.comparison.costs import Cost, allowance, measure_cost, median_costs
from pidistill.comparison.recipe import Budget
from pidistill.methods import method_class
from pidistill.progress import no_progress
from pidistill.training.assemble import build_method

from method_runs import METHODS, images_of, small

TEACHER = load_teacher("digits")


@pytest.mark.parametrize(
    ("name", "options"),
    [("knowledge", {}), ("consistency", {"teacher": "digits", "data": "digits"})],
)
def test_a_cost_is_measured_in_a_fresh_process_and_leaves_nothing(
    name, options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cost = measure_cost(small(name, **options))
    assert cost.seconds_per_step > 0
    assert (cost.preparation_seconds > 0) == (name == "knowledge")
    assert 0 < cost.memory < 2**31
    assert not any(tmp_path.iterdir())


def test_memory_grows_with_the_network():
    network = {"name": "mlp", "config": {"width": 1500, "num_blocks": 4}}
    small_one, large_one = (
        measure_cost(small("pid", **options)).memory for options in ({}, {"network": network})
    )
    assert large_one > small_one + 4 * 4 * 4 * 1500 * 1500  # weights, gradients and two moments


def test_the_error_of_the_process_is_raised_here():
    with pytest.raises(PidistillError, match="nothing"):
        measure_cost(small("pid", teacher="mixture:nothing"))


def test_costs_are_medians_of_turns_and_one_that_fails_is_left_out(monkeypatch):
    asked, said = [], []

    def measure(config):
        asked.append(config.seed)
        if config.seed == 2:
            raise RuntimeError("out of memory")
        return Cost(float(len(asked)), 0.0, 0)

    monkeypatch.setattr(costs, "measure_cost", measure)
    configs = {"one": small("pid", seed=1), "two": small("pid", seed=2), "three": small("boot")}
    found = median_costs(configs, 3, no_progress, said.append)
    assert asked == [1, 2, 0, 1, 0, 1, 0]
    assert {key: cost.seconds_per_step for key, cost in found.items()} == {"one": 4, "three": 5}
    assert len(said) == 1
    assert "out of memory" in said[0]


def built(name):
    config = small(name, teacher="digits")
    data = images_of(TEACHER) if method_class(name).needs == "images" else None
    return config, build_method(config, TEACHER, data)


BUILT = {name: built(name) for name in METHODS}


def not_measured():
    raise AssertionError("costs are not needed")


def allowed(budget, name, cost=not_measured, own_steps=False):
    config, method = BUILT[name]
    return allowance(budget, config, method, cost, own_steps=own_steps, origin=name)


@given(st.sampled_from(sorted(set(METHODS) - {"knowledge"})), st.integers(100, 10**7))
def test_steps_spend_the_evaluations_but_for_less_than_a_step(name, amount):
    config, method = BUILT[name]
    # A backward pass counts as two evaluations.
    spent = config.batch_size * (
        method.teacher_evaluations + 2 * method.teacher_backwards(10_000, 10_000) / 10_000
    )
    taken = allowed(Budget(teacher_evaluations=amount), name).steps
    assert taken * spent <= amount < (taken + 1) * spent


def test_every_budget_is_counted_in_its_unit():
    assert {allowed(Budget(images=801), name) for name in METHODS} == {(100, None)}
    assert allowed(Budget(seconds=60.0), "pid").seconds == 60
    # Pairs are paid for before the steps, which are free where evaluations are counted.
    cost = Cost(seconds_per_step=0.25, preparation_seconds=10.0, memory=0)
    assert allowed(Budget(seconds=60.0), "knowledge", lambda: cost).seconds == 50
    assert allowed(Budget(teacher_evaluations=40 * 7), "knowledge", own_steps=True) == (10, None)


@pytest.mark.parametrize(
    ("budget", "name", "own_steps", "words"),
    [
        (Budget(teacher_evaluations=279), "knowledge", True, "280 teacher evaluations before"),
        (Budget(teacher_evaluations=15), "boot", False, "16 per step"),
        (Budget(teacher_evaluations=280), "knowledge", False, "set its max_train_steps"),
        (Budget(images=800), "pid", True, "remove max_train_steps"),
        (Budget(seconds=9.0), "pid", True, "remove max_train_steps"),
        (Budget(seconds=9.0), "knowledge", False, "spends 10 seconds before"),
    ],
)
def test_either_the_budget_or_the_recipe_determines_the_steps(budget, name, own_steps, words):
    with pytest.raises(PidistillError, match=words):
        allowed(budget, name, lambda: Cost(0.25, 10.0, 0), own_steps)
