import statistics

import pytest

from pidistill.comparison.costs import Rehearsal, cost_of, rehearse, rehearse_in_turn
from pidistill.methods import NAMES
from pidistill.training.estimate import STEPS

from method_runs import NETWORK, small


def config_of(name, **changes):
    teacher = "digits" if name in ("consistency", "progressive") else "mixture:ring"
    data = {"data": "digits"} if teacher == "digits" else {"network": NETWORK}
    return small(name, teacher=teacher, **data, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_be_rehearsed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rehearse(config_of(name))
    assert len(found.step_seconds) == STEPS
    assert min(found.step_seconds) > 0
    assert found.memory >= 0
    assert (found.seconds_before > 0) == (name == "knowledge")
    assert not any(tmp_path.iterdir())


def test_preparation_is_scaled_to_that_of_the_run():
    method = {"name": "knowledge", "steps": 4, "pairs_batch_size": 64}
    few = rehearse(small("knowledge", network=NETWORK, method={**method, "num_pairs": 256}))
    many = rehearse(small("knowledge", network=NETWORK, method={**method, "num_pairs": 25_600}))
    assert 10 < many.seconds_before / few.seconds_before < 1000


def test_costs_are_medians_over_the_turns():
    cost = cost_of([Rehearsal([1.0, 2.0], 0.0, 10), Rehearsal([3.0, 9.0], 0.0, 30)])
    assert cost.ms_per_step == 1000 * statistics.median([1, 2, 3, 9])
    assert cost.ms_quartiles == (1750, 4500)
    assert cost.memory == 20


def test_a_single_slow_step_has_a_cost():
    cost = cost_of([Rehearsal([70.0], 0.0, 10)])
    assert cost.ms_per_step == cost.ms_quartiles[0] == cost.ms_quartiles[1] == 70_000


def test_configurations_take_turns_in_processes_of_their_own(monkeypatch):
    asked = []

    def take_steps(config):
        asked.append(config.seed)
        if config.seed == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr("pidistill.comparison.costs.in_fresh_process", take_steps)
    configs = {"one": small("pid", seed=1), "two": small("pid", seed=2)}
    found = list(rehearse_in_turn(configs, 2))
    assert asked == [1, 2, 1, 2]
    assert [key for key, _ in found] == ["one", "two"] * 2
    assert [str(value) for _, value in found] == ["None", "out of memory"] * 2
