"""On an accelerator: the numbers of the CPU, and training in every precision."""

import json
import math

import pytest
import torch

from pidistill import load_student, load_teacher
from pidistill.noise import Draws
from pidistill.philox import philox_words

from method_runs import METHODS, make_trainer, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def test_the_generator_gives_the_same_integers_as_on_the_cpu():
    for key, first in (((0, 0), 0), ((7, 2**64 - 1), 2**62), ((2**63 - 1, 5), 12345)):
        words = philox_words(key, first, 1000, CUDA)
        assert torch.equal(words.cpu(), philox_words(key, first, 1000, torch.device("cpu")))


def test_noise_is_that_of_the_cpu_to_a_few_units_in_the_last_place():
    here, there = (Draws(3, 5, 64, device) for device in (torch.device("cpu"), CUDA))
    x, y = (draws.normal("z", (3, 32, 32)) for draws in (here, there))
    torch.testing.assert_close(y.cpu(), x, rtol=0, atol=1e-14)
    assert torch.equal(there.uniform("a").cpu(), here.uniform("a"))
    assert torch.equal(there.integers("a", 10).cpu(), here.integers("a", 10))


@pytest.mark.parametrize("name", METHODS)
def test_losses_before_training_are_those_of_the_cpu(tmp_path, name):
    losses = []
    for device in ("cuda", "cpu"):
        trainer = make_trainer(small(name, allow_tf32=False), tmp_path / device)
        for _ in trainer.prepare():
            pass
        if device == "cpu":
            trainer.method.to("cpu")
            batch = trainer.batch(0)
            batch = type(batch)(
                Draws(0, 0, batch.draws.num),
                None if batch.label is None else batch.label.cpu(),
                None if batch.x0 is None else batch.x0.cpu(),
            )
            if name == "knowledge":
                pairs = trainer.method.pairs
                trainer.method.pairs = type(pairs)(*(None if x is None else x.cpu() for x in pairs))
        else:
            batch = trainer.batch(0)
        losses.append(trainer.method.loss(batch).loss.detach().cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_every_precision_and_goes_on(tmp_path, name, precision):
    config = small(name, mixed_precision=precision)
    trainer = make_trainer(config, tmp_path)
    steps = trainer.run(should_stop=lambda: trainer.step == 5)
    assert all(math.isfinite(report.loss) for report in steps)
    again = make_trainer(config, tmp_path)
    assert [report.step for report in again.run()] == [6, 7, 8, 9, 10]
    assert load_student(tmp_path).generate(4, seed=0).x.isfinite().all()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ("skipped_steps" in json.loads(lines[-1])) == (precision == "fp16")


def test_a_compiled_run_is_close_to_a_plain_one(tmp_path):
    losses = []
    for compiled in (True, False):
        changes = {"teacher": "digits", "torch_compile": compiled, "allow_tf32": False}
        trainer = make_trainer(small("pid", **changes), tmp_path / str(compiled))
        losses.append([report.loss for report in trainer.run()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_student_draws_the_same_samples_as_on_the_cpu(tmp_path):
    for _ in make_trainer(small("pid", teacher="digits"), tmp_path).run():
        pass
    student = load_student(tmp_path)
    x = student.to("cpu").generate(8, seed=0).x
    y = student.to(CUDA).generate(8, seed=0).x
    torch.testing.assert_close(y.cpu(), x, rtol=0, atol=1e-4)


def test_a_step_does_not_wait_for_the_device(tmp_path):
    """Fails at the first operation of a step that waits."""
    trainer = make_trainer(small("pid", teacher="digits", logging_steps=1000), tmp_path)
    trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_teachers_load_on_the_device():
    teacher = load_teacher("glyphs", CUDA)
    x = torch.zeros(2, *teacher.sample_shape, device=CUDA)
    label = torch.zeros(2, dtype=torch.int64, device=CUDA)
    assert teacher(x, torch.ones(2, device=CUDA), label).isfinite().all()
