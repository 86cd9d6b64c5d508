"""One pass over samples in blocks sees the same as one look at all of them."""

import pytest
import torch
from hypothesis import given as each
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation import sampling, streaming
from pidistill.evaluation.features import features_for
from pidistill.evaluation.sampling import GivenSamples, Sampler, blocks, teacher_samples
from pidistill.evaluation.streaming import as_measured, in_order, look_at
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.images import from_uint8, to_uint8
from pidistill.processes import ALONE, Processes


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 16)


def given(x, **options):
    return GivenSamples(x, torch.device("cpu"), **options)


@each(st.integers(1, 120), st.integers(1, 5))
def test_every_block_is_the_work_of_one_process_and_comes_in_order(num, count):
    """The processes take turns here; the main process passes on what they gather."""
    mailbox = {}

    class Fake(Processes):
        def gather(self, item):
            mailbox.setdefault(self.index, []).append(item)
            return []

    for index in range(count):
        assert list(in_order(num, lambda block: block, Fake(index, count))) == []
    rounds = zip(*(mailbox[index] for index in range(count)), strict=True)
    assert [block for parts in rounds for part in parts for block in part] == blocks(num)


def test_a_pass_sees_what_the_whole_shows(digits, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", 20)
    _, student = digits
    network = features_for((1, 8, 8))
    sampler = Sampler(student, 1, seed=3)
    seen = look_at(sampler, 40, network=network, processes=ALONE)
    whole = to_uint8(student.generate(40, seed=3).x)
    assert (seen.x.int() - whole[:20].int()).abs().max() <= 1  # a tie may fall either way
    features, logits = network(from_uint8(whole))
    torch.testing.assert_close(seen.features.features, features, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen.features.logits, logits, rtol=1e-3, atol=1e-3)
    assert (seen.nfe, seen.errors) == (1, None)
    fewer = look_at(sampler, 32, network=network, processes=ALONE)
    assert torch.equal(fewer.features.features, seen.features.features[:32])


def test_errors_are_those_of_exact_samples(digits):
    teacher, student = digits
    rival = Sampler(student, 1, seed=3)
    seen = look_at(Sampler(teacher, 6, seed=3), 20, rival=rival, processes=ALONE)
    drawn, solved = student.generate(20, seed=3), teacher_samples(teacher, 20, seed=3, steps=6)
    expected = per_sample_rms(drawn.x, solved.x)
    torch.testing.assert_close(seen.errors, expected, rtol=1e-4, atol=1e-6)
    assert seen.nfe == 11
    assert seen.features is None


def test_only_images_are_rounded():
    pixels = as_measured(torch.tensor([-1.0, 0.1, 1.2]).reshape(1, 3, 1, 1))
    assert pixels.flatten().tolist() == [0, 140, 255]
    assert torch.equal(as_measured(pixels), pixels)
    points = torch.tensor([[0.123, 4.5]])
    assert torch.equal(as_measured(points), points)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_counted_and_refused(bad):
    x = torch.zeros(16, 2)
    x[2:5] = bad
    with pytest.raises(PidistillError, match=r"3 of 16 samples .* sample 2"):
        look_at(given(x), 16, processes=ALONE)


def test_latents_are_measured_as_images():
    class Decoder(torch.nn.Module):
        def forward(self, x):
            return x[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)

    latents = torch.rand(20, 4, 4, 4) * 2 - 1
    subject = given(latents, decoder=Decoder())
    seen = look_at(subject, 20, network=features_for((1, 8, 8)), processes=ALONE)
    assert torch.equal(seen.x, to_uint8(Decoder()(latents)))
