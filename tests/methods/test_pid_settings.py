"""The settings of PID that are there to be compared: each trains, and does what it says."""

import math
import re
import typing
from pathlib import Path
from typing import Literal

import pytest
import torch
from scipy.stats import kstest, truncnorm

from pidistill import PidistillError, load_student, load_teacher
from pidistill.derivative import ForwardMode, OneSided, chord_intercept
from pidistill.distance import l2
from pidistill.files import read_json
from pidistill.methods.base import Batch
from pidistill.methods.noise_levels import DRAWS, WEIGHTS, mean_weight
from pidistill.methods.pid import PID, PIDSettings, boundary_penalty, pid_loss
from pidistill.networks import fresh_network
from pidistill.noise import Draws
from pidistill.residual import GRADIENTS, RESIDUALS
from pidistill.schedule import karras_sigmas
from pidistill.settings import parse_toml_value
from pidistill.students.base import labels_for
from pidistill.students.parametrisations import PARAMETRISATIONS, SoftTrajectoryStudent
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config

from every_source import SPECS
from every_source import native as save_native
from method_runs import SMALL, log_lines, small, train

ABLATIONS = {
    "parametrisation": ["edm", "log-odds", "soft"],
    "initialisation": ["random"],
    "anchored": [False],
    "gradient": ["value", "derivative"],
    "weight": ["low-noise", "high-noise"],
    "draw": ["nodes", "rho", "log-normal"],
    "derivative": ["one-sided", "log-odds", "jvp"],
    "residual": ["velocity"],
}
PAGE = Path(__file__).parents[2] / "docs" / "mathematics.md"
EVERY_SETTING = [(key, value) for key, values in ABLATIONS.items() for value in values]


def batch(first=0, num=8, num_classes=3):
    draws = Draws(0, first, num)
    return Batch(draws, draws.integers("train label", num_classes), None)


def method(teacher, **settings):
    return PID.build(PIDSettings(**settings), teacher=teacher, data=None, network=None)


def test_the_page_names_every_setting_with_its_values_and_its_default():
    section = PAGE.read_text(encoding="utf-8").partition("## Settings to compare")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|.*\|$", section.partition("###")[0], re.M))
    fields = PIDSettings.model_fields
    assert rows.keys() == fields.keys() - {"name"}
    for key, text in rows.items():
        (default,) = re.findall(r"\*\*(.*?)\*\*", text)
        shown = None if default == "left out" else parse_toml_value(default.strip("`"))
        assert shown == fields[key].default
        annotation = fields[key].annotation
        values = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        assert not values or re.findall(r"`([\w-]+)`", text) == list(values)


@pytest.mark.parametrize(("key", "value"), EVERY_SETTING)
def test_every_setting_trains_and_its_student_is_loaded(tmp_path, mlp_teacher, key, value):
    (tmp_path / "teacher").mkdir()
    spec = save_native(tmp_path / "teacher", mlp_teacher)
    table = {"name": "pid", key: value, "num_nodes": 20}
    config = parse_config([SMALL, {"teacher": spec, "max_train_steps": 3, "method": table}])
    trainer = build_trainer(config, tmp_path / "run")
    before = {name: w.clone() for name, w in trainer.method.student.state_dict().items()}
    losses = [report.loss for report in trainer.run()]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    student = load_student(tmp_path / "run", ema=0)
    assert type(student) is type(trainer.method.student)
    moved = [not torch.equal(w, before[name]) for name, w in student.state_dict().items()]
    assert sum(moved) > 5
    z = 80 * Draws(1, 0, 3).normal("z", (1, 4, 4)).float()
    assert torch.equal(student.sample(z).x, trainer.method.student.sample(z).x)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, value in EVERY_SETTING if key != "gradient"]
)
def test_the_loss_of_a_batch_goes_down(mlp_teacher, key, value):
    """For a stopped gradient it need not: that is no gradient of the loss."""
    torch.manual_seed(0)
    pid = method(mlp_teacher, **{key: value, "num_nodes": 20})
    optimizer = torch.optim.Adam(pid.student.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = pid.loss(batch()).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("derivative", ["one-sided", "central", "jvp"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_parametrisations_go_with_every_derivative_and_residual(
    mlp_teacher, parametrisation, derivative, residual
):
    """Losses and gradients are finite, at sigma_max too, where one node in N is."""
    pid = method(
        mlp_teacher,
        parametrisation=parametrisation,
        derivative=derivative,
        residual=residual,
        draw="nodes",
        num_nodes=4,
    )
    losses = pid.loss(batch(num=16))
    assert losses.sigma.max() > 70
    assert losses.loss.isfinite().all()
    losses.loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in pid.student.parameters() if p.grad is not None)


def test_log_odds_differences_need_a_pinned_student(mlp_teacher):
    with pytest.raises(PidistillError, match=r"'soft'; choose one-sided, central or jvp"):
        method(mlp_teacher, parametrisation="soft", derivative="log-odds")


@pytest.mark.parametrize("source", SPECS)
def test_every_teacher_takes_every_parametrisation(tmp_path, mlp_teacher, source):
    """But for log-odds where the student's timesteps come from a table."""
    spec = SPECS[source](tmp_path, mlp_teacher)
    for parametrisation in ("edm", "log-odds", "soft"):
        table = {"name": "pid", "parametrisation": parametrisation}
        config = parse_config([SMALL, {"teacher": spec, "method": table, "batch_size": 2}])
        if parametrisation == "log-odds" and source.startswith("diffusers"):
            with pytest.raises(PidistillError, match="a table that ends"):
                build_trainer(config, tmp_path / "run")
            continue
        pid = build_trainer(config, tmp_path / "run").method
        with torch.no_grad():
            losses = pid.loss(Batch(Draws(0, 0, 2), labels_for(pid.student, 2), None))
        assert losses.loss.isfinite().all()


# --- where the gradient stops


class OneWeight(torch.nn.Module):
    """F = weight * u * c_noise, so that dF/dtau = weight * u * (1 - sigma/sigma_max) / 4."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, u, c_noise, label=None):
        return self.weight * u * c_noise[:, None]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("form", RESIDUALS)
def test_the_gradient_of_one_weight_is_that_on_paper(gaussian, gradient, form):
    student = TrajectoryStudent.from_teacher(gaussian, network=OneWeight())
    S, weight = gaussian.sigma_max, student.network.weight
    z = 80 * Draws(0, 0, 4).normal("z", (2,))
    sigma = torch.tensor([70.0, 5.0, 0.4, 0.01], dtype=torch.float64)
    loss, _ = pid_loss(
        student,
        gaussian,
        z,
        sigma,
        None,
        derivative=ForwardMode(S),
        residual=RESIDUALS[form],
        distance=l2,
        gradient=GRADIENTS[gradient],
    )
    (found,) = torch.autograd.grad(loss.sum(), weight)
    u, c, share = student.c_in * z, (sigma.log() / 4)[:, None], (sigma / S)[:, None]
    F, dF_dtau = weight * u * c, weight * u * (1 - share) / 4
    x = share * z + (1 - share) * F
    residual = (F - dF_dtau - gaussian(x, sigma)).detach()
    of_value, of_derivative = u * c, -u * (1 - share) / 4
    parts = {"both": of_value + of_derivative, "value": of_value, "derivative": of_derivative}
    scale = sigma[:, None] if form == "velocity" else torch.ones(4, 1)
    expected = (2 * residual * parts[gradient] / scale**2).mean(1).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-10)


class Table(torch.nn.Module):
    """F = values[i] at node i of a grid, whatever the input."""

    def __init__(self, nodes):
        super().__init__()
        self.register_buffer("c_noise", nodes.log() / 4)
        self.values = torch.nn.Parameter(torch.linspace(1, 2, len(nodes), dtype=torch.float64))

    def forward(self, u, c_noise, label=None):
        node = (c_noise[:, None] - self.c_noise).abs().argmin(1)
        return self.values[node][:, None] * torch.ones_like(u)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_gradient_at_the_nodes_of_the_published_difference(gaussian, gradient):
    """The value is F at the node itself; its partner is in the derivative alone."""
    nodes = karras_sigmas(5, gaussian.sigma_min, gaussian.sigma_max)
    student = TrajectoryStudent.from_teacher(gaussian, network=Table(nodes))
    residuals = []

    def kept(prediction, target):
        residuals.append(prediction - target)
        return l2(prediction, target)

    loss, _ = pid_loss(
        student,
        gaussian,
        80 * Draws(0, 0, 1).normal("z", (2,)),
        nodes[[2]],
        None,
        derivative=OneSided(gaussian.sigma_min, gaussian.sigma_max, 5),
        residual=RESIDUALS["data"],
        distance=kept,
        gradient=GRADIENTS[gradient],
    )
    loss.sum().backward()
    here, partner = (w.item() for w in chord_intercept(nodes[2], nodes[3], gaussian.sigma_max))
    weights = {
        "both": (here, partner),
        "value": (1.0, 0.0),
        "derivative": (here - 1, partner),
    }[gradient]
    size = 2 * residuals[0].mean().item()
    expected = torch.zeros(5, dtype=torch.float64)
    expected[2], expected[3] = size * weights[0], size * weights[1]
    torch.testing.assert_close(student.network.values.grad, expected)


@pytest.mark.parametrize(("gradient", "grows"), [("both", False), ("value", True)])
def test_a_detached_derivative_that_looks_down_diverges(gaussian, gradient, grows):
    """In the published difference the value's own node has a negative weight."""
    nodes = karras_sigmas(5, gaussian.sigma_min, gaussian.sigma_max)
    student = TrajectoryStudent.from_teacher(gaussian, network=Table(nodes))
    z = (80 * Draws(0, 0, 1).normal("z", (2,))).expand(5, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        loss, _ = pid_loss(
            student,
            gaussian,
            z,
            nodes,
            None,
            derivative=OneSided(gaussian.sigma_min, gaussian.sigma_max, 5),
            residual=RESIDUALS["data"],
            distance=l2,
            gradient=GRADIENTS[gradient],
        )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.sum().item())
    assert (losses[-1] > 100 * losses[0]) if grows else (losses[-1] < losses[0])


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_stopping_the_gradient_changes_no_loss(mlp_teacher, residual, parametrisation):
    settings = {"residual": residual, "parametrisation": parametrisation}
    losses = [method(mlp_teacher, gradient=g, **settings).loss(batch()).loss for g in GRADIENTS]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=0, atol=0)


# --- noise levels


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("draw", DRAWS)
def test_weights_are_one_on_average_over_the_draw(mlp_teacher, weight, draw):
    uniform = Draws(0, 0, 200_000).uniform("a")
    settings = PIDSettings(num_nodes=30)
    mean = mean_weight(WEIGHTS[weight], DRAWS[draw], settings, mlp_teacher)
    drawn = WEIGHTS[weight](DRAWS[draw](uniform, settings, mlp_teacher), mlp_teacher.sigma_data)
    assert (drawn / mean).mean().item() == pytest.approx(1, rel=0.02)
    assert drawn.min() > 0
    if weight == "uniform":
        assert mean == 1


def test_weights_lean_to_the_end_that_they_name():
    sigma = torch.tensor([0.01, 0.5, 50.0, 5000.0], dtype=torch.float64)
    low, high = (WEIGHTS[f"{end}-noise"](sigma, 0.5) for end in ("low", "high"))
    torch.testing.assert_close(low + high, torch.ones(4, dtype=torch.float64))
    assert low[1] == 0.5
    assert (low[2] / low[3]).item() == pytest.approx(100, rel=0.01)
    assert (high[1] / high[0]).item() == pytest.approx(50, rel=0.5)


@pytest.mark.parametrize("normalise", [0.0, 1e-3])
def test_a_weight_multiplies_the_loss_of_its_noise_level(mlp_teacher, normalise):
    plain = method(mlp_teacher, normalise=normalise).loss(batch())
    pid = method(mlp_teacher, normalise=normalise, weight="high-noise")
    weighted = pid.loss(batch())
    ratio = (weighted.loss / plain.loss).double()
    expected = plain.sigma / (plain.sigma + mlp_teacher.sigma_data) / pid.mean_weight
    torch.testing.assert_close(ratio, expected, rtol=1e-5, atol=0)
    assert weighted.scalars["residual"] == plain.scalars["residual"]


def test_log_normal_noise_levels_are_edms_cut_to_the_range(mlp_teacher):
    sigma = DRAWS["log-normal"](Draws(0, 0, 20_000).uniform("a"), PIDSettings(), mlp_teacher)
    low, high = ((math.log(end) + 1.2) / 1.2 for end in (0.002, 80.0))
    expected = truncnorm(low, high, loc=-1.2, scale=1.2)
    assert kstest(sigma.log().numpy(), expected.cdf).pvalue > 0.01


@pytest.mark.parametrize("num_nodes", [4, 10, 18, 50, 250, 1000])
def test_the_number_of_nodes_acts_as_published(mlp_teacher, num_nodes):
    """Node i of the rho-7 grid with i + 1, the last with N - 2, and their chord's weights."""
    pid = method(mlp_teacher, derivative="one-sided", draw="nodes", num_nodes=num_nodes)
    asked = []
    original = pid.student.F
    pid.student.F = lambda z, sigma, label: (
        asked.append(sigma.reshape(2, -1)) or original(z, sigma, label)
    )
    with torch.no_grad():
        drawn = pid.loss(batch(num=256)).sigma
    i = torch.arange(num_nodes, dtype=torch.float64) / (num_nodes - 1)
    first, last = 80 ** (1 / 7), 0.002 ** (1 / 7)
    nodes = (first + i * (last - first)) ** 7
    uniform = Draws(0, 0, 256).uniform("train sigma")
    index = (uniform * num_nodes).long()
    partner = torch.where(index < num_nodes - 1, index + 1, num_nodes - 2)
    torch.testing.assert_close(drawn, nodes[index], rtol=1e-12, atol=0)
    torch.testing.assert_close(asked[0][0], nodes[index], rtol=1e-12, atol=0)
    torch.testing.assert_close(asked[0][1], nodes[partner], rtol=1e-12, atol=0)
    if num_nodes <= 18:
        assert len(set(index.tolist())) == num_nodes


# --- how the student begins


def test_random_networks_are_fresh_and_the_seed_decides(tmp_path, mlp_teacher):
    (tmp_path / "teacher").mkdir()
    spec = save_native(tmp_path / "teacher", mlp_teacher)

    def begun(seed, initialisation="random"):
        table = {"name": "pid", "initialisation": initialisation}
        config = parse_config([SMALL, {"teacher": spec, "seed": seed, "method": table}])
        return build_trainer(config, tmp_path / "run").method.student

    first, again, other, copied = begun(0), begun(0), begun(1), begun(0, "copied")
    weights = first.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in again.state_dict().items())
    assert not torch.equal(other.network.input.weight, first.network.input.weight)
    assert not torch.equal(copied.network.input.weight, first.network.input.weight)
    assert torch.equal(copied.network.input.weight, mlp_teacher.network.input.weight)
    assert first.network.config == mlp_teacher.network.config
    assert first.precondition == copied.precondition
    assert not first.network.training
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_a_fresh_network_keeps_tables_that_are_no_weights(mlp_teacher):
    network = mlp_teacher.network.double()
    network.frequencies *= 2
    fresh = fresh_network(network)
    assert fresh.input.weight.dtype == torch.float64
    assert torch.equal(network.frequencies, 2 * fresh.frequencies)  # it follows from the config
    assert not torch.equal(fresh.input.weight, network.input.weight)


def test_a_fresh_network_of_prompts_keeps_the_prompts(tmp_path, mlp_teacher):
    pytest.importorskip("diffusers")
    teacher = load_teacher(SPECS["diffusers text"](tmp_path, mlp_teacher))
    network = teacher.network_to_copy()[0]
    fresh = fresh_network(network)
    assert torch.equal(fresh.prompts, network.prompts)
    assert fresh.prompts.abs().max() > 0
    assert not torch.equal(fresh.unet.conv_in.weight, network.unet.conv_in.weight)


# --- the soft boundary condition


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_penalty_is_added_with_its_weight_and_logged(mlp_teacher, weight):
    settings = {"parametrisation": "soft", "normalise": 0.0}
    pid = method(mlp_teacher, boundary_weight=weight, **settings)
    losses = pid.loss(batch())
    plain = method(mlp_teacher, boundary_weight=0.0, **settings).loss(batch()).loss
    z = (80 * batch().draws.normal("train z", (1, 4, 4))).float()
    penalty = boundary_penalty(pid.student, z, batch().label)
    torch.testing.assert_close(losses.loss, plain + weight * penalty)
    torch.testing.assert_close(losses.scalars["boundary"], penalty.mean().detach())
    assert penalty.min() > 0


def test_a_pinned_student_pays_no_penalty_and_no_evaluation(mlp_teacher):
    pid = method(mlp_teacher, boundary_weight=100.0)
    assert torch.equal(pid.loss(batch()).loss, method(mlp_teacher).loss(batch()).loss)
    assert "boundary" not in pid.loss(batch()).scalars


def test_the_penalty_is_an_evaluation_more(mlp_teacher):
    assert method(mlp_teacher, parametrisation="soft").student_evaluations == 3
    assert method(mlp_teacher, parametrisation="edm").student_evaluations == 2


def test_the_penalty_makes_the_soft_condition_hold(tmp_path):
    """It falls as the run goes on, and with no weight it does not."""
    left = {}
    for weight in (0.0, 30.0):
        table = {"name": "pid", "parametrisation": "soft", "boundary_weight": weight}
        folder = tmp_path / str(weight)
        train(small("pid", method=table, max_train_steps=40, batch_size=16), folder)
        boundary = [line["boundary"] for line in log_lines(folder)]
        left[weight] = boundary[-1] / boundary[0]
        assert read_json(folder / "network.json")["kind"] == "trajectory-soft"
    assert left[30.0] < 0.7
    assert left[30.0] < 0.8 * left[0.0]
    assert isinstance(load_student(tmp_path / "30.0"), SoftTrajectoryStudent)
