"""Training in half precision: what the log says, how it resumes, what it leaves alone."""

import dataclasses

import pytest
import torch

from method_runs import METHODS, everything, log_lines, make_trainer, small, train


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_evaluates_its_networks_in_half_precision(tmp_path, name, precision):
    """Losses, gradients and weights are in single precision all the same."""
    trainer = make_trainer(small(name, mixed_precision=precision), tmp_path)
    seen, dtype = set(), {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for network in trainer.method.networks():
        layer = next(m for m in network.modules() if isinstance(m, torch.nn.Linear))
        layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    for _ in trainer.prepare():
        pass
    seen.clear()  # pairs are solved in single precision
    trainer.train_step()
    assert seen == {dtype}
    assert trainer.measured.loss.isfinite()
    assert {p.dtype for p in trainer.method.student.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, precision):
    config = small("pid", mixed_precision=precision)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=5)
    train(config, tmp_path / "parts")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_steps_whose_gradients_overflow_are_skipped_and_counted(tmp_path):
    trainer = make_trainer(small("pid", mixed_precision="fp16", logging_steps=1), tmp_path)
    plain = trainer.method.loss

    def large(batch):
        losses = plain(batch)
        return dataclasses.replace(losses, loss=1e2 * losses.loss)

    trainer.method.loss = large
    for _ in trainer.run():
        pass
    skipped = [line.get("skipped_steps", 0) for line in log_lines(tmp_path)]
    assert skipped == sorted(skipped)
    assert 0 < skipped[-1] < 10
    assert all(p.isfinite().all() for p in trainer.method.student.parameters())
