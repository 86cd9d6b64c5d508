"""How a batch is cut, what is compiled, what FSDP gathers at once."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pidistill import PidistillError
from pidistill.networks import new_network
from pidistill.training import distributed
from pidistill.training.config import parse_config, read_preset
from pidistill.training.distributed import block_names, num_micro_batches

from method_runs import make_trainer, small, train


def config(**changes):
    return parse_config([{"method": {"name": "pid"}, "teacher": "digits"}, changes])


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 40), st.none() | st.integers(1, 50))
def test_a_batch_is_cut_as_little_as_the_largest_micro_batch_allows(num, least, size, largest):
    batch_size = num * least * size
    settings = config(
        batch_size=batch_size, gradient_accumulation_steps=least, max_micro_batch=largest
    )
    parts = num_micro_batches(settings, num)
    share = num * parts
    assert batch_size % share == parts % least == 0
    if largest is None:
        assert parts == least
    else:
        assert batch_size // share <= largest
        fewer = [p for p in range(least, parts, least) if batch_size % (num * p) == 0]
        assert all(batch_size // (num * p) > largest for p in fewer)


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(PidistillError, match=r"batch_size is 128; expected a multiple of 3, the"):
        num_micro_batches(config(), 3)


@pytest.mark.parametrize("num", [1, 8, 64])
@pytest.mark.parametrize("preset", ["cifar10-published", "imagenet64-published"])
def test_the_published_presets_suit_1_8_and_64_processes(preset, num):
    settings = parse_config([read_preset(preset), {"teacher": "digits"}])
    parts = num_micro_batches(settings, num)
    assert settings.batch_size // (num * parts) <= settings.max_micro_batch


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("mlp", ["ModulatedBlock"]), ("song_unet", ["UNetBlock"]), ("dhariwal_unet", ["UNetBlock"])],
)
def test_what_fsdp_gathers_at_once_is_a_block(name, blocks):
    small = {} if name == "mlp" else {"model_channels": 8, "channel_mult": [1]}
    assert block_names(new_network(name, (3, 8, 8), 0, small)) == blocks


def test_a_missing_compiler_is_one_clear_line(tmp_path, monkeypatch):
    def broken(function):
        raise RuntimeError("no working C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(PidistillError, match=r"cannot compile for cpu here: no working") as caught:
        make_trainer(small("pid", torch_compile=True), tmp_path)
    assert "\n" not in str(caught.value)


def test_compiling_keeps_the_names_of_the_weights(tmp_path, monkeypatch):
    """With a compiler that changes nothing, because the real one takes a minute."""
    compiled = []
    monkeypatch.setattr(distributed, "require_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    config = small("pid", teacher="digits", torch_compile=True, max_train_steps=1)
    trainer = train(config, tmp_path)
    assert compiled == [trainer.method.student.network, trainer.method.teacher.network]
    plain = make_trainer(small("pid", teacher="digits"), tmp_path).method.student.state_dict()
    assert load_file(tmp_path / "student.safetensors").keys() == plain.keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["pid", "consistency"])
def test_a_compiled_run_is_the_plain_one(tmp_path, name):
    changes = {"max_train_steps": 3, "teacher": "digits", "logging_steps": 1}
    losses = []
    for compiled in (True, False):
        folder = tmp_path / str(compiled)
        trainer = make_trainer(small(name, torch_compile=compiled, **changes), folder)
        losses.append([report.loss for report in trainer.run()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_runs_of_one_process_may_differ_in_precision(tmp_path):
    """As in a comparison, where one follows the other."""
    for number, precision in enumerate(("no", "bf16", "no")):
        config = small("pid", mixed_precision=precision, max_train_steps=2)
        trainer = make_trainer(config, tmp_path / str(number))
        assert trainer.accelerator.mixed_precision == precision
        assert [report.step for report in trainer.run()] == [1, 2]
    first, last = (tmp_path / name / "student.safetensors" for name in "02")
    assert first.read_bytes() == last.read_bytes()
