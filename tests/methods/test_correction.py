"""The correction: its loss against the formula, what it does to a Gaussian, its two phases."""

import json

import pytest
import torch
from torch import nn

from pidistill import PidistillError, as_denoiser, load_student
from pidistill.methods.correction import (
    ANCHOR_EVERY,
    AUXILIARY_RATES,
    STUDENT_RATES,
    Correction,
)
from pidistill.methods.correction_settings import CorrectionSettings
from pidistill.methods.denoising import denoising_loss
from pidistill.methods.pid import PID
from pidistill.methods.pid_map import PIDMap
from pidistill.methods.score_identity import correction_loss
from pidistill.methods.settings import LARGE, RATES, SMALL, rate_by_size
from pidistill.noise import Draws
from pidistill.students import FlowMapStudent, TrajectoryStudent

from method_runs import batch_of, build, make_trainer, small, train


def isotropic(std):
    """The denoiser of N(0, std^2) in the plane."""
    return as_denoiser(
        lambda x, sigma, label: x * (std**2 / (std**2 + sigma**2))[:, None],
        sigma_min=0.002,
        sigma_max=80.0,
        sigma_data=0.5,
        sample_shape=(2,),
    )


def inputs(num=6, shape=(1, 4, 4)):
    draws = Draws(0, 0, num)
    x0, eps = (draws.normal(name, shape) for name in ("x0", "eps"))
    return x0, eps, 0.1 + draws.uniform("sigma"), torch.arange(num) % 3


def test_the_gradient_is_that_of_the_formula(mlp_teacher):
    teacher = mlp_teacher.double()
    auxiliary = build("correction", mlp_teacher).auxiliary.double()
    for parameter in auxiliary.parameters():
        parameter.data += 0.05
    x0, eps, sigma, label = inputs()
    x0.requires_grad_()
    loss, disagreement = correction_loss(teacher, auxiliary, x0, eps, sigma, label, alpha=1.2)
    (gradient,) = torch.autograd.grad(loss.sum(), x0)
    x_t = x0 + sigma[:, None, None, None] * eps
    D, D_psi = teacher(x_t, sigma, label), auxiliary(x_t, sigma, label)
    delta = D - D_psi
    weight = (x0 - D).abs().mean((1, 2, 3)).detach()
    plain = (delta * (D - x0 - 1.2 * delta)).mean((1, 2, 3)) / weight
    (expected,) = torch.autograd.grad(plain.sum(), x0)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(disagreement, delta.square().mean((1, 2, 3)))


def test_nothing_is_left_to_correct_when_both_denoisers_agree(mlp_teacher):
    x0, eps, sigma, label = inputs()
    x0.requires_grad_()
    loss, _ = correction_loss(mlp_teacher, mlp_teacher, x0, eps, sigma, label, alpha=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), x0)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("own", "pushed"), [(0.3, 1), (0.5, 0), (0.8, -1)])
def test_it_pushes_the_width_of_a_gaussian_to_the_teachers(own, pushed):
    """A student that draws scale * n, its exact denoiser as the auxiliary, a teacher of 0.5."""
    scale = torch.tensor(own, dtype=torch.float64, requires_grad=True)
    draws = Draws(0, 0, 20_000)
    x0 = scale * draws.normal("n", (2,))
    sigma = 0.05 + 2 * draws.uniform("sigma")
    loss, _ = correction_loss(
        isotropic(0.5), isotropic(own), x0, draws.normal("eps", (2,)), sigma, None, alpha=1.0
    )
    (gradient,) = torch.autograd.grad(loss.mean(), scale)
    assert torch.sign(-gradient.round(decimals=6)) == pushed


def test_the_auxiliary_learns_what_the_student_draws():
    """EDM's weighted loss is lowest for the true denoiser."""
    draws = Draws(0, 0, 20_000)
    x0, eps = 0.3 * draws.normal("n", (2,)), draws.normal("eps", (2,))
    sigma = 0.05 + 2 * draws.uniform("sigma")
    losses = {
        std: denoising_loss(isotropic(std), x0, eps, sigma, None).mean().item()
        for std in (0.2, 0.3, 0.4)
    }
    assert min(losses, key=losses.get) == 0.3


def test_a_batch_has_corrected_samples_and_anchors(mlp_teacher):
    method = build("correction", mlp_teacher, weight=0.5)
    losses = method.loss(batch_of(mlp_teacher, num=8))
    assert {"disagreement", "residual"} == losses.scalars.keys()
    anchors = list(range(0, 8, ANCHOR_EVERY))
    alone = method.first.loss(method._fresh(batch_of(mlp_teacher, num=8), 0, len(anchors)))
    torch.testing.assert_close(losses.loss[anchors], ANCHOR_EVERY * 0.5 * alone.loss)
    none = build("correction", mlp_teacher, weight=0.0).loss(batch_of(mlp_teacher, num=8))
    assert none.scalars.keys() == {"disagreement"}


def test_the_first_phase_is_the_first_method_and_the_second_has_rates_of_its_own(tmp_path):
    trainer = make_trainer(small("correction"), tmp_path)
    alone = make_trainer(small("pid-map", max_train_steps=4), tmp_path / "alone")
    for _ in range(4):
        assert trainer.train_step().loss == alone.train_step().loss
    assert trainer.state.parts["auxiliary"].num_updates == 4  # a mixture has no network to copy
    assert trainer.method.corrected_from is None
    trainer.train_step()
    assert trainer.method.corrected_from == 4
    student, auxiliary = trainer.state.parts.values()
    assert student.num_updates == 1  # the optimizer and the averages began again
    assert auxiliary.num_updates == 4  # three to catch up and one
    assert student.optimizer.param_groups[0]["betas"] == (0.0, 0.99)
    assert student.highest_rate == STUDENT_RATES[0]
    assert auxiliary.highest_rate == AUXILIARY_RATES[0]


def test_the_scale_of_the_learning_rates_reaches_those_of_the_method_in_every_phase(tmp_path):
    trainer = make_trainer(small("correction", learning_rate_scale=0.5), tmp_path)
    student, auxiliary = trainer.state.parts.values()
    assert (student.highest_rate, auxiliary.highest_rate) == (0.5e-2, 0.5 * AUXILIARY_RATES[0])
    for _ in range(5):
        trainer.train_step()
    assert student.highest_rate == 0.5 * STUDENT_RATES[0]
    assert student.optimizer.param_groups[0]["lr"] == student.learning_rate(0, 6)


def test_the_log_counts_backward_passes_apart(tmp_path):
    train(small("correction"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["teacher_evals"] for line in lines] == [0, 24, 48, 72, 80]
    corrected = [8 * (1 - 1 / ANCHOR_EVERY) * steps for steps in (0, 0, 2, 5, 6)]
    assert [line["teacher_backwards"] for line in lines] == corrected


def test_it_corrects_the_student_of_a_run(tmp_path):
    for name, kind, first in (
        ("pid", TrajectoryStudent, PID),
        ("pid-map", FlowMapStudent, PIDMap),
    ):
        train(small(name), tmp_path / name)
        method = {"name": "correction", "start": str(tmp_path / name)}
        trainer = make_trainer(small("correction", method=method), tmp_path / f"{name} corrected")
        before = load_student(tmp_path / name)
        assert isinstance(trainer.method.student, kind)
        assert isinstance(trainer.method.first, first)
        x = before.generate(4, seed=0).x
        assert torch.equal(trainer.method.student.generate(4, seed=0).x, x)
        for _ in trainer.run():
            pass
        assert trainer.method.corrected_from == 0
        assert not torch.equal(
            load_student(tmp_path / f"{name} corrected").generate(4, seed=0).x, x
        )


def test_rivals_are_corrected_without_an_anchor(tmp_path):
    train(small("knowledge"), tmp_path / "knowledge")
    method = {"name": "correction", "start": str(tmp_path / "knowledge")}
    with pytest.raises(PidistillError, match=r"EulerStudent.*set method\.weight to 0"):
        make_trainer(small("correction", method=method), tmp_path / "run")
    config = small("correction", method={**method, "weight": 0.0})
    assert train(config, tmp_path / "run").step == 10


def test_only_a_student_of_the_same_teacher_is_corrected(tmp_path, mlp_teacher):
    train(small("pid"), tmp_path / "run")
    with pytest.raises(PidistillError, match=r"sample_shape \(2,\); the teacher has \(1, 4, 4\)"):
        build("correction", mlp_teacher, start=str(tmp_path / "run"))


def test_a_teacher_without_gradient_is_refused_before_the_first_step(random_network):
    denoiser = torch.no_grad()(lambda x, sigma, label: x / 2)
    teacher = as_denoiser(
        denoiser, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sample_shape=(2,)
    )
    with pytest.raises(PidistillError, match="lets no gradient through"):
        build("correction", teacher, network=random_network((2,)))


def test_learning_rates_follow_the_size_of_the_network():
    assert [rate_by_size(int(size)) for size in (SMALL, LARGE)] == list(RATES)
    rates = [rate_by_size(size) for size in (10, 10**6, 10**7, 10**8, 10**9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == RATES[0]
    assert rates[-1] == RATES[1]


def test_it_ends_with_the_teachers_width():
    """A student that can only scale its noise, with its exact denoiser as the auxiliary."""
    scale = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.02)
    for step in range(300):
        draws = Draws(0, 500 * step, 500)
        sigma = 0.05 + 2 * draws.uniform("sigma")
        x0, eps = scale * draws.normal("n", (2,)), draws.normal("eps", (2,))
        auxiliary = isotropic(scale.item())
        loss, _ = correction_loss(isotropic(0.5), auxiliary, x0, eps, sigma, None, alpha=1.0)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert scale.item() == pytest.approx(0.5, abs=0.01)


def test_settings_know_their_first_method():
    settings = CorrectionSettings(first={"name": "pid", "step": 0.5})
    assert settings.first.step == 0.5
    assert Correction.needs == "noise"
    with pytest.raises(ValueError, match="pid-map"):
        CorrectionSettings(first={"name": "boot"})


def test_networks_are_copied_not_shared(mlp_teacher):
    method = build("correction", mlp_teacher)
    student, auxiliary = method.student.network, method.auxiliary.network
    assert isinstance(student, nn.Module)
    assert len({id(student), id(auxiliary), id(mlp_teacher.network)}) == 3
