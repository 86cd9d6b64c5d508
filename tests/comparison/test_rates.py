"""The learning rate of every configuration of a table."""

import math

import pytest

from pidistill.comparison.rates import choose_rates, next_multiples
from pidistill.comparison.recipe import RateSearch
from pidistill.errors import PidistillError
from pidistill.settings import read_toml

from recipes import RUNS, SWEEP, TINY, plan_of


def searched(results, **options):
    """The multiples tried where `results` says how good one is, and the one that was chosen."""
    search, found = RateSearch(**options), {}
    while more := next_multiples(search, found):
        found |= {multiple: results(multiple) for multiple in more}
    return list(found)


def best_at(best):
    return lambda multiple: abs(math.log(multiple / best))


def test_one_more_is_tried_beyond_an_edge():
    first = [0.25, 0.5, 1, 2, 4]
    assert searched(best_at(2)) == first
    assert searched(best_at(11)) == [*first, 8, 16]
    assert searched(best_at(0.1)) == [*first, 0.125, 0.0625]
    assert searched(best_at(100), most=7) == [*first, 8, 16]
    assert searched(best_at(20), multiples=[3, 1]) == [3, 1, 9, 27, 81]
    assert searched(lambda m: None if m > 3 else -m) == first  # 4 was tried, and failed
    assert searched(lambda m: None) == first


def chosen(tmp_path, measure, *parts, fails=lambda run: False, **options):
    """The plan after the search, and the runs that it trained, with a pretended training."""
    plan, trained = plan_of(tmp_path, TINY, *parts), []

    def train(name, run):
        trained.append(run)
        if fails(run):
            raise PidistillError("not finite")

    search = RateSearch(**options)
    return choose_rates(plan, search, measure, train, lambda text: None), trained, plan


def test_the_table_trains_at_the_rate_that_was_best(tmp_path):
    def measure(folder):
        config = read_toml(folder / "config.toml")
        scale = config.get("learning_rate_scale", 1.0)
        return best_at(0.5 if config["method"]["name"] == "pid" else 2)(scale)

    plan, trained, _ = chosen(tmp_path, measure, RUNS, SWEEP, share=1 / 3)
    assert {run.config.seed for run in trained} == {1000}
    assert {run.config.max_train_steps for run in trained} == {1}  # of 3
    assert len({run.folder for run in trained}) == 3 * 5  # the sweep shares a configuration
    pid, boot = plan.sections[0].configurations
    assert [c.search.multiple for c in (pid, boot)] == [0.5, 2]
    assert [c.rate for c in (pid, boot)] == pytest.approx([5e-4, 2e-3])
    assert {run.config.learning_rate_scale for run in boot.runs} == {2}
    names = [c.name for section in plan.sections for c in section.configurations]
    assert names == ["PID", "BOOT", "0.05", "0.1"]
    assert plan.sections[1].configurations[1].runs == pid.runs
    assert not {run.folder for _, run in plan.runs()} & {run.folder for run in trained}


def test_the_runs_at_their_own_rates_are_those_of_a_comparison_without_a_search(tmp_path):
    plan, _, before = chosen(tmp_path, lambda folder: 1.0, RUNS, multiples=[1, 2], most=2)
    assert [run.folder for _, run in plan.runs()] == [run.folder for _, run in before.runs()]


def test_a_rate_that_fails_is_not_chosen(tmp_path):
    options = {"multiples": [1, 2, 4], "most": 3}
    fails = {
        "some": lambda run: run.config.learning_rate_scale > 1.5,
        "all": lambda run: True,
    }
    for name, failing in fails.items():
        (tmp_path / name).mkdir()
        plan, *_ = chosen(tmp_path / name, lambda folder: 1.0, RUNS, fails=failing, **options)
        for configuration in plan.configurations():
            assert configuration.search.multiple == 1
            assert list(configuration.search.results.values())[1:] == [None, None]


def test_a_try_spends_its_share_of_pairs_steps_and_warm_up(tmp_path):
    knowledge = """
    [[run]]
    name = "pairs"
    settings.method = { name = "knowledge", num_pairs = 40 }
    settings.lr_warmup_steps = 2
    """
    _, trained, _ = chosen(tmp_path, lambda folder: 1.0, knowledge, share=0.5, most=5)
    for run in trained:
        config = run.config
        spent = (config.method.num_pairs, config.max_train_steps, config.lr_warmup_steps)
        assert spent == (20, 2, 1)  # of 40, 3 and 2
