"""The numbers that the methods' original programs computed, in float64.

The cases are those of every `losses*.safetensors` in the folder that the environment variable
PIDISTILL_REFERENCE names; by default, the project's own copy. `CHECKS` says how a kind of case is
checked, so that a new method adds one entry.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import conv2d

from pidistill import solve
from pidistill.denoiser import PreconditionedDenoiser, over_sample
from pidistill.derivative import OneSided
from pidistill.distance import DISTANCES
from pidistill.methods.consistency import consistency_loss
from pidistill.methods.pid import pid_loss
from pidistill.methods.progressive import progressive_loss
from pidistill.ode import SOLVERS
from pidistill.precondition import EDMPrecondition
from pidistill.residual import data_form
from pidistill.schedule import karras_sigmas
from pidistill.students.consistency import ConsistencyStudent
from pidistill.students.euler import EulerStudent
from pidistill.students.trajectory import TrajectoryStudent

FOLDER = Path(os.environ.get("PIDISTILL_REFERENCE") or Path(__file__).parent / "data")
PRECONDITION = EDMPrecondition(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
NETWORKS = ("student", "teacher", "target")
TOLERANCE = 1e-10


class ToyNetwork(nn.Module):
    """The raw network of all cases: two convolutions, the noise conditioning between them."""

    def __init__(self, parameters):
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, u, c_noise, label=None):
        c = c_noise[:, None, None, None]
        e, f = self.e[:, None, None], self.f[:, None, None]
        h = torch.tanh(conv2d(u, self.w1, self.b1, padding=1) + e * c.sin() + f * c)
        return conv2d(h, self.w2, self.b2, padding=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of a reference file."""

    file: Path
    name: str

    @property
    def kind(self):
        """The method: the letters that the name begins with."""
        return re.match(r"[a-z]*", self.name).group()

    @property
    def num_nodes(self):
        """The number that the name ends with."""
        return int(re.search(r"\d+$", self.name).group())

    @property
    def distance(self):
        """The distance that the name holds between the method and the number of nodes."""
        name = re.fullmatch(r"[a-z]+_(.+)_N\d+", self.name).group(1)
        return DISTANCES[name.replace("_", "-")]

    def array(self, name):
        with safe_open(self.file, "pt") as file:
            return file.get_tensor(f"{self.name}.{name}")

    def network(self, which):
        with safe_open(self.file, "pt") as file:
            names = [key for key in file.keys() if key.startswith(f"{which}.")]  # noqa: SIM118
            return ToyNetwork({key.partition(".")[2]: file.get_tensor(key) for key in names})

    def gradient_norms(self):
        with safe_open(self.file, "pt") as file:
            return json.loads(file.metadata()[f"{self.name}.grads"])

    def teacher(self, sample_shape):
        return PreconditionedDenoiser(
            self.network("teacher"),
            PRECONDITION,
            sample_shape=tuple(sample_shape),
            source=f"{self.file.name}",
        )


def cases():
    """Every case of every file, in order."""
    found = []
    for path in sorted(FOLDER.glob("losses*.safetensors")):
        with safe_open(path, "pt") as file:
            names = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118
        found += [Case(path, name) for name in sorted(names.difference(NETWORKS))]
    return found


def assert_same(actual, expected):
    """Every element agrees, relative to itself or, where it is small, to the whole."""
    assert actual.dtype == torch.float64
    size = expected.square().mean().sqrt().item()
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * size)


def assert_same_gradients(student, loss, expected):
    """The gradient of the mean loss has the expected norm for every parameter."""
    loss.mean().backward()
    norms = {name: p.grad.norm().item() for name, p in student.network.named_parameters()}
    assert norms == pytest.approx(expected, rel=TOLERANCE, abs=0)


def check_pid(case):
    """Losses, gradients and one-step samples of the PID authors' program."""
    z = case.array("z")
    teacher = case.teacher(z.shape[1:])
    student = TrajectoryStudent.from_teacher(teacher, network=case.network("student"))
    nodes = karras_sigmas(case.num_nodes, teacher.sigma_min, teacher.sigma_max)
    loss, sigma = pid_loss(
        student,
        teacher,
        z,
        nodes[case.array("index")],
        None,
        derivative=OneSided(teacher.sigma_min, teacher.sigma_max, case.num_nodes),
        residual=data_form,
        distance=case.distance,
    )
    assert torch.equal(sigma, nodes[case.array("index")])
    torch.testing.assert_close(loss, case.array("loss"), rtol=TOLERANCE, atol=0)
    assert_same_gradients(student, loss, case.gradient_norms())
    assert_same(student.sample(z).x, case.array("sample"))


def check_heun(case):
    """Samples of the teacher by Heun's method on the rho-7 grid, with a last step to zero."""
    z = case.array("z")
    solution = solve(case.teacher(z.shape[1:]), z, steps=case.num_nodes, solver="heun")
    assert solution.nfe == 2 * case.num_nodes - 1
    assert_same(solution.x, case.array("sample"))


def check_consistency(case):
    """Losses, gradients and one-step samples of the consistency-models program."""
    x0, noise, index = case.array("x0"), case.array("noise"), case.array("index")
    teacher = case.teacher(x0.shape[1:])
    student, target = (
        ConsistencyStudent.from_teacher(teacher, network=case.network(which))
        for which in ("student", "target")
    )
    nodes = karras_sigmas(case.num_nodes, teacher.sigma_min, teacher.sigma_max)
    loss = consistency_loss(
        student,
        target,
        teacher,
        x0 + over_sample(nodes[index], x0) * noise,
        nodes[index],
        nodes[index + 1],
        None,
        solver=SOLVERS["heun"],
        distance=case.distance,
    )
    torch.testing.assert_close(loss, case.array("loss"), rtol=TOLERANCE, atol=0)
    assert_same_gradients(student, loss, case.gradient_norms())
    assert all(parameter.grad is None for parameter in target.parameters())
    assert_same(student.sample(teacher.sigma_max * noise).x, case.array("sample"))


def check_progressive(case):
    """Losses and gradients of progressive distillation in the consistency-models program."""
    x0 = case.array("x0")
    teacher = case.teacher(x0.shape[1:])
    student = EulerStudent.from_teacher(
        teacher, network=case.network("student"), num_steps=case.num_nodes
    )
    loss, _ = progressive_loss(
        student,
        teacher,
        x0,
        case.array("noise"),
        case.array("index"),
        None,
        distance=case.distance,
    )
    torch.testing.assert_close(loss, case.array("loss"), rtol=TOLERANCE, atol=0)
    assert_same_gradients(student, loss, case.gradient_norms())


CHECKS = {
    "pid": check_pid,
    "heun": check_heun,
    "cd": check_consistency,
    "pd": check_progressive,
}


def check(case):
    if case.kind not in CHECKS:
        pytest.fail(f"{case.file.name} holds the case {case.name} of an unknown kind")
    CHECKS[case.kind](case)


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c.file.stem}-{c.name}") for c in cases()])
def test_reference_case(case):
    check(case)


def test_there_are_reference_cases():
    assert cases(), f"{FOLDER} holds no case in losses*.safetensors"


@pytest.mark.parametrize("name", ["boot_l2_N250", "pidx_l2_N250", "nothing"])
def test_a_case_of_an_unknown_kind_fails(name):
    with pytest.raises(pytest.fail.Exception, match=f"{name} of an unknown kind"):
        check(Case(FOLDER / "losses.safetensors", name))
