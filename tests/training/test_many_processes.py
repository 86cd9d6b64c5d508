"""Runs by several processes: what they compute, write and restore is what one process does."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from pidistill import PidistillError
from pidistill.methods import pairs as pairs_module
from pidistill.sharding import local

from method_runs import METHODS, log_lines, make_trainer, small
from together import together

FSDP = {"ACCELERATE_USE_FSDP": "true"}
STRATEGIES = {"DDP": {}, "FSDP": FSDP}


def train(config, folder, num=1, *, stop_at=None, **environment):
    """Train with `num` processes, to the end or until one of them is asked to stop."""

    def work(rank):
        trainer = make_trainer(config, folder)
        for _ in trainer.run(lambda: rank == num - 1 and trainer.step == stop_at):
            pass
        assert trainer.step == (stop_at or config.max_train_steps)

    if num == 1:
        work(0)
    else:
        problems = together(num, work, **environment)
        assert problems == [""] * num, "\n".join(problems)


def assert_same_run(folder, expected, rtol=1e-4):
    """The logs, and the last weights and optimizer, of two runs agree to float tolerance."""
    logged, lines = (log_lines(run, without=("seconds",)) for run in (folder, expected))
    assert [line["step"] for line in logged] == [line["step"] for line in lines]
    for one, other in zip(logged, lines, strict=True):
        assert one == pytest.approx(other, rel=rtol, abs=1e-6)
    newest = max(file.name for file in (expected / "state").iterdir())
    for file in [*expected.glob("*.safetensors"), *(expected / "state" / newest).glob("*.saf*")]:
        own, others = load_file(folder / file.relative_to(expected)), load_file(file)
        assert own.keys() == others.keys()
        for name, tensor in others.items():
            torch.testing.assert_close(own[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of what one process makes of a config, each trained once."""
    known = {}

    def of(config):
        key = config.model_dump_json()
        if key not in known:
            known[key] = tmp_path_factory.mktemp("alone")
            train(config, known[key])
        return known[key]

    return of


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_do_what_one_does(tmp_path, alone, name, strategy):
    config = small(name, max_train_steps=6, optimizer="radam" if name == "boot" else "adamw")
    train(config, tmp_path, 2, **STRATEGIES[strategy])
    assert_same_run(tmp_path, alone(config))


@pytest.mark.parametrize(
    ("num", "changes"),
    [
        (2, {"gradient_accumulation_steps": 4}),
        (1, {"gradient_accumulation_steps": 8}),
        (2, {"max_micro_batch": 3, "max_grad_norm": 0.05}),
        pytest.param(4, {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_of_a_step_is_the_same_however_the_batch_is_cut(tmp_path, alone, num, changes):
    """Step 0 too, which measures the whole first batch."""
    whole = alone(small("pid", max_grad_norm=changes.get("max_grad_norm")))
    train(small("pid", **changes), tmp_path, num)
    assert log_lines(whole)[0]["step"] == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("name", ["consistency", "progressive"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, alone, name):
    """These have state beside the student's: a target, a teacher that was a student."""
    config = small(name, batch_size=12)
    for num, environment, stop_at in ((2, {}, 3), (1, {}, 5), (3, FSDP, 7), (2, {}, None)):
        train(config, tmp_path, num, stop_at=stop_at, **environment)
    assert_same_run(tmp_path, alone(config))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision(tmp_path, alone, strategy):
    """Its rounding depends on the size of a batch, and Adam makes steps of it where a gradient is
    small: the losses agree, not every weight."""
    config = small("pid", teacher="digits", max_train_steps=4, mixed_precision="bf16")
    train(config, tmp_path, 2, **STRATEGIES[strategy])
    one, two = ([line["loss"] for line in log_lines(run)] for run in (alone(config), tmp_path))
    assert two == pytest.approx(one, rel=2e-2)


def test_under_fsdp_every_process_holds_its_part(tmp_path):
    """Of weights, moments and averages; none of them is ever cast."""

    def work(rank):
        trainer = make_trainer(small("pid", mixed_precision="bf16"), tmp_path)
        student = trainer.method.student
        assert trainer.accelerator.distributed_type.value == "FSDP"
        assert all(isinstance(p, DTensor) for p in student.parameters())
        whole = sum(p.numel() for p in student.parameters())
        trainer.train_step()
        part = trainer.state.parts["student"]
        moments = [state["exp_avg"] for state in part.optimizer.state.values()]
        for tensors in (student.parameters(), moments, part.averages.averages[0]):
            tensors = list(map(local, tensors))
            assert sum(t.numel() for t in tensors) <= whole // 2 + len(tensors) * 16
            assert {tensor.dtype for tensor in tensors} == {torch.float32}

    assert together(2, work, **FSDP) == ["", ""]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_previews_are_drawn_by_all_and_written_once(tmp_path, strategy):
    config = small("progressive", teacher="mixture:image", max_train_steps=2, preview_steps=1)
    train(config, tmp_path, 2, **STRATEGIES[strategy])
    names = sorted(file.name for file in (tmp_path / "previews").iterdir())
    assert names == [f"step-{step:09d}.png" for step in (0, 1, 2)]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path):
    def work(rank):
        trainer = make_trainer(small("pid"), tmp_path)
        steps = trainer.run()
        next(steps)
        denoise = trainer.method.teacher.forward

        def broken(x, sigma, label=None):
            return denoise(x, sigma, label) + (math.nan if rank == 1 else 0.0)

        trainer.method.teacher.forward = broken
        with pytest.raises(PidistillError, match=r"loss is nan at step 2 \(sigma .* \.\. "):
            for _ in steps:
                pass
        assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()

    assert together(2, work) == ["", ""]


def test_pairs_are_the_same_shards_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "SHARD", 16)
    for num in (1, 2, 3):
        train(small("knowledge", max_train_steps=1, batch_size=6), tmp_path / str(num), num)
    files = {
        num: {file.name: file.read_bytes() for file in (tmp_path / num / "pairs").iterdir()}
        for num in "123"
    }
    assert len(files["1"]) == 4
    assert files["1"] == files["2"] == files["3"]
