"""Dry runs: every number is checked against an independent count."""

import pytest
import torch

from pidistill import load_teacher
from pidistill.training.estimate import STEPS, estimate

from method_runs import METHODS, NETWORK, small
from together import together


def config(name="pid", **changes):
    changes = {"network": NETWORK, "max_train_steps": 1000, **changes}
    if name in ("consistency", "progressive"):
        changes |= {"teacher": "digits", "data": "digits"}
    return small(name, **changes)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_sizes_and_evaluations_are_those_of_the_run():
    facts = estimate(config(teacher="digits", network=None, batch_size=32, ema_rates=[0.9, 0.99]))
    parameters = sum(p.numel() for p in load_teacher("digits").parameters())
    assert facts["parameters"] == {"student": parameters, "teacher": parameters}
    assert facts["peak_memory"] > 4 * parameters * 6  # weights, gradients, moments, averages
    assert facts["student_evaluations"] == 2 * 32  # a central difference
    assert facts["teacher_evaluations"] == 32
    assert facts["teacher_evaluations_in_all"] == 32_000


def test_the_time_is_that_of_its_steps():
    facts = estimate(config())
    assert facts["seconds"] == pytest.approx(1000 * facts["seconds_per_step"])
    assert facts["images_per_second"] == pytest.approx(8 / facts["seconds_per_step"])
    assert facts["preparation_seconds"] == 0
    assert STEPS >= 3


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_estimated_without_writing_anything(name):
    facts = estimate(config(name))
    assert facts["seconds"] > facts["preparation_seconds"] >= 0
    assert (facts["preparation_seconds"] > 0) == (name == "knowledge")
    assert facts["student_evaluations"] == 8 * {"pid": 2, "pid-map": 2, "boot": 2}.get(name, 1)


def test_pairs_that_have_to_be_made_first_count():
    method = {**METHODS["knowledge"], "num_pairs": 100_000}
    few, many = estimate(config("knowledge")), estimate(config("knowledge", method=method))
    assert many["teacher_evaluations_in_all"] == 100_000 * 7
    assert many["preparation_seconds"] > 50 * few["preparation_seconds"]


def test_two_processes_share_the_batch():
    def work(rank):
        facts = estimate(config(gradient_accumulation_steps=2))
        assert (facts["processes"], facts["strategy"]) == (2, "DDP")
        assert (facts["micro_batch"], facts["micro_batches_per_process"]) == (2, 2)
        assert facts["student_evaluations"] == 16
        seconds = torch.tensor(facts["seconds"], dtype=torch.float64)
        slowest = seconds.clone()
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
        assert torch.equal(seconds, slowest)

    assert together(2, work) == ["", ""]
