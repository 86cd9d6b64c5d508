"""`pidistill.distill`: what the verb does, from a script or a notebook."""

import os
import signal
import threading

import pytest
import torch

import pidistill
from pidistill import PidistillError, PIDSettings, load_student, load_teacher
from pidistill.cli import main
from pidistill.library import DEFAULT_PRESET, METHOD_PRESET, resolve_config
from pidistill.methods.pid_map import PIDMap

from method_runs import NETWORK, everything, images_of

FEW = {"max_train_steps": 6, "batch_size": 8, "checkpointing_steps": 4, "logging_steps": 3}


class Toy(torch.nn.Module):
    """A network of a class that is registered nowhere."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2)
        )

    def forward(self, u, c_noise, label=None):
        """F, of the shape of `u`."""
        return self.layers(torch.cat([u, c_noise[:, None]], dim=1))


def distill(teacher="mixture:ring", **options):
    """A short distillation into a small network."""
    return pidistill.distill(teacher, **{"network": NETWORK, "progress": False, **FEW, **options})


def test_it_makes_the_run_folder_of_the_verb(tmp_path, capsys):
    student = distill(out=tmp_path / "run", progress=True)
    assert "training 48/48" in capsys.readouterr().err
    flags = [w for key, n in FEW.items() for w in (f"--{key.replace('_', '-')}", str(n))]
    flags += ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=16}}']
    verb = tmp_path / "verb"
    assert main(["distill", "--teacher", "mixture:ring", *flags, "--out", str(verb)]) == 0
    assert everything(tmp_path / "run", 6) == everything(verb, 6)
    assert not student.training
    assert not any(parameter.requires_grad for parameter in student.parameters())
    loaded = load_student(tmp_path / "run")
    assert torch.equal(student.generate(5, seed=1).x.cpu(), loaded.generate(5, seed=1).x)


def test_it_takes_a_teacher_and_data_that_were_never_named(tmp_path, capsys):
    teacher = load_teacher("mixture:ring")
    student = distill(
        teacher, out=str(tmp_path / "run"), method="consistency", data=images_of(teacher)
    )
    assert type(student) is pidistill.ConsistencyStudent
    assert capsys.readouterr().err == ""
    assert not load_student(tmp_path / "run").training


@pytest.mark.parametrize("method", [{"name": "pid", "step": 0.2}, PIDSettings(step=0.2)])
def test_a_method_comes_with_its_settings(tmp_path, method):
    distill(out=tmp_path / "named", method=method)
    assert "step = 0.2" in (tmp_path / "named" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rat": 1e-3}, "'learning_rate'"),
        ({"method": {"name": "pid", "num_node": 3}}, "'method.num_nodes'"),
        ({"method": "pids"}, "pids"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"preset": "quick"}, "quick"),
        ({"data": "digits"}, "digits"),
        ({"network": {"name": "mpl"}}, "mpl"),
        ({"teacher": "mixture:rings"}, "rings"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, options, words):
    with pytest.raises(PidistillError, match=words):
        distill(out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_is_resumed_bit_for_bit(tmp_path, monkeypatch, capsys):
    loss, calls = PIDMap.loss, []  # called in both phases

    def interrupting(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch)

    with monkeypatch.context() as context:
        context.setattr(PIDMap, "loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            distill(out=tmp_path / "run")
    assert (tmp_path / "run" / "state" / "step-000000003").is_dir()
    with pytest.raises(PidistillError, match="not empty"):
        distill(out=tmp_path / "run")
    with pytest.raises(PidistillError, match="learning_rate"):
        distill(out=tmp_path / "run", resume=True, learning_rate=0.5)
    distill(out=tmp_path / "run", resume=True)
    distill(out=tmp_path / "straight")
    assert everything(tmp_path / "run", 6) == everything(tmp_path / "straight", 6)


def test_it_works_outside_the_main_thread(tmp_path):
    students = []
    thread = threading.Thread(target=lambda: students.append(distill(out=tmp_path / "run")))
    thread.start()
    thread.join()
    assert len(students) == 1


def test_a_network_of_any_class_trains_and_loads(tmp_path):
    teacher = load_teacher("mixture:gaussian")
    student = distill(teacher, out=tmp_path / "run", network=Toy())
    loaded = load_student(tmp_path / "run", network=Toy())
    assert torch.equal(student.generate(5, seed=1).x.cpu(), loaded.generate(5, seed=1).x)


def test_a_typo_in_a_network_keeps_its_exception(tmp_path):
    class Broken(Toy):
        def forward(self, u, c_noise, label=None):
            return self.layer(u)

    with pytest.raises(AttributeError, match="layer"):
        distill("mixture:gaussian", out=tmp_path / "run", network=Broken())


def test_the_default_preset_is_below_everything():
    config = resolve_config(None, [{"teacher": "digits", "seed": None}, {"lr_end": 0.5}])
    assert (config.seed, config.lr_end, config.method.name) == (0, 0.5, "correction")
    named = resolve_config(None, [{"teacher": "digits", "method": {"name": "boot"}}])
    assert (named.method.name, named.learning_rate) == ("boot", 1e-3)
    assert (DEFAULT_PRESET, METHOD_PRESET) == ("matched", "fast")


def test_torch_s_generator_is_left_alone(tmp_path):
    before = torch.random.get_rng_state()
    student = distill(out=tmp_path / "run")
    load_student(tmp_path / "run")
    load_teacher("digits")
    pidistill.evaluate(student, num=8, metrics=["diversity"])
    assert torch.equal(torch.random.get_rng_state(), before)


class Flat(Toy):
    """A network whose output broadcasts, and is not of the shape of its input."""

    def forward(self, u, c_noise, label=None):
        """One number per sample."""
        return super().forward(u, c_noise)[:, :1]


def test_a_network_of_another_output_shape_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="Flat returned shape"):
        distill(out=tmp_path / "run", network=Flat())
    assert not (tmp_path / "run").exists()


def test_a_class_is_no_network(tmp_path):
    distill(out=tmp_path / "run", network=Toy())
    with pytest.raises(PidistillError, match="expected an instance"):
        load_student(tmp_path / "run", network=Toy)
