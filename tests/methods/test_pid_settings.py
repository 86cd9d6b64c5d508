"""PID's alternative settings: each trains and has its documented effect."""

import re
import typing
from pathlib import Path
from typing import Literal

import pytest
import torch

from pidistill import PidistillError, load_student, load_teacher
from pidistill.files import read_json
from pidistill.methods.pid import PIDSettings, boundary_penalty
from pidistill.networks import fresh_network
from pidistill.noise import Draws
from pidistill.residual import RESIDUALS
from pidistill.settings import parse_toml_value
from pidistill.students import TRAJECTORIES, SoftBoundaryStudent
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config

from every_source import SPECS
from every_source import native as save_native
from method_runs import batch_of, build, log_lines, small, train

ABLATIONS = {
    "parametrisation": ["linear", "soft"],
    "initialisation": ["random"],
    "anchored": [False],
    "draw": ["nodes", "rho", "log-normal"],
    "derivative": ["one-sided", "jvp"],
    "residual": ["velocity"],
}
PAGE = Path(__file__).parents[2] / "docs" / "mathematics.md"
EVERY_SETTING = [(key, value) for key, values in ABLATIONS.items() for value in values]


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


@pytest.fixture
def native(tmp_path, mlp_teacher):
    """The spec of `mlp_teacher`."""
    (tmp_path / "teacher").mkdir()
    return save_native(tmp_path / "teacher", mlp_teacher)


@pytest.mark.parametrize(("key", "value"), EVERY_SETTING)
def test_every_setting_trains_and_its_student_is_loaded(tmp_path, native, key, value):
    table = {key: value, "num_nodes": 20}
    pid = train(small("pid", native, max_train_steps=1, method=table), tmp_path / "run").method
    student = load_student(tmp_path / "run", ema=0)
    assert type(student) is type(pid.student)
    z = 80 * Draws(1, 0, 3).normal("z", (1, 4, 4)).float()
    assert torch.equal(student.sample(z).x, pid.student.sample(z).x)

    batch = batch_of(pid.student)
    optimizer = torch.optim.Adam(pid.student.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):  # of one batch, so that a lower loss is no matter of luck
        losses.append(pid.loss(batch).loss.mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("parametrisation", TRAJECTORIES)
@pytest.mark.parametrize("derivative", ["one-sided", "central", "jvp"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_parametrisations_go_with_every_derivative_and_residual(
    mlp_teacher, parametrisation, derivative, residual
):
    """Losses and gradients are finite, at sigma_max too, where one node in N is."""
    pid = build(
        "pid",
        mlp_teacher,
        parametrisation=parametrisation,
        derivative=derivative,
        residual=residual,
        draw="nodes",
        num_nodes=4,
    )
    losses = pid.loss(batch_of(mlp_teacher, 16))
    assert losses.sigma.max() > 70
    assert losses.loss.isfinite().all()
    losses.loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in pid.student.parameters() if p.grad is not None)


# --- settings of version 0.1

DEFAULTS_OF_01 = {"name": "pid", "weight": "uniform", "gradient": "both"}


def test_removed_settings_are_dropped_at_their_old_defaults():
    config = parse_config([{"teacher": "digits", "method": DEFAULTS_OF_01}])
    assert config.method == PIDSettings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", "low-noise"),
        ("gradient", "value"),
        ("derivative", "log-odds"),
        ("parametrisation", "log-odds"),
    ],
)
def test_removed_settings_are_refused_by_name_at_any_other_value(key, value):
    table = {**DEFAULTS_OF_01, key: value}
    with pytest.raises(PidistillError, match=f"{key}.*{value}|{value}.*{key}"):
        parse_config([{"teacher": "digits", "method": table}])


@pytest.mark.parametrize("num_nodes", [4, 10, 18, 50, 250, 1000])
def test_the_number_of_nodes_acts_as_published(mlp_teacher, num_nodes):
    """Node i of the rho-7 grid with i + 1, the last with N - 2, and their chord's weights."""
    pid = build("pid", mlp_teacher, derivative="one-sided", draw="nodes", num_nodes=num_nodes)
    asked = []
    original = pid.student.F
    pid.student.F = lambda z, sigma, label: (
        asked.append(sigma.reshape(2, -1)) or original(z, sigma, label)
    )
    with torch.no_grad():
        drawn = pid.loss(batch_of(mlp_teacher, 256)).sigma
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


def test_random_networks_are_fresh_and_the_seed_decides(tmp_path, native, mlp_teacher):
    def begun(seed, initialisation="random"):
        config = small("pid", native, seed=seed, method={"initialisation": initialisation})
        return build_trainer(config, tmp_path / "run").method.student

    first, again, other, copied = begun(0), begun(0), begun(1), begun(0, "copied")
    for name, weight in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    weights = [s.network.input.weight for s in (first, other, copied, mlp_teacher)]
    assert not torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[2], weights[0])
    assert torch.equal(weights[2], weights[3])
    assert first.network.config == mlp_teacher.network.config
    assert first.precondition == copied.precondition
    assert not first.network.training
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_a_fresh_network_keeps_tables_that_are_not_weights(mlp_teacher):
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
    pid = build("pid", mlp_teacher, boundary_weight=weight, **settings)
    batch = batch_of(mlp_teacher)
    losses = pid.loss(batch)
    plain = build("pid", mlp_teacher, boundary_weight=0.0, **settings).loss(batch).loss
    z = (80 * batch.draws.normal("train z", (1, 4, 4))).float()
    penalty = boundary_penalty(pid.student, z, batch.label)
    torch.testing.assert_close(losses.loss, plain + weight * penalty)
    torch.testing.assert_close(losses.scalars["boundary"], penalty.mean().detach())
    assert penalty.min() > 0


def test_a_pinned_student_pays_no_penalty_and_no_evaluation(mlp_teacher):
    pid = build("pid", mlp_teacher, boundary_weight=100.0)
    losses = pid.loss(batch_of(mlp_teacher))
    assert torch.equal(losses.loss, build("pid", mlp_teacher).loss(batch_of(mlp_teacher)).loss)
    assert "boundary" not in losses.scalars
    soft = build("pid", mlp_teacher, parametrisation="soft")
    assert (pid.student_evaluations, soft.student_evaluations) == (2, 3)


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
    assert isinstance(load_student(tmp_path / "30.0"), SoftBoundaryStudent)
