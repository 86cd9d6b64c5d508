"""What most tests share: one thread, hypothesis without a clock, and small models."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import signal
import threading

import hypothesis
import pytest
import torch

from pidistill import load_teacher
from pidistill.denoiser import PreconditionedDenoiser
from pidistill.networks.mlp import MLP
from pidistill.precondition import EDMPrecondition
from pidistill.students.trajectory import TrajectoryStudent

if threading.current_thread() is threading.main_thread():
    # A shell lets its background jobs ignore Ctrl-C; tests of interruptions need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # small tensors gain nothing from more, and the machine is shared

hypothesis.settings.register_profile("pidistill", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("pidistill")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_their_own(tmp_path_factory):
    """Statistics that tests compute stay out of the user's cache; started processes too."""
    os.environ["PIDISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def random_mlp(sample_shape, num_classes=0, *, width=32, num_blocks=2, seed=0):
    """An MLP that is not zero: the layers that training starts at zero are drawn too."""
    generator = torch.Generator().manual_seed(seed)
    network = MLP(sample_shape, num_classes=num_classes, width=width, num_blocks=num_blocks)
    for parameter in network.parameters():
        size = parameter.shape[-1] if parameter.ndim > 1 else 25
        parameter.data = torch.randn(parameter.shape, generator=generator) / size**0.5
    return network


@pytest.fixture(scope="session")
def random_network():
    """`random_mlp`, for tests that are not in this folder."""
    return random_mlp


@pytest.fixture
def mlp_teacher():
    """A labelled denoiser of 1x4x4 images, an MLP with random weights."""
    return PreconditionedDenoiser(
        random_mlp((1, 4, 4), 3),
        EDMPrecondition(),
        sample_shape=(1, 4, 4),
        num_classes=3,
        source="random weights",
    )


@pytest.fixture
def mlp_student(mlp_teacher):
    """A student of `mlp_teacher` with weights of its own."""
    return TrajectoryStudent.from_teacher(mlp_teacher, network=random_mlp((1, 4, 4), 3, seed=1))


@pytest.fixture
def gaussian():
    """The anisotropic Gaussian in the plane, whose trajectories are known in closed form."""
    return load_teacher("mixture:gaussian")


class GaussianTrajectory(torch.nn.Module):
    """The raw network F of the exact trajectories of a Gaussian, in closed form.

    Along a principal axis of variance v, with S for sigma_max and g for the growth
    sqrt((v + sigma^2) / (v + S^2)), the trajectory m + g (z - m) solved for F gives
    F = A z + B m with A = v (S + sigma) / (S (v + S^2) (g + sigma/S)) and
    B = S (S + sigma) / ((v + S^2) (1 + g)), where nothing cancels, not even at S.
    """

    def __init__(self, gaussian):
        super().__init__()
        self.gaussian = gaussian
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, u, c_noise, label=None):
        gaussian, S = self.gaussian, self.gaussian.sigma_max
        z = u * (S**2 + gaussian.sigma_data**2) ** 0.5
        sigma = (4 * c_noise).exp()[:, None]
        v, basis = gaussian.variances[0], gaussian.basis[0]
        g = ((v + sigma**2) / (v + S**2)).sqrt()
        A = v * (S + sigma) / (S * (v + S**2) * (g + sigma / S))
        B = S * (S + sigma) / ((v + S**2) * (1 + g))
        return self.scale * ((A * (z @ basis) + B * (gaussian.means[0] @ basis)) @ basis.T)


@pytest.fixture
def gaussian_student(gaussian):
    """A student that is the exact solution: `x` is `gaussian_trajectory`."""
    return TrajectoryStudent.from_teacher(gaussian, network=GaussianTrajectory(gaussian))


@pytest.fixture
def interior_sigmas(gaussian):
    """Noise levels from one end of the range to the other, dense at both ends."""
    tau = torch.linspace(-9, 9, 13, dtype=torch.float64)
    return gaussian.sigma_max * torch.sigmoid(tau)
