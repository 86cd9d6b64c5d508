"""What every distillation method must pass: resuming, costs, needs, and every teacher."""

import pytest
import torch

from pidistill import PidistillError, load_student, load_teacher
from pidistill.files import read_json
from pidistill.guidance import GuidedDenoiser
from pidistill.methods import BUILT_IN, method_class
from pidistill.methods.base import Batch, Run
from pidistill.noise import Draws
from pidistill.students.base import labels_for
from pidistill.training.assemble import build_trainer

from every_source import SPECS
from method_runs import METHODS, images_of, log_lines, make_trainer, small, train
from method_runs import everything as all_of


def everything(folder):
    return all_of(folder, step=10)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What an uninterrupted run of each method leaves behind."""
    contents = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp(method)
        train(small(method), folder)
        contents[method] = everything(folder)
    return contents


def test_every_method_is_tested():
    assert {*METHODS, "denoising"} == set(BUILT_IN)


@pytest.mark.parametrize("stop_at", [2, 3, 4, 7, 9])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_and_resumed_is_the_straight_run(tmp_path, straight, method, stop_at):
    train(small(method), tmp_path, stop_at=stop_at)
    assert not (tmp_path / "state/step-000000010").exists()
    train(small(method), tmp_path)
    assert everything(tmp_path) == straight[method]


@pytest.mark.parametrize("abandon_at", [3, 6, 9])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_dies_resumes_from_its_last_checkpoint(tmp_path, straight, method, abandon_at):
    train(small(method), tmp_path, abandon_at=abandon_at)
    train(small(method), tmp_path)
    assert everything(tmp_path) == straight[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_may_be_lengthened(tmp_path, method):
    train(small(method), tmp_path)
    trainer = train(small(method, max_train_steps=14), tmp_path)
    assert trainer.step == 14
    assert load_student(tmp_path).generate(2, seed=0).nfe == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_step_ends_with_a_one_step_student(tmp_path, method):
    train(small(method, max_train_steps=1), tmp_path)
    x, nfe = load_student(tmp_path).generate(3, seed=0)
    assert nfe == 1
    assert x.shape == (3, 2)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("method", "before", "a_sample"),
    [
        ("pid", 0, 1),
        ("consistency", 0, 2),
        ("progressive", 0, 2),
        ("boot", 0, 2),
        ("knowledge", 40 * 7, 0),
    ],
)
def test_the_log_counts_the_teacher_evaluations(tmp_path, monkeypatch, method, before, a_sample):
    """Compared with a count of the samples that the teacher sees."""
    trainer = make_trainer(small(method), tmp_path)
    kind, seen = type(trainer.method.teacher), []
    forward = kind.forward

    def counted(self, x, sigma, label=None):
        if self is trainer.method.teacher:
            seen.append(len(x))
        return forward(self, x, sigma, label)

    monkeypatch.setattr(kind, "forward", counted)
    for _ in trainer.prepare():
        pass
    assert sum(seen) == before
    for _ in trainer.run():
        pass
    logged = [line["teacher_evals"] for line in log_lines(tmp_path)]
    if method != "progressive":  # its later teachers are of another class
        assert sum(seen) == before + 10 * 8 * a_sample
    assert logged == [before + step * 8 * a_sample for step in (0, 3, 6, 9, 10)]


@pytest.mark.parametrize("method", METHODS)
def test_guidance_counts_twice(mlp_teacher, method):
    guided = GuidedDenoiser(mlp_teacher, 2.0)
    costs = [
        (built.teacher_evaluations, built.teacher_evaluations_before)
        for built in (
            method_class(method).build(
                small(method).method, teacher=teacher, data=images_of(teacher), network=None
            )
            for teacher in (mlp_teacher, guided)
        )
    ]
    assert costs[1] == tuple(2 * cost for cost in costs[0])
    assert sum(costs[0]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_reaches_anything_but_the_student(mlp_teacher, tmp_path, method):
    teacher = mlp_teacher.requires_grad_(True)
    data = images_of(teacher)
    built = method_class(method).build(
        small(method).method, teacher=teacher, data=data, network=None
    )
    for _ in built.prepare(Run(tmp_path, None)):
        pass
    draws, label = Draws(0, 0, 8), labels_for(teacher, 8)
    losses = built.loss(Batch(draws, label, data.images[:8]))
    assert losses.loss.shape == losses.sigma.shape == (8,)
    losses.loss.mean().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    reached = [p.grad.norm().item() for p in built.student.parameters() if p.grad is not None]
    assert len(reached) > 5
    assert max(reached) > 0
    others = [value for name, value in vars(built).items() if name not in ("student", "teacher")]
    for module in (value for value in others if isinstance(value, torch.nn.Module)):
        assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_draws_for_a_sample_by_its_index_only(mlp_teacher, tmp_path, method):
    """Two halves of a batch have the losses of the whole."""
    data = images_of(mlp_teacher)
    built = method_class(method).build(
        small(method).method, teacher=mlp_teacher, data=data, network=None
    )
    for _ in built.prepare(Run(tmp_path, None)):
        pass
    label = labels_for(mlp_teacher, 8)
    with torch.no_grad():
        whole = built.loss(Batch(Draws(3, 40, 8), label, data.images[:8])).loss
        halves = [
            built.loss(Batch(Draws(3, 40 + i, 4), label[i : i + 4], data.images[i : i + 4])).loss
            for i in (0, 4)
        ]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("source", [source for source in SPECS if source != "mixture:grid"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "pid"])
def test_every_method_accepts_every_teacher(tmp_path, mlp_teacher, method, source):
    """PID has its own test."""
    made = tmp_path / "teacher"
    made.mkdir()
    config = small(method, SPECS[source](made, mlp_teacher), max_train_steps=2, batch_size=4)
    trainer = train(config, tmp_path / "run")
    assert trainer.step == 2
    student = load_student(tmp_path / "run")
    x, nfe = student.generate(2, seed=0)
    assert nfe == 1
    assert x.shape == (2, *student.sample_shape)
    assert x.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_data_are_needed_or_refused(tmp_path, method):
    if method_class(method).needs == "images":
        with pytest.raises(PidistillError, match=f"{method} trains on images"):
            build_trainer(small(method, "digits"), tmp_path)
    else:
        with pytest.raises(PidistillError, match=f"'digits', but {method} trains without data"):
            build_trainer(small(method, "digits", data="digits"), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_is_needed(tmp_path, method):
    config = small(method).model_copy(update={"teacher": None, "data": "digits"})
    with pytest.raises(PidistillError, match=r"distils a teacher|without data"):
        build_trainer(config, tmp_path)


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_images_that_do_not_suit_the_teacher_are_refused(tmp_path, method):
    with pytest.raises(PidistillError, match=r"shape \(1, 8, 8\); the teacher expects .* \(2,\)"):
        build_trainer(small(method, data="digits"), tmp_path)
    teacher = load_teacher("digits")
    data = images_of(teacher)._replace(labels=None, num_classes=0)
    with pytest.raises(PidistillError, match="has 0 classes; the teacher has 10"):
        make_trainer(small(method, "digits"), tmp_path, data=data)


def test_an_unconditional_teacher_accepts_labelled_images(tmp_path):
    """The labels are ignored."""
    config = small("consistency", "mixture:gaussian")
    data = images_of(load_teacher("mixture:gaussian"))
    labelled = data._replace(labels=torch.arange(64) % 5, num_classes=5)
    trainer = make_trainer(config, tmp_path, data=labelled)
    assert trainer.batch(0).label is None
    assert next(trainer.run()).step == 1


def test_a_checkpoint_of_every_method_holds_plain_values_only(tmp_path):
    for method in METHODS:
        train(small(method, max_train_steps=1), tmp_path / method)
        manifest = read_json(tmp_path / method / "state/step-000000001/manifest.json")
        assert isinstance(manifest["values"]["method"], dict)
