"""A method of several parts, each with its optimizer and updates; `test_resume.py` resumes it."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from test_many_processes import STRATEGIES, assert_same_run
from test_many_processes import train as train_together

from pidistill import PidistillError, load_student, methods

from method_runs import make_trainer, small, train
from two_networks import TwoNetworks


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, train(small("two-networks"), folder)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_two_parts_as_one_does(tmp_path, straight, strategy):
    for stop_at in (3, None):
        config = small("two-networks")
        train_together(config, tmp_path, 2, stop_at=stop_at, **STRATEGIES[strategy])
    assert_same_run(tmp_path, straight[0])


def test_accumulated_gradients_of_each_part_are_those_of_the_whole_batch(tmp_path, straight):
    train(small("two-networks", gradient_accumulation_steps=4), tmp_path)
    assert_same_run(tmp_path, straight[0], rtol=1e-3)


def test_every_part_has_its_updates_optimizer_and_averages(straight):
    folder, trainer = straight
    student, auxiliary = trainer.state.parts.values()
    assert (student.num_updates, auxiliary.num_updates) == (5, 20)
    assert type(auxiliary.optimizer.optimizer) is torch.optim.RAdam
    assert auxiliary.optimizer.param_groups[0]["betas"][0] == 0
    newest = folder / "state/step-000000010"
    raw = load_file(newest / "auxiliary.safetensors")
    averaged = load_file(newest / "auxiliary-ema-0.9.safetensors")
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)
    assert not list(folder.glob("auxiliary*"))  # the run folder is the student's
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"loss", "pull", "grad_norm", "auxiliary_loss", "auxiliary_grad_norm"} <= line.keys()


def test_an_update_moves_its_part_alone(tmp_path):
    """Though the student's loss has a gradient with respect to the auxiliary, and back."""
    trainer = make_trainer(small("two-networks"), tmp_path)
    method = trainer.method
    for name in ("student", "auxiliary"):
        method.updates = lambda step, name=name: [
            update for update in TwoNetworks.updates(method, 0) if update.part == name
        ]
        modules = {part.name: part.module for part in method.parts()}
        before = {key: copy.deepcopy(module.state_dict()) for key, module in modules.items()}
        trainer.train_step()
        for key, module in modules.items():
            pairs = zip(module.state_dict().values(), before[key].values(), strict=True)
            assert all(torch.equal(new, old) for new, old in pairs) == (key != name)


def test_the_run_needs_no_plug_in_to_sample(straight, monkeypatch):
    monkeypatch.setattr(methods, "_registered", {})
    assert load_student(straight[0]).generate(3, seed=0).x.shape == (3, 2)
    with pytest.raises(PidistillError, match="unknown method 'two-networks'"):
        small("two-networks")


def test_a_registered_method_is_named_with_the_others():
    assert "two-networks" in methods.NAMES
    assert methods.method_class("two-networks") is TwoNetworks
    assert methods.register(TwoNetworks) is TwoNetworks
    with pytest.raises(PidistillError, match="'pid' is taken"):
        methods.register(methods.method_class("pid"))


def test_a_method_comes_from_an_entry_point(monkeypatch):
    class Point:
        name = "from-elsewhere"

        def load(self):
            return TwoNetworks

    class Points(list):
        names = ("from-elsewhere",)

    def entry_points(*, group, name=None):
        assert group == "pidistill.methods"
        return Points([Point()] if name in (None, Point.name) else [])

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert "from-elsewhere" in methods.NAMES
    assert methods.method_class("from-elsewhere") is TwoNetworks
