"""Shapes and dtypes of the public functions, stated as annotations and checked at run time.

Every function below repeats a signature with its shapes (jaxtyping) and calls the real one;
beartype checks arguments and results, and that an axis has one size throughout the call.
"""

import itertools

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Float32, Float64, Int64, TypeCheckError, UInt8, jaxtyped
from torch import Tensor

from pidistill import images, initial_noise, solve
from pidistill.denoiser import PreconditionedDenoiser, over_sample
from pidistill.derivative import Central, ForwardMode, OneSided
from pidistill.distance import DISTANCES
from pidistill.evaluation.frechet import statistics
from pidistill.methods.pid import pid_loss
from pidistill.networks.mlp import MLP
from pidistill.noise import Draws
from pidistill.precondition import EDMPrecondition
from pidistill.residual import RESIDUALS
from pidistill.students import TrajectoryStudent

checked = jaxtyped(typechecker=beartype)

Samples = Float[Tensor, "b *shape"]
Samples32 = Float32[Tensor, "b *shape"]
NumSamples32 = Float32[Tensor, "{num} *shape"]
Values32 = Float32[Tensor, "b"]
Values64 = Float64[Tensor, "b"]
Labels = Int64[Tensor, "b"]
Levels = Float64[Tensor, "b"]
ManyLevels = Float64[Tensor, "m b"]
ManySamples32 = Float32[Tensor, "m b *shape"]
Features32 = Float32[Tensor, "n d"]
Mean = Float64[Tensor, "d"]
Covariance = Float64[Tensor, "d d"]
DrawnSamples = Float64[Tensor, "{draws.num} *shape"]
DrawnNumbers = Float64[Tensor, "{draws.num}"]
DrawnIntegers = Int64[Tensor, "{draws.num}"]
AnyFloats = Float[Tensor, "*shape"]
EightBits = UInt8[Tensor, "*shape"]

SCHEMES = [OneSided(0.002, 80.0, 20), Central(80.0), ForwardMode()]


@pytest.fixture(params=[(2,), (5,), (3, 4, 4), (1, 8, 6)], ids=str)
def teacher(request):
    network = MLP(request.param, num_classes=3, width=8, num_blocks=1)
    return PreconditionedDenoiser(
        network, EDMPrecondition(), sample_shape=request.param, num_classes=3, source="a test"
    )


@pytest.fixture
def student(teacher):
    return TrajectoryStudent.from_teacher(teacher)


@pytest.fixture(params=[1, 4])
def arguments(request, teacher):
    """A batch of starting noise, noise levels and labels."""
    num = request.param
    sigma = torch.linspace(1, 2, num, dtype=torch.float64)
    return initial_noise(teacher, num, seed=0), sigma, torch.arange(num) % 3


def test_a_wrong_shape_would_be_noticed():
    @checked
    def wrong(features: Features32) -> Mean:
        return features[:, 0].double()

    with pytest.raises(TypeCheckError):
        wrong(torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 4)])
def test_draws(shape):
    @checked
    def normal(draws: Draws) -> DrawnSamples:
        return draws.normal("a", shape)

    @checked
    def numbers(draws: Draws) -> tuple[DrawnNumbers, DrawnIntegers]:
        return draws.uniform("a"), draws.integers("a", 7)

    for num in (1, 4):
        assert normal(Draws(0, 3, num)).shape[1:] == shape
        numbers(Draws(0, 3, num))


def test_models(teacher, student, arguments):
    @checked
    def call(
        model: torch.nn.Module, x: Samples32, sigma: Levels, label: Labels | None
    ) -> Samples32:
        return model(x, sigma, label)

    @checked
    def solved(z: Samples, label: Labels) -> Samples:
        return solve(teacher, z, steps=3, label=label).x

    @checked
    def generated(num: int, z: Samples) -> NumSamples32:
        return student.generate(num, seed=0).x

    z, sigma, label = arguments
    for model in (teacher, student):
        call(model, z, sigma, label)
        call(model, z, sigma, None)
    for dtype in (torch.float32, torch.float64):
        assert solved(z.to(dtype), label).dtype == dtype
    generated(len(z) + 3, z)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses(teacher, student, arguments, scheme):
    @checked
    def loss(z: Samples32, sigma: Levels, label: Labels) -> tuple[Values32, Values64]:
        return pid_loss(student, teacher, z, sigma, label, derivative=scheme, **parts)

    for form, distance in itertools.product(RESIDUALS, ["l2", "l1", "pseudo-huber"]):
        parts = {"residual": RESIDUALS[form], "distance": DISTANCES[distance]}
        loss(*arguments)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_points(scheme, student, arguments):
    @checked
    def point(z: Samples32, sigma: Levels) -> tuple[Values64, Samples32, Samples32]:
        return tuple(scheme(lambda nodes: raw(z, nodes), student.share, sigma))

    @checked
    def raw(z: Samples32, nodes: ManyLevels) -> ManySamples32:
        return torch.stack([over_sample(sigma, z) * z for sigma in nodes])

    @checked
    def blend(z: Samples32, sigma: Levels) -> Samples32:
        return student.blend(z, sigma, z)

    z, sigma, _ = arguments
    point(z, sigma)
    blend(z, sigma)


def test_statistics_and_pictures():
    @checked
    def fit(features: Features32) -> tuple[Mean, Covariance]:
        return tuple(statistics(features))

    @checked
    def levels(x: AnyFloats) -> EightBits:
        return images.to_uint8(x)

    for size in (1, 3):
        fit(torch.randn(10, size))
    for dtype in (torch.float16, torch.float32, torch.float64):
        levels(torch.zeros(2, 3, 4, dtype=dtype))
