"""Progressive distillation: its target, its rounds, and students between rounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise, load_student, load_teacher, solve
from pidistill.denoiser import Denoiser
from pidistill.distance import l2
from pidistill.methods.progressive import (
    Progressive,
    ProgressiveSettings,
    progressive_loss,
    two_step_target,
)
from pidistill.model_folder import build_model, describe
from pidistill.networks import new_network
from pidistill.noise import Draws
from pidistill.ode import euler, sampling_sigmas
from pidistill.schedule import karras_sigmas
from pidistill.students.euler import EulerStudent, euler_step

from method_runs import log_lines, make_trainer, small, train

# Students that take Euler steps


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_student_samples_by_eulers_method_on_the_grid(mlp_teacher, num_steps):
    student = EulerStudent.from_teacher(mlp_teacher, num_steps=num_steps).double()
    z, label = initial_noise(student, 4, seed=0).double(), torch.tensor([0, 1, 2, -1])
    sigmas = sampling_sigmas(mlp_teacher, num_steps + 1, final_zero=False)
    expected = solve(mlp_teacher.double(), z, sigmas=sigmas, solver="euler", label=label)
    solution = student.sample(z, steps=num_steps, label=label)
    assert solution.nfe == expected.nfe == num_steps
    torch.testing.assert_close(solution.x, expected.x, rtol=1e-12, atol=1e-12)


def test_a_step_in_single_precision_loses_nothing(mlp_teacher):
    student = EulerStudent.from_teacher(mlp_teacher)
    z = initial_noise(student, 64, seed=0)
    x = student.sample(z).x
    exact = student.double().sample(z.double()).x
    assert (x - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize(("steps", "num_steps"), [(1, 4), (4, 1), (0, 1)])
def test_another_number_of_steps_is_refused(mlp_teacher, steps, num_steps):
    student = EulerStudent.from_teacher(mlp_teacher, num_steps=num_steps)
    with pytest.raises(PidistillError, match=rf"steps is {steps}, .* for {num_steps}; "):
        student.generate(2, seed=0, steps=steps)


def test_it_comes_back_from_a_model_folder(mlp_teacher):
    student = EulerStudent.from_teacher(mlp_teacher, num_steps=16)
    again = build_model(describe(student), "a test")
    assert isinstance(again, EulerStudent)
    assert again.num_steps == 16


# The target


def levels(draws, gaussian):
    """Random noise levels sigma > middle > next, each (b,), float64."""
    uniform = torch.stack([draws.uniform(str(i)) for i in range(3)]).sort(dim=0, descending=True)
    low, high = gaussian.sigma_min, gaussian.sigma_max
    return low * (high / low) ** uniform.values


@given(st.integers(0, 10_000))
def test_one_step_to_the_target_ends_where_two_steps_of_the_teacher_end(seed):
    """The fixed point of a round, for any noise levels: the loss of such a student is zero."""
    gaussian, draws = load_teacher("mixture:ring"), Draws(seed, 0, 6)
    sigma, middle, last = levels(draws, gaussian)
    label = draws.integers("label", 8)
    x = draws.normal("x", (2,)) * (1 + sigma[:, None])
    target = two_step_target(gaussian, x, sigma, middle, last, label)
    halfway = euler(gaussian, x, sigma, middle, label).x
    end = euler(gaussian, halfway, middle, last, label).x
    torch.testing.assert_close(euler_step(x, target, sigma, last), end, rtol=1e-9, atol=1e-9)


def test_a_student_that_aims_at_the_target_has_no_loss(gaussian):
    class Aims(torch.nn.Module):
        num_steps = 4

        def forward(self, x, sigma, label=None):
            nodes = karras_sigmas(9, gaussian.sigma_min, gaussian.sigma_max)
            index = 2 * torch.searchsorted(-nodes[::2], -sigma - 1e-9)
            return two_step_target(gaussian, x, *nodes[index + torch.tensor([[0], [1], [2]])], None)

    x0 = gaussian.draw(12, torch.Generator().manual_seed(0))
    eps = Draws(0, 0, 12).normal("eps", (2,))
    index = torch.arange(12) % 4
    loss, sigma = progressive_loss(Aims(), gaussian, x0, eps, index, None, distance=l2)
    assert loss.max() < 1e-20
    nodes = karras_sigmas(5, gaussian.sigma_min, gaussian.sigma_max)
    torch.testing.assert_close(sigma, nodes[index], rtol=1e-12, atol=0)
    student = Aims()
    student.forward = gaussian.forward  # a denoiser, but not one that aims ahead
    off, _ = progressive_loss(student, gaussian, x0, eps, index, None, distance=l2)
    assert off.mean() > 1e-6


class Promoted(Denoiser):
    """What a student without any loss is as a teacher: it aims where its teacher's steps end."""

    def __init__(self, teacher, num_steps):
        super().__init__(
            sigma_min=teacher.sigma_min,
            sigma_max=teacher.sigma_max,
            sigma_data=teacher.sigma_data,
            sample_shape=teacher.sample_shape,
            source="promoted",
        )
        self.teacher, self.num_steps = teacher, num_steps

    def forward(self, x, sigma, label=None):
        nodes = karras_sigmas(2 * self.num_steps + 1, self.sigma_min, self.sigma_max)
        index = int((nodes - sigma[0]).abs().argmin())
        each = (nodes[index + i].expand(len(x)) for i in range(3))
        return two_step_target(self.teacher, x, *each, label)


def test_perfect_rounds_end_with_eulers_method_in_one_step(gaussian):
    """From 16 steps to one, by four rounds without a loss."""
    teacher = gaussian
    for num_steps in (8, 4, 2, 1):
        teacher = Promoted(teacher, num_steps)
    z = initial_noise(gaussian, 5, seed=0).double()
    sigmas = sampling_sigmas(gaussian, 17, final_zero=False)
    expected = solve(gaussian, z, sigmas=sigmas, solver="euler").x
    ends = (torch.tensor([level], dtype=torch.float64) for level in (80.0, 0.002))
    high, low = (end.expand(5) for end in ends)
    torch.testing.assert_close(euler_step(z, teacher(z, high), high, low), expected)


def test_weights_of_the_noise_levels(mlp_teacher, tmp_path):
    trainers = [
        make_trainer(small("progressive", method={"weight": weight}), tmp_path / weight)
        for weight in ("uniform", "truncated-snr")
    ]
    losses = [trainer.method.loss(trainer.batch(0)) for trainer in trainers]
    sigma = losses[0].sigma
    assert torch.equal(sigma, losses[1].sigma)
    weight = torch.where(sigma < 1, sigma**-2, 1.0).float()
    torch.testing.assert_close(losses[1].loss, weight * losses[0].loss, rtol=1e-5, atol=1e-9)


# The rounds


def rounds(start_steps, max_train_steps, end_steps=1):
    """The student's steps at every training step."""
    teacher = load_teacher("mixture:gaussian")
    network = new_network("mlp", (2,), 0, {"width": 4, "num_blocks": 1, "embedding_width": 4})
    student = EulerStudent.from_teacher(teacher, network=network, num_steps=start_steps // 2)
    settings = ProgressiveSettings(start_steps=start_steps, end_steps=end_steps)
    method = Progressive(settings, student, teacher)
    seen = []
    for step in range(max_train_steps):
        method.start_phase(step, max_train_steps)
        first, end = method.phase(max_train_steps)
        assert first <= step < end
        seen.append(student.num_steps)
    return seen


@given(st.integers(1, 7), st.integers(0, 6), st.integers(1, 60))
def test_rounds_halve_the_steps_and_divide_the_run_evenly(exponent, last, max_train_steps):
    last = min(last, exponent - 1)
    seen = rounds(2**exponent, max_train_steps, 2**last)
    assert seen[-1] == 2**last
    assert seen == sorted(seen, reverse=True)
    if max_train_steps >= exponent - last:
        assert sorted(set(seen), reverse=True) == [2**k for k in range(exponent - 1, last - 1, -1)]
    lengths = [seen.count(steps) for steps in set(seen)]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("key", "values"), [("start_steps", [0, 1, 3, 48]), ("end_steps", [0, 3, 8, 16])]
)
def test_the_steps_must_be_powers_of_two_and_the_last_fewer(key, values):
    for value in values:
        with pytest.raises(PidistillError, match=key):
            small("progressive", method={"start_steps": 8, key: value})


def test_a_run_may_end_with_several_steps(tmp_path):
    train(small("progressive", method={"end_steps": 2}), tmp_path)
    student = load_student(tmp_path)
    assert student.num_steps == student.generate(3, seed=0, steps=2).nfe == 2
    assert [line["student_steps"] for line in log_lines(tmp_path)][::4] == [4, 2]


def test_at_the_end_of_a_round_the_student_becomes_the_teacher(tmp_path):
    """8 steps, so students of 4, 2 and 1, of 3, 3 and 4 training steps."""
    trainer = make_trainer(small("progressive", "mixture:ring"), tmp_path)
    method, original = trainer.method, trainer.method.teacher
    steps, at_end = {}, {}
    for report in trainer.run():
        steps[report.step] = method.student.num_steps
        if report.step <= 3:
            assert method.teacher is original
        else:
            assert all(not p.requires_grad for p in method.teacher.parameters())
            round_end = 3 if report.step <= 6 else 6
            kept = method.teacher.network.output.weight
            assert torch.equal(kept, at_end[round_end])
        at_end[report.step] = method.student.network.output.weight.detach().clone()
        counts = {float(s["step"]) for s in trainer.state.parts["student"].optimizer.state.values()}
        assert counts == {report.step - (0 if report.step <= 3 else 3 if report.step <= 6 else 6)}
    assert steps == {1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1}
    assert [line["student_steps"] for line in log_lines(tmp_path)] == [4, 4, 2, 1, 1]


def test_averages_and_learning_rate_restart_in_every_round(tmp_path):
    config = small("progressive", max_train_steps=9, lr_warmup_steps=0, lr_end=0.0)
    trainer = make_trainer(config, tmp_path)
    rates = []
    for report in trainer.run():
        rates.append(
            trainer.state.parts["student"].optimizer.param_groups[0]["lr"] / config.learning_rate
        )
        if report.step in (1, 4, 7):  # the first update keeps a tenth
            weight = trainer.method.student.network.output.bias
            average = trainer.state.parts["student"].averages.weights(0)["network.output.bias"]
            start = 0 if report.step == 1 else trainer.method.teacher.network.output.bias
            torch.testing.assert_close(average, 0.1 * start + 0.9 * weight, rtol=1e-4, atol=1e-7)
    assert rates == pytest.approx([1, 2 / 3, 1 / 3] * 3)


def test_an_interrupted_run_samples_in_its_current_number_of_steps(tmp_path):
    train(small("progressive"), tmp_path, stop_at=3)
    for step, num_steps in ((3, 4), (5, 2), (6, 2), (8, 1)):
        if step > 3:
            train(small("progressive"), tmp_path, stop_at=step)
        student = load_student(tmp_path)
        assert student.num_steps == num_steps
        assert student.generate(3, seed=0, steps=num_steps).nfe == num_steps


def test_changing_the_length_moves_the_remaining_rounds(tmp_path):
    train(small("progressive"), tmp_path, stop_at=4)  # the first step of the second round
    trainer = make_trainer(small("progressive", max_train_steps=23), tmp_path)
    seen = [trainer.method.student.num_steps for _ in trainer.run()]
    assert seen == [2] * 9 + [1] * 10
