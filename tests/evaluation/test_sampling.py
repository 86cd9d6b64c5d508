"""Samples in blocks: any number of processes, any interruption, the same samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError, initial_noise, solve
from pidistill.evaluation import sampling
from pidistill.evaluation.labels import ProportionalLabels, even_labels
from pidistill.evaluation.sampling import (
    BlockFolder,
    Sampler,
    as_measured,
    blocks,
    decoded,
    draw_block,
    in_order,
    measured,
    student_sampler,
    teacher_sampler,
    teacher_samples,
)
from pidistill.images import to_uint8
from pidistill.ode import Solution
from pidistill.processes import Processes


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 8)


@given(st.integers(1, 100))
def test_blocks_hold_every_sample_once(num):
    assert list(itertools.chain(*blocks(num))) == list(range(num))


@given(st.integers(1, 60), st.integers(1, 5))
def test_every_block_is_the_work_of_one_process_and_comes_in_order(num, count):
    """The processes take turns here; what one gathers the main process hands on."""
    mailbox = {}

    class Fake(Processes):
        def gather(self, item):
            mailbox.setdefault(self.index, []).append(item)
            return []

    for index in range(count):
        assert list(in_order(num, lambda block: block, Fake(index, count))) == []
    rounds = zip(*(mailbox[index] for index in range(count)), strict=True)
    done = [block for parts in rounds for part in parts for block in part]
    assert done == blocks(num)


@pytest.mark.parametrize("labels", [even_labels, ProportionalLabels((1, 5, 2))])
def test_blocks_of_a_student_are_its_samples_in_8_bits(mlp_student, labels):
    sampler = measured(student_sampler(mlp_student, seed=4, labels=labels))
    parts = [draw_block(sampler, block).x for block in blocks(20)]
    whole = mlp_student.generate(20, seed=4, label=labels(0, 20))
    x = torch.cat(parts)
    assert x.dtype == torch.uint8
    assert (x.int() - to_uint8(whole.x).int()).abs().max() <= 1  # a tie may fall either way
    assert x.float().std() > 10


def test_blocks_of_a_teacher_are_its_solution(gaussian):
    sampler = teacher_sampler(gaussian, seed=4, steps=6)
    parts = [draw_block(sampler, block) for block in blocks(20)]
    z = initial_noise(gaussian, 20, seed=4)
    torch.testing.assert_close(torch.cat([part.x for part in parts]), solve(gaussian, z, steps=6).x)
    assert {part.nfe for part in parts} == {11}


def test_a_part_of_the_teachers_samples(mlp_teacher):
    whole = teacher_samples(mlp_teacher, 10, seed=1, steps=3)
    part = teacher_samples(mlp_teacher, 4, seed=1, steps=3, first=5)
    torch.testing.assert_close(part.x, whole.x[5:9], rtol=0, atol=1e-4)


class Counting:
    """A sampler that counts what it draws, and can be cut."""

    def __init__(self, dies_at=None):
        self.drawn = []
        self.dies_at = dies_at

    def __call__(self, first, count):
        if first == self.dies_at:
            raise KeyboardInterrupt
        self.drawn.append(first)
        index = torch.arange(first, first + count, dtype=torch.float32)
        return Solution(index.reshape(-1, 1), 3)


def test_what_was_drawn_before_a_cut_is_not_drawn_again(tmp_path):
    cut = Counting(dies_at=16)
    folder = BlockFolder(tmp_path, Sampler(cut, {"seed": 0}))
    with pytest.raises(KeyboardInterrupt):
        list(in_order(20, folder.block, Processes()))
    assert cut.drawn == [0, 8]
    resumed = Counting()
    folder = BlockFolder(tmp_path, Sampler(resumed, {"seed": 0}))
    parts = list(in_order(20, folder.block, Processes()))
    assert resumed.drawn == [16]
    assert torch.cat([part.x for part in parts])[:, 0].tolist() == list(range(20))
    assert {part.nfe for part in parts} == {3}


def test_a_last_block_that_grew_is_drawn_again(tmp_path):
    folder = BlockFolder(tmp_path, Sampler(Counting(), {}))
    list(in_order(10, folder.block, Processes()))
    grown = Counting()
    folder = BlockFolder(tmp_path, Sampler(grown, {}))
    parts = list(in_order(14, folder.block, Processes()))
    assert grown.drawn == [8]
    assert torch.cat([part.x for part in parts])[:, 0].tolist() == list(range(14))


def test_a_damaged_block_is_named(tmp_path):
    folder = BlockFolder(tmp_path, Sampler(Counting(), {}))
    folder.block(range(8))
    (file,) = folder.folder.iterdir()
    file.write_bytes(b"half a block")
    with pytest.raises(PidistillError, match=file.name):
        folder.block(range(8))


def test_blocks_are_removed_with_their_folders(tmp_path):
    parent = tmp_path / "samples"
    first = BlockFolder(parent, Sampler(Counting(), {"seed": 0}))
    second = BlockFolder(parent, Sampler(Counting(), {"seed": 1}))
    for folder in (first, second):
        folder.block(range(8))
    first.remove()
    assert [file.name for file in parent.iterdir()] == [second.folder.name]
    assert second.is_there(range(8))
    second.remove()
    assert not parent.exists()


def test_blocks_are_kept_under_all_that_samples_depend_on(tmp_path, mlp_student, mlp_teacher):
    def names():
        yield student_sampler(mlp_student, seed=0)
        yield student_sampler(mlp_student, seed=1)
        yield student_sampler(mlp_student, seed=0, labels=ProportionalLabels((1, 2, 3)))
        yield student_sampler(mlp_student, seed=0, labels=ProportionalLabels((1, 2, 4)))
        yield measured(student_sampler(mlp_student, seed=0))
        yield measured(student_sampler(mlp_student, seed=0), torch.nn.Linear(1, 1))
        yield teacher_sampler(mlp_teacher, seed=0)
        yield teacher_sampler(mlp_teacher, seed=0, steps=18)
        yield teacher_sampler(mlp_teacher, seed=0, solver="euler")
        mlp_student.network.output.weight.data += 1
        yield student_sampler(mlp_student, seed=0)

    folders = [BlockFolder(tmp_path, sampler).folder.name for sampler in names()]
    assert len(set(folders)) == len(folders)


def test_the_batch_size_does_not_change_the_folder(tmp_path, mlp_student):
    first, second = (student_sampler(mlp_student, seed=0, batch_size=size) for size in (1, 7))
    assert BlockFolder(tmp_path, first).folder == BlockFolder(tmp_path, second).folder


def test_only_images_are_rounded():
    pixels = as_measured(torch.tensor([-1.0, 0.1, 1.2]).reshape(1, 3, 1, 1))
    assert pixels.flatten().tolist() == [0, 140, 255]
    assert torch.equal(as_measured(pixels), pixels)
    points = torch.tensor([[0.123, 4.5]])
    assert torch.equal(as_measured(points), points)


def test_latents_are_decoded_a_few_at_a_time():
    seen = []

    class Decoder(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return 2 * x

    x = torch.randn(20, 4, 2, 2)
    assert torch.equal(decoded(x, Decoder()), 2 * x)
    assert max(seen) <= sampling.DECODED_AT_ONCE
    assert decoded(x, None) is x
