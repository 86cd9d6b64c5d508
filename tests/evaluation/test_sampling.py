"""Subjects draw samples by their index; labels in the proportions of a reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise, load_teacher, solve
from pidistill.evaluation.blocks import Blocks
from pidistill.evaluation.sampling import (
    DECODED_AT_ONCE,
    GivenSamples,
    ProportionalLabels,
    Sampler,
    decoded,
    open_model,
    teacher_samples,
)


def draw(subject, first, count, seed=4):
    return subject.draw(seed, first, count, lambda done: None)


@pytest.mark.parametrize("labels", [None, ProportionalLabels((1, 5, 2))])
def test_parts_of_a_students_samples_are_those_that_it_generates(mlp_student, labels):
    sampler = Sampler(mlp_student, steps=1, labels=labels)
    parts = [draw(sampler, first, 5).x for first in (0, 5, 10)]
    label = None if labels is None else labels(0, 15)
    whole = mlp_student.generate(15, seed=4, label=label)
    torch.testing.assert_close(torch.cat(parts), whole.x, rtol=0, atol=1e-4)


def test_a_teachers_samples_are_its_solution(gaussian, mlp_teacher):
    sampler = Sampler(gaussian, steps=6)
    parts = [draw(sampler, first, 10) for first in (0, 10)]
    z = initial_noise(gaussian, 20, seed=4)
    torch.testing.assert_close(torch.cat([part.x for part in parts]), solve(gaussian, z, steps=6).x)
    assert {part.nfe for part in parts} == {11}
    whole = teacher_samples(mlp_teacher, 10, seed=1, steps=3)
    part = teacher_samples(mlp_teacher, 4, seed=1, steps=3, first=5)
    torch.testing.assert_close(part.x, whole.x[5:9], rtol=0, atol=1e-4)


def test_given_samples_are_handed_out():
    x = torch.arange(12.0).reshape(6, 2)
    given_samples = GivenSamples(x, "x.npz", torch.device("cpu"))
    assert torch.equal(draw(given_samples, 2, 3).x, x[2:5])
    assert given_samples.count(None) == 6
    assert given_samples.count(4) == 4
    with pytest.raises(PidistillError, match=r"7.*6 samples"):
        given_samples.count(7)


def test_samples_are_kept_under_all_that_they_depend_on(tmp_path, mlp_student, mlp_teacher):
    def names():
        yield Sampler(mlp_student, 1), 0
        yield Sampler(mlp_student, 1), 1
        yield Sampler(mlp_student, 1, labels=ProportionalLabels((1, 2, 3))), 0
        yield Sampler(mlp_student, 1, labels=ProportionalLabels((1, 2, 4))), 0
        yield Sampler(mlp_teacher, 40), 0
        yield Sampler(mlp_teacher, 18), 0
        yield Sampler(mlp_teacher, 40, solver="euler"), 0
        mlp_student.network.output.weight.data += 1
        yield Sampler(mlp_student, 1), 0

    folders = [Blocks(sampler, seed, tmp_path).folder for sampler, seed in names()]
    assert len(set(folders)) == len(folders)
    first, second = (
        Blocks(Sampler(mlp_student, 1, batch_size=size), 0, tmp_path) for size in (1, 7)
    )
    assert first.folder == second.folder


def test_latents_are_decoded_a_few_at_a_time():
    seen = []

    class Decoder(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return 2 * x

    x = torch.randn(20, 4, 2, 2)
    assert torch.equal(decoded(x, Decoder()), 2 * x)
    assert max(seen) <= DECODED_AT_ONCE
    assert decoded(x, None) is x


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(0, 5000))
def test_every_stretch_of_labels_keeps_to_the_proportions(counts, first):
    num = 1000
    labels = ProportionalLabels(tuple(counts))(first, num)
    found = torch.bincount(labels, minlength=len(counts))
    for count, expected in zip(found.tolist(), counts, strict=True):
        share = num * expected / sum(counts)
        assert abs(count - share) <= 8  # the discrepancy of the golden ratio grows with ln(num)
        assert expected or not count


def test_models_are_opened_by_folder_or_spec(tmp_path):
    assert open_model("mixture:ring").source == load_teacher("mixture:ring").source
    with pytest.raises(PidistillError, match=r"0\.9.*'mixture:ring'"):
        open_model("mixture:ring", 0.9)
    (tmp_path / "config.toml").touch()
    with pytest.raises(PidistillError, match="first checkpoint"):
        open_model(tmp_path)
