"""What the rivals end with on a Gaussian is known, and training reaches it.

The student is an affine map for every noise level, so that the answer is one that it can give, and
the loss there is zero for every sample: nothing but training stands between them.
"""

import pytest
import torch

from pidistill import initial_noise, load_teacher, solve
from pidistill.data import Dataset
from pidistill.schedule import karras_sigmas

from affine_network import AffineOnLevels
from method_runs import make_trainer, small

NODES = 9
STEPS = 700


def trained(name, folder, **settings):
    """The student of the method `name` on the Gaussian after training, and the teacher."""
    gaussian = load_teacher("mixture:gaussian")
    sigmas = karras_sigmas(NODES, gaussian.sigma_min, gaussian.sigma_max)
    network = AffineOnLevels((sigmas.log() / 4).tolist(), size=2)
    config = small(
        name,
        "mixture:gaussian",
        max_train_steps=STEPS,
        batch_size=64,
        learning_rate=0.05,
        lr_end=0.0,
        method={"name": name, **settings},
    )
    images = gaussian.draw(4000, torch.Generator().manual_seed(0))
    data = Dataset(images, None, 0, "a Gaussian") if name != "boot" else None
    trainer = make_trainer(config, folder, network=network, data=data)
    for _ in range(config.max_train_steps):
        trainer.train_step()
    assert not list(folder.iterdir())
    return trainer.method.student, gaussian, sigmas


def solution(gaussian, sigmas, solver):
    z = initial_noise(gaussian, 200, seed=1).double()
    return z, solve(gaussian, z, sigmas=sigmas, solver=solver).x


@torch.no_grad()
def assert_it_samples(student, z, expected):
    """To a thousandth of a sample's size."""
    gap = student.sample(z).x - expected
    assert gap.square().mean().sqrt() < 1e-3 * expected.std()


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_consistency_reaches_the_end_of_the_solvers_path(tmp_path, solver):
    student, gaussian, sigmas = trained(
        "consistency", tmp_path, num_nodes=NODES, mu=0.0, solver=solver
    )
    z, expected = solution(gaussian, sigmas, solver)
    assert_it_samples(student, z, expected)


def test_progressive_reaches_eulers_method_of_its_first_teacher_in_one_step(tmp_path):
    student, gaussian, sigmas = trained("progressive", tmp_path, start_steps=NODES - 1)
    assert student.num_steps == 1
    z, expected = solution(gaussian, sigmas, "euler")
    assert_it_samples(student, z, expected)


def test_boot_reaches_eulers_method_and_its_boundary(tmp_path):
    student, gaussian, sigmas = trained("boot", tmp_path, num_nodes=NODES)
    z, expected = solution(gaussian, sigmas, "euler")
    assert_it_samples(student, z, expected)
    far = sigmas[:1].expand(len(z))
    with torch.no_grad():
        assert (student.F(z, far) - gaussian(z, far)).abs().max() < 1e-3 * expected.std()


def test_knowledge_reaches_the_teachers_solution(tmp_path):
    gaussian = load_teacher("mixture:gaussian")
    network = AffineOnLevels([float(torch.tensor(gaussian.sigma_max).log() / 4)], size=2)
    config = small(
        "knowledge", "mixture:gaussian", max_train_steps=STEPS, batch_size=64, learning_rate=0.05,
        lr_end=0.0, method={"name": "knowledge", "num_pairs": 400, "steps": NODES},
    )  # fmt: skip
    trainer = make_trainer(config, tmp_path, network=network)
    list(trainer.prepare())
    for _ in range(config.max_train_steps):
        trainer.train_step()
    z = initial_noise(gaussian, 200, seed=1).double()
    assert_it_samples(trainer.method.student, z, solve(gaussian, z, steps=NODES).x)
