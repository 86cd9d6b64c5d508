"""Runs by several processes: what they compute, write and restore is what one process does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from method_runs import METHODS, make_trainer, small
from together import together

FSDP = {"ACCELERATE_USE_FSDP": "true"}
STRATEGIES = {"DDP": {}, "FSDP": FSDP}


def train(config, folder, num=1, *, stop_at=None, **environment):
    """Train with `num` processes, to the end or to an orderly stop."""

    def work(rank):
        trainer = make_trainer(config, folder)
        for _ in trainer.run(should_stop=lambda: trainer.step == stop_at):
            pass

    if num == 1 and not environment:
        work(0)
    else:
        problems = together(num, work, **environment)
        assert problems == [""] * num, "\n".join(problems)


def log_lines(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_run(folder, expected, rtol=1e-4):
    """The logs, weights and optimizers of two runs agree to float tolerance."""
    logged, lines = log_lines(folder), log_lines(expected)
    assert [line["step"] for line in logged] == [line["step"] for line in lines]
    for one, other in zip(logged, lines, strict=True):
        assert one == pytest.approx(other, rel=rtol)
    for file in expected.rglob("*.safetensors"):
        own, others = load_file(folder / file.relative_to(expected)), load_file(file)
        assert own.keys() == others.keys()
        for name, tensor in others.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_do_what_one_does(tmp_path, name, strategy):
    config = small(name, checkpoints_total_limit=5)
    train(config, tmp_path / "one")
    train(config, tmp_path / "two", 2, **STRATEGIES[strategy])
    assert_same_run(tmp_path / "two", tmp_path / "one")
