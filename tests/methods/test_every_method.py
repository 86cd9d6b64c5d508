"""What every distillation method must pass: costs, needs, and every teacher.

`tests/training/test_resume.py` interrupts a run of each.
"""

import dataclasses

import pytest
import torch

from pidistill import PidistillError, load_student, load_teacher
from pidistill.files import read_json
from pidistill.guidance import GuidedDenoiser
from pidistill.methods import BUILT_IN, method_class
from pidistill.methods.base import Run
from pidistill.training.assemble import build_trainer

from every_source import SPECS
from method_runs import (
    METHODS,
    batch_of,
    build,
    images_of,
    log_lines,
    make_trainer,
    small,
    train,
)


def test_every_method_is_tested():
    assert {*METHODS, "denoising"} == set(BUILT_IN)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_one_step_ends_with_a_one_step_student_and_may_be_lengthened(tmp_path, method):
    train(small(method, max_train_steps=1), tmp_path)
    x, nfe = load_student(tmp_path).generate(3, seed=0)
    assert nfe == 1
    assert x.shape == (3, 2)
    assert x.isfinite().all()
    manifest = read_json(tmp_path / "state/step-000000001/manifest.json")
    assert isinstance(manifest["values"]["method"], dict)
    assert train(small(method, max_train_steps=4), tmp_path).step == 4
    assert load_student(tmp_path).generate(2, seed=0).nfe == 1


@pytest.mark.parametrize(
    ("method", "before", "a_sample"),
    [
        ("pid", 0, 1),
        ("pid-map", 0, 1),
        ("correction", 0, 1),
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
    costs = []
    for teacher in (mlp_teacher, GuidedDenoiser(mlp_teacher, 2.0)):
        built = build(method, teacher, data=images_of(teacher))
        costs.append((built.teacher_evaluations, built.teacher_evaluations_before))
    assert costs[1] == tuple(2 * cost for cost in costs[0])
    assert sum(costs[0]) > 0


@pytest.fixture(params=METHODS)
def prepared(request, mlp_teacher, tmp_path):
    """A method that is ready to train, and images for it."""
    data = images_of(mlp_teacher.requires_grad_(True))
    built = build(request.param, mlp_teacher, data=data)
    list(built.prepare(Run(tmp_path, None)))
    return built, data.images


def test_the_gradient_reaches_every_weight_of_the_student_and_nothing_else(prepared):
    built, images = prepared
    for parameter in built.student.parameters():
        if not parameter.any():  # a layer that starts at zero hides those before it
            torch.nn.init.normal_(parameter, std=0.1)
    losses = built.loss(batch_of(built.student, images=images))
    assert losses.loss.shape == losses.sigma.shape == (8,)
    losses.loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.student.parameters())
    others = [value for name, value in vars(built).items() if name != "student"]
    for module in (value for value in others if isinstance(value, torch.nn.Module)):
        assert all(parameter.grad is None for parameter in module.parameters())


@torch.no_grad()
def test_losses_depend_on_the_samples_alone_not_on_their_batch(prepared):
    built, images = prepared
    whole, *halves = (
        built.loss(batch_of(built.student, num, first, images))
        for num, first in ((8, 0), (4, 0), (4, 4))
    )
    loss, sigma = (torch.cat([getattr(h, name) for h in halves]) for name in ("loss", "sigma"))
    torch.testing.assert_close(loss, whole.loss, rtol=1e-4, atol=1e-7)
    assert torch.equal(sigma, whole.sigma)


@pytest.fixture(params=[source for source in SPECS if source != "mixture:grid"])
def spec(request, tmp_path, mlp_teacher):
    """A teacher of one source."""
    (tmp_path / "teacher").mkdir()
    return SPECS[request.param](tmp_path / "teacher", mlp_teacher)


def test_every_method_takes_every_teacher(tmp_path, spec):
    for method, table in METHODS.items():
        table = {**table, "num_pairs": 4} if method == "knowledge" else table
        config = small(method, spec, max_train_steps=1, batch_size=4, method=table)
        train(config, tmp_path / method)
        student = load_student(tmp_path / method)
        x, nfe = student.generate(2, seed=0)
        assert nfe == 1
        assert x.shape == (2, *student.sample_shape)
        assert x.isfinite().all()


def test_pid_learns_from_every_teacher(tmp_path, spec):
    """A teacher of random weights that predicts noise is nowhere near data: a student that is not
    anchored would have far to go.
    """
    pid = build_trainer(small("pid", spec, method={"anchored": True}), tmp_path / "run").method
    batch = batch_of(pid.student, num=4)
    optimizer = torch.optim.Adam(pid.student.parameters(), lr=5e-4)
    first = pid.loss(batch).loss.mean().item()
    for _ in range(25):  # of one batch, so that a lower loss is no matter of luck
        loss = pid.loss(batch).loss.mean()
        if loss < 0.9 * first:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * first


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
    data = dataclasses.replace(images_of(teacher), labels=None, num_classes=0)
    with pytest.raises(PidistillError, match="has 0 classes; the teacher has 10"):
        make_trainer(small(method, "digits"), tmp_path, data=data)


def test_an_unconditional_teacher_accepts_labelled_images(tmp_path):
    """The labels are ignored."""
    config = small("consistency", "mixture:gaussian")
    data = images_of(load_teacher("mixture:gaussian"))
    labelled = dataclasses.replace(data, labels=torch.arange(64) % 5, num_classes=5)
    trainer = make_trainer(config, tmp_path, data=labelled)
    assert trainer.batch(0).label is None
    assert next(trainer.run()).step == 1
