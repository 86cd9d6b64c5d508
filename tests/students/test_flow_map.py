"""The flow map: its boundary, its maps, its derivative, its file, and where it learns the time."""

import math

import pytest
import torch
from torch import nn

from pidistill import PidistillError, initial_noise, load_student
from pidistill.model_folder import describe, write_description
from pidistill.networks import build_network
from pidistill.precondition import EDMPrecondition, VPPrecondition
from pidistill.storage import write_tensors
from pidistill.students import FlowMapStudent
from pidistill.students.second_time import noise_embedding
from pidistill.teachers.mixture import gaussian_trajectory


def with_second_time(student):
    """The student, with an embedding of its second time that is not zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in student.second_time.linear1.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return student.requires_grad_(False)


@pytest.fixture
def student(mlp_teacher):
    """A flow map with random weights."""
    return with_second_time(FlowMapStudent.from_teacher(mlp_teacher))


def at(level, num=4):
    return torch.full((num,), level, dtype=torch.float64)


# --- its values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [80.0, 3.0, 0.002])
def test_every_point_is_mapped_to_itself_where_it_starts(student, level, dtype):
    x = (initial_noise(student, 4, seed=0) * level / 80).to(dtype)
    mapped = student.map(x, at(level), at(level), torch.arange(4) % 3)
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped, x, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_path_is_the_map_from_noise_and_the_sample_its_end(student):
    z, label = initial_noise(student, 4, seed=0), torch.arange(4) % 3
    torch.testing.assert_close(student(z, at(80.0), label), z)
    torch.testing.assert_close(
        student(z, at(0.7), label), student.map(z, at(80.0), at(0.7), label), rtol=0, atol=0
    )
    end = student(z, at(student.sigma_min), label)
    torch.testing.assert_close(student.sample(z, label=label).x, end, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_several_steps_are_maps_in_turn_at_equal_angles(student, steps):
    z, label = initial_noise(student, 4, seed=0), torch.arange(4) % 3
    x, nfe = student.sample(z, steps=steps, label=label)
    assert nfe == steps
    angles = [math.atan(level / student.sigma_data) for level in (80.0, 0.002)]
    point = z
    for step in range(steps):
        levels = [
            at(student.sigma_data * math.tan(angles[0] + share * (angles[1] - angles[0])))
            for share in (step / steps, (step + 1) / steps)
        ]
        point = student.map(point, *levels, label)
    torch.testing.assert_close(x, point, rtol=1e-4, atol=1e-5)
    assert student.takes(steps)
    assert not student.takes(0)
    with pytest.raises(PidistillError, match="steps is 0"):
        student.sample(z, steps=0)


@pytest.mark.parametrize("precondition", [EDMPrecondition(), VPPrecondition()])
def test_a_copy_starts_with_the_teachers_answer_where_its_network_says_it(
    mlp_teacher, precondition
):
    """For a teacher of noise, where its network need not be multiplied by more than 2."""
    mlp_teacher.precondition = precondition
    mlp_teacher.sigma_min, mlp_teacher.sigma_max = precondition.sigma_min, precondition.sigma_max
    student = FlowMapStudent.from_teacher(mlp_teacher).double()
    levels = [student.sigma_max] if isinstance(precondition, EDMPrecondition) else []
    for level in [*levels, 0.8, 0.1, 2 * student.sigma_min]:
        x = level * torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        label, theta = torch.arange(4) % 3, torch.atan(at(level) / student.sigma_data)
        mean = student.mean_N(student.to_y(x, theta), theta, theta, label)
        norm = math.sqrt(level**2 + student.sigma_data**2)
        c_skip = (student.sigma_data / norm) ** 2
        denoised = c_skip * x + level * student.sigma_data / norm * mean
        expected = mlp_teacher.double()(x, at(level), label)
        torch.testing.assert_close(denoised, expected, rtol=1e-10, atol=1e-10)


# --- its derivative


@pytest.mark.parametrize("level", [40.0, 3.0, 0.3, 0.004])
def test_the_intercept_is_that_of_a_central_difference(student, level):
    student, label = student.double(), torch.arange(4) % 3
    z = initial_noise(student, 4, seed=0).double()
    upper, lower = (student(z, at(level * share), label) for share in (1 + 1e-4, 1 - 1e-4))
    expected = student(z, at(level), label) - (upper - lower) / 2e-4
    torch.testing.assert_close(
        student.intercept(z, at(level), label), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ["song_unet", "diffusers_unet"])
def test_the_derivative_passes_through_convolutions_and_attention(name):
    if name == "diffusers_unet":
        pytest.importorskip("diffusers")
    network = FOUND[name][0]().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        size = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.data = torch.randn(parameter.shape, generator=generator) / size**0.5
    student = with_second_time(
        FlowMapStudent(network, EDMPrecondition(), sample_shape=(1, 8, 8), source="random weights")
    )
    z, level = initial_noise(student, 2, seed=0), 0.3
    upper, lower = (student(z, at(level * share, 2)) for share in (1.01, 0.99))
    expected = student(z, at(level, 2)) - (upper - lower) / 0.02
    intercept = student.intercept(z, at(level, 2))
    error = (intercept - expected).square().mean() / expected.square().mean()
    assert error.sqrt() < 1e-2


def test_an_untrained_copy_has_no_residual_at_sigma_max(mlp_teacher):
    student = FlowMapStudent.from_teacher(mlp_teacher).requires_grad_(False)
    z, label = initial_noise(student, 4, seed=0), torch.arange(4) % 3
    expected = mlp_teacher(z, at(80.0).float(), label)
    for level, bound in ((80.0, 1e-5), (79.0, 1e-2)):  # a continuous function of the level
        intercept = student.intercept(z, at(level), label)
        assert (intercept - expected).abs().max() < bound


class ExactMap(FlowMapStudent):
    """The exact flow map of a Gaussian, from its closed form."""

    def mean_N(self, y, theta_s, theta, label=None):
        z, sigma = self.to_x(y, theta_s), self.sigma_data * theta.tan()
        end = self.to_y(gaussian_trajectory(self.gaussian, z, sigma), theta)
        return (end - y) / (theta_s - theta)[:, None]


def test_the_exact_map_has_the_teachers_denoiser_as_its_intercept(gaussian, random_network):
    student = ExactMap.from_teacher(gaussian, network=random_network((2,)))
    student.gaussian = gaussian
    z = initial_noise(gaussian, 6, seed=0).double()
    sigma = torch.tensor([60.0, 9.0, 2.0, 0.5, 0.05, 0.002], dtype=torch.float64)
    x = student(z, sigma)
    torch.testing.assert_close(x, gaussian_trajectory(gaussian, z, sigma))
    denoised = gaussian(x, sigma)
    torch.testing.assert_close(student.intercept(z, sigma), denoised, rtol=1e-8, atol=1e-8)


# --- its samples


@pytest.mark.parametrize("refine", [0, 1, 3])
def test_samples_depend_on_seed_and_index_only_refined_ones_too(student, refine):
    options = {"seed": 5, "steps": 2, "refine": refine}
    whole = student.generate(9, **options)
    assert whole.nfe == 2 + refine
    for size in (2, 5):
        part = student.generate(5, first=3, batch_size=size, **options)
        torch.testing.assert_close(part.x, whole.x[3:8], rtol=0, atol=1e-5)
    other = student.generate(9, **{**options, "seed": 6})
    assert not torch.allclose(other.x, whole.x)


def test_a_refinement_adds_noise_and_maps_it_back(student):
    x, label = student.generate(4, seed=0).x, torch.arange(4) % 3
    refined, nfe = student.refine(x, 2, label=label)
    assert nfe == 2
    assert not torch.allclose(refined, x, atol=1e-2)
    assert torch.equal(student.refine(x, 0, label=label).x, x)
    once = student.generate(4, seed=0, refine=1).x
    torch.testing.assert_close(once, student.refine(x, 1, label=label).x, rtol=0, atol=1e-5)


def test_the_levels_of_a_refinement_stay_in_the_students_range(random_network):
    narrow = EDMPrecondition(sigma_min=0.3, sigma_max=0.8)
    student = FlowMapStudent(random_network((2,)), narrow, sample_shape=(2,), source="narrow")
    with torch.no_grad():
        assert student.refine(torch.zeros(3, 2), 3).x.isfinite().all()


def test_students_that_cannot_refine_say_so(mlp_student, student):
    with pytest.raises(PidistillError, match="refine is 2, but a TrajectoryStudent does not"):
        mlp_student.generate(2, seed=0, refine=2)
    with pytest.raises(PidistillError, match="refine is -1"):
        student.generate(2, seed=0, refine=-1)
    assert mlp_student.generate(2, seed=0, refine=0).nfe == 1


# --- its file


def saved(folder, student):
    write_description(folder, student, 0)
    write_tensors(folder / "student.safetensors", dict(student.state_dict()))
    return folder


def test_a_student_comes_back_as_it_was(tmp_path, student):
    again = load_student(saved(tmp_path, student))
    assert type(again) is FlowMapStudent
    assert describe(again) == describe(student)
    options = {"seed": 0, "steps": 2, "refine": 1}
    assert torch.equal(again.generate(4, **options).x, student.generate(4, **options).x)


class Further(nn.Module):
    """A network that nobody registered; the noise level is one more channel of its input."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, u, c_noise, label=None):
        return self.outer(torch.tanh(self.inner(torch.cat([u, c_noise[:, None]], dim=1))))


def test_one_with_an_unregistered_network_comes_back_through_one_that_is_passed(tmp_path):
    student = FlowMapStudent(Further(), EDMPrecondition(), sample_shape=(2,), source="a notebook")
    saved(tmp_path, with_second_time(student))
    with pytest.raises(PidistillError, match=r"Further.*network="):
        load_student(tmp_path)
    again = load_student(tmp_path, network=Further())
    assert torch.equal(again.generate(4, seed=0).x, student.generate(4, seed=0).x)


# --- where a network embeds its noise level


class Transformer(nn.Module):
    """As in a diffusion transformer, patches are embedded before the noise level."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        self.time = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16))
        self.labels = nn.Embedding(3, 16)
        self.modulation = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.mix = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.last = nn.Linear(8, 4)

    def forward(self, u, c_noise, label=None):
        h = self.patches(u).flatten(2).mT
        embedding = self.time(c_noise[:, None] * torch.arange(1.0, 5.0)) + self.labels(label)
        for modulation, mix in zip(self.modulation, self.mix, strict=True):
            scale, shift = modulation(embedding)[:, None].chunk(2, dim=2)
            h = h + mix(h * (1 + scale) + shift)
        return nn.functional.fold(self.last(h).mT, u.shape[2:], 2, stride=2)


class TwoUses(nn.Module):
    """The embedding of the noise level is used twice, by layers of their own."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.second = nn.Linear(1, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, u, c_noise, label=None):
        embedding = self.embedding(c_noise[:, None])
        return (u + self.first(embedding)) * self.second(embedding)


SONG = {
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
UNET2D = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
FOUND = {
    "mlp": (lambda: build_network("mlp", {"sample_shape": [1, 8, 8]}), "noise1", 128),
    "song_unet": (lambda: build_network("song_unet", SONG), "map_layer1", 32),
    "diffusers_unet": (
        lambda: build_network("diffusers_unet", UNET2D),
        "unet.time_embedding",
        32,
    ),
    "transformer": (Transformer, "time", 16),
}


@pytest.mark.parametrize(("build", "layer", "width"), FOUND.values(), ids=FOUND)
def test_the_layer_is_found(build, layer, width):
    if layer.startswith("unet"):
        pytest.importorskip("diffusers")
    assert noise_embedding(build(), (1, 8, 8), 3) == (layer, width)


def test_where_there_is_no_such_layer_it_is_the_input():
    assert noise_embedding(Further(), (2,), 0) == ("", 2)
    assert noise_embedding(TwoUses(), (2,), 0) == ("embedding", 6)


def test_the_search_leaves_nothing_behind():
    network = Transformer()
    noise_embedding(network, (1, 8, 8), 3)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
