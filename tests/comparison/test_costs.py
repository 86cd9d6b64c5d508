import pytest

from pidistill import PidistillError
from pidistill.comparison import costs
from pidistill.comparison.costs import Cost, measure_cost, median_costs

from method_runs import small


@pytest.mark.parametrize(
    ("name", "options"), [("knowledge", {}), ("consistency", {"teacher": "digits"})]
)
def test_a_cost_is_measured_in_a_fresh_process_and_leaves_nothing(
    name, options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = {"data": "digits"} if options else {}
    cost = measure_cost(small(name, **options, **data))
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
    found = median_costs(configs, 3, say=said.append)
    assert asked == [1, 2, 0, 1, 0, 1, 0]
    assert {key: cost.seconds_per_step for key, cost in found.items()} == {"one": 4, "three": 5}
    assert len(said) == 1
    assert "out of memory" in said[0]
