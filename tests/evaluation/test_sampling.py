"""Samples depend only on their index, not on block, batch, interruption or process count."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise, load_teacher, solve
from pidistill.evaluation import sampling
from pidistill.evaluation.sampling import (
    DECODED_AT_ONCE,
    GivenSamples,
    Sampler,
    blocks,
    decoded,
    open_model,
    own_share,
    teacher_samples,
)
from pidistill.processes import Processes
from pidistill.students.flow_map import FlowMapStudent


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 8)


@given(st.integers(1, 100), st.integers(1, 7))
def test_blocks_hold_every_sample_once_and_are_shared(num, count):
    assert list(itertools.chain(*blocks(num))) == list(range(num))
    assert sum(own_share(num, Processes(index, count)) for index in range(count)) == num


def test_parts_of_a_students_samples_are_those_that_it_generates(mlp_student):
    sampler = Sampler(mlp_student, steps=1, seed=4)
    parts = [sampler.draw(block).x for block in blocks(15)]
    whole = mlp_student.generate(15, seed=4)
    torch.testing.assert_close(torch.cat(parts), whole.x, rtol=0, atol=1e-4)


def test_a_teachers_samples_are_its_solution(gaussian, mlp_teacher):
    sampler = Sampler(gaussian, steps=6, seed=4)
    parts = [sampler.draw(block) for block in blocks(20)]
    z = initial_noise(gaussian, 20, seed=4)
    torch.testing.assert_close(torch.cat([part.x for part in parts]), solve(gaussian, z, steps=6).x)
    assert {part.nfe for part in parts} == {11}
    whole = teacher_samples(mlp_teacher, 10, seed=1, steps=3)
    part = teacher_samples(mlp_teacher, 4, seed=1, steps=3, first=5)
    torch.testing.assert_close(part.x, whole.x[5:9], rtol=0, atol=1e-4)


def test_given_samples_are_handed_out():
    x = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(GivenSamples(x, torch.device("cpu")).draw(range(2, 5)).x, x[2:5])


def test_what_was_drawn_before_a_cut_is_not_drawn_again(mlp_student, tmp_path, monkeypatch):
    sampler = Sampler(mlp_student, 1, store=tmp_path)
    whole = [replace(sampler, store=None).draw(block) for block in blocks(20)]
    for block in blocks(18):  # the last block grows
        sampler.draw(block)
    assert len(list(sampler.folder.iterdir())) == 3
    drawn, draw = [], Sampler._draw
    monkeypatch.setattr(
        Sampler, "_draw", lambda *given: drawn.append(given[1].start) or draw(*given)
    )
    done = []
    parts = [replace(sampler, batch_size=3).draw(block, done.append) for block in blocks(20)]
    assert drawn == [16]
    assert sum(done) == 20
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.x, expected.x, rtol=0, atol=1e-4)
        assert part.nfe == expected.nfe


def test_a_damaged_block_is_named(mlp_student, tmp_path):
    sampler = Sampler(mlp_student, 1, store=tmp_path)
    sampler.draw(range(8))
    (file,) = sampler.folder.iterdir()
    file.write_bytes(b"half a block")
    with pytest.raises(PidistillError, match=file.name):
        sampler.draw(range(8))


def test_samples_are_kept_under_all_that_they_depend_on(tmp_path, mlp_student, mlp_teacher):
    student, teacher = (
        Sampler(model, 1, store=tmp_path, batch_size=7) for model in (mlp_student, mlp_teacher)
    )
    folders = [
        student.folder,
        replace(student, seed=1).folder,
        teacher.folder,
        replace(teacher, steps=18).folder,
        replace(teacher, solver="euler").folder,
    ]
    assert replace(student, batch_size=1).folder == student.folder
    mlp_student.network.output.weight.data += 1
    folders.append(replace(student).folder)
    assert len(set(folders)) == len(folders)


def test_refined_samples_are_kept_by_themselves(tmp_path, mlp_teacher):
    student = FlowMapStudent.from_teacher(mlp_teacher)
    plain = Sampler(student, 2, seed=4, store=tmp_path)
    refined = replace(plain, refine=3)
    assert refined.folder != plain.folder
    assert refined.folder != replace(refined, refine=1).folder
    parts = [refined.draw(block) for block in blocks(12)]
    assert {part.nfe for part in parts} == {5}
    assert plain.draw(range(8)).nfe == 2
    whole = student.generate(12, seed=4, steps=2, refine=3)
    torch.testing.assert_close(torch.cat([p.x for p in parts]), whole.x, rtol=0, atol=1e-4)


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


def test_models_are_opened_by_folder_or_spec(tmp_path):
    assert open_model("mixture:ring").source == load_teacher("mixture:ring").source
    with pytest.raises(PidistillError, match=r"0\.9.*'mixture:ring'"):
        open_model("mixture:ring", 0.9)
    (tmp_path / "config.toml").touch()
    with pytest.raises(PidistillError, match="first checkpoint"):
        open_model(tmp_path)
