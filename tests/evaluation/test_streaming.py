"""One pass over samples: what it sees is what the whole shows."""

import time

import pytest
import torch

from pidistill import load_teacher
from pidistill.evaluation import blocks, streaming
from pidistill.evaluation.blocks import Blocks
from pidistill.evaluation.features import FeatureBatch, FeatureNetwork, features_for
from pidistill.evaluation.sampling import GivenSamples, Sampler, teacher_samples
from pidistill.evaluation.streaming import look_at
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.images import from_uint8, to_uint8
from pidistill.processes import ALONE
from pidistill.students.trajectory import TrajectoryStudent


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)


@pytest.fixture(scope="module")
def digits():
    """The digits teacher and a student that starts as its copy."""
    teacher = load_teacher("digits")
    return teacher, TrajectoryStudent.from_teacher(teacher, anchored=True)


def given(x):
    return Blocks(GivenSamples(x, "rival", torch.device("cpu")), 0)


def test_a_pass_sees_what_the_whole_shows(digits, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", 20)
    _, student = digits
    network = features_for((1, 8, 8))
    seen = look_at(Blocks(Sampler(student, 1), 3), 40, network=network, processes=ALONE)
    whole = to_uint8(student.generate(40, seed=3).x)
    assert (seen.x.int() - whole[:20].int()).abs().max() <= 1  # a tie may fall either way
    features, logits = network(from_uint8(whole))
    torch.testing.assert_close(seen.features.features, features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen.features.logits, logits, rtol=1e-3, atol=1e-3)
    assert (seen.nfe, seen.duplicates, seen.errors) == (1, 0, None)
    fewer = look_at(Blocks(Sampler(student, 1), 3), 32, network=network, processes=ALONE)
    assert torch.equal(fewer.features.features, seen.features.features[:32])


def test_errors_are_those_of_exact_samples(digits):
    teacher, student = digits
    rival = Blocks(Sampler(student, 1), 3)
    seen = look_at(Blocks(Sampler(teacher, 6), 3), 20, rival=rival, processes=ALONE)
    drawn, solved = student.generate(20, seed=3), teacher_samples(teacher, 20, seed=3, steps=6)
    expected = per_sample_rms(drawn.x, solved.x)
    torch.testing.assert_close(seen.errors, expected, rtol=1e-4, atol=1e-6)
    assert seen.nfe == 11
    assert seen.features is None


def test_anybodys_samples_are_measured_by_the_same_code(digits):
    teacher, _ = digits
    network = features_for((1, 8, 8))
    own = look_at(Blocks(Sampler(teacher, 4), 0), 24, network=network, processes=ALONE)
    x = teacher_samples(teacher, 24, seed=0, steps=4, batch_size=16).x
    for samples in (x, to_uint8(x)):
        seen = look_at(given(samples), 24, network=network, processes=ALONE)
        torch.testing.assert_close(seen.features.features, own.features.features)
        assert seen.nfe == 0
    assert own.nfe == 7


def test_a_student_that_always_draws_the_same_is_found_out():
    x = torch.zeros(40, 1, 8, 8)
    x[0] = 1
    assert look_at(given(x), 40, processes=ALONE).duplicates == 38


def test_latents_are_measured_as_images():
    class Decoder(torch.nn.Module):
        def forward(self, x):
            return x[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)

    latents = torch.rand(20, 4, 4, 4) * 2 - 1
    subject = GivenSamples(latents, "latents", torch.device("cpu"), decoder=Decoder())
    seen = look_at(Blocks(subject, 0), 20, network=features_for((1, 8, 8)), processes=ALONE)
    assert torch.equal(seen.x, to_uint8(Decoder()(latents)))


@pytest.mark.slow
def test_the_pass_costs_little_beside_the_feature_network():
    """In processor time, for a network that is light beside Inception: 1 ms a sample."""

    class Convolutions(FeatureNetwork):
        name, num_features = "convolutions", 256

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 64, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(64, 128, 3, stride=2, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(128, 256, 3, stride=2, padding=1),
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
            )

        def extract(self, x):
            return FeatureBatch(self.layers(x), None)

    network = Convolutions().eval().requires_grad_(False)
    x = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)

    def seconds(work):
        times = []
        for _ in range(3):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return min(times)

    def network_alone():
        for part in x.split(streaming.FEATURES_AT_ONCE):
            network.extract(from_uint8(part))

    alone = seconds(network_alone)
    whole = seconds(lambda: look_at(given(x), len(x), network=network, processes=ALONE))
    assert whole < 1.1 * alone
