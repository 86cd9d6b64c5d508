import statistics

import pytest

from pidistill.comparison.costs import Rehearsal, costs_of, rehearse, rehearse_in_turn
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
    turns = [Rehearsal([1.0, 2.0], 0.0, 10), Rehearsal([5.0, 5.0], 0.0, 99)]
    turns += [Rehearsal([3.0, 9.0], 0.0, 30), Rehearsal([5.0, 5.0], 0.0, 99)]
    first, second = costs_of(turns, 2)
    assert first.ms_per_step == 1000 * statistics.median([1, 2, 3, 9])
    assert first.memory == 20
    assert second.ms_per_step == 5000


def test_configurations_take_turns_in_processes_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "pidistill.comparison.costs.in_fresh_process", lambda config: asked.append(config.seed)
    )
    list(rehearse_in_turn([small("pid", seed=1), small("pid", seed=2)], 2))
    assert asked == [1, 2, 1, 2]
