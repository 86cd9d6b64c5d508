"""Samples in blocks: any number of processes, any interruption, the same samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.evaluation import blocks as module
from pidistill.evaluation.blocks import Blocks, as_measured, blocks, in_order, own_share
from pidistill.ode import Solution
from pidistill.processes import ALONE, Processes


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)


@given(st.integers(1, 100), st.integers(1, 7))
def test_blocks_hold_every_sample_once_and_are_shared(num, count):
    assert list(itertools.chain(*blocks(num))) == list(range(num))
    assert sum(own_share(num, Processes(index, count)) for index in range(count)) == num


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


class Counting:
    """A subject that counts what it draws, and can be cut."""

    decoder = None

    def __init__(self, dies_at=None):
        self.drawn = []
        self.dies_at = dies_at

    def draw(self, seed, first, count, on_batch):
        if first == self.dies_at:
            raise KeyboardInterrupt
        self.drawn.append(first)
        on_batch(count)
        return Solution(torch.arange(first, first + count, dtype=torch.float32)[:, None], 3)

    def identity(self, seed):
        return {"seed": seed}


def draw_all(source, num):
    return list(in_order(num, source.get, ALONE))


def test_what_was_drawn_before_a_cut_is_not_drawn_again(tmp_path):
    cut, resumed = Counting(dies_at=16), Counting()
    with pytest.raises(KeyboardInterrupt):
        draw_all(Blocks(cut, 0, tmp_path), 20)
    assert cut.drawn == [0, 8]
    source = Blocks(resumed, 0, tmp_path)
    assert source.count() == 2
    done = []
    parts = [source.get(block, done.append) for block in blocks(20)]
    assert sum(done) == 20
    assert resumed.drawn == [16]
    assert torch.cat([part.x for part in parts])[:, 0].tolist() == list(range(20))
    assert {part.nfe for part in parts} == {3}


def test_a_last_block_that_grew_is_drawn_again(tmp_path):
    draw_all(Blocks(Counting(), 0, tmp_path), 10)
    grown = Counting()
    parts = draw_all(Blocks(grown, 0, tmp_path), 14)
    assert grown.drawn == [8]
    assert torch.cat([part.x for part in parts])[:, 0].tolist() == list(range(14))


def test_a_damaged_block_is_named(tmp_path):
    source = Blocks(Counting(), 0, tmp_path)
    source.get(range(8))
    (file,) = source.folder.iterdir()
    file.write_bytes(b"half a block")
    with pytest.raises(PidistillError, match=file.name):
        source.get(range(8))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_counted_and_refused(tmp_path, bad):
    class Diverged(Counting):
        def draw(self, seed, first, count, on_batch):
            x, nfe = super().draw(seed, first, count, on_batch)
            x[2:5] = bad
            return Solution(x, nfe)

    source = Blocks(Diverged(), 0, tmp_path)
    with pytest.raises(PidistillError, match="3 of the 8 samples"):
        source.get(range(8))
    assert source.count() == 0


def test_only_images_are_rounded():
    pixels = as_measured(torch.tensor([-1.0, 0.1, 1.2]).reshape(1, 3, 1, 1))
    assert pixels.flatten().tolist() == [0, 140, 255]
    assert torch.equal(as_measured(pixels), pixels)
    points = torch.tensor([[0.123, 4.5]])
    assert torch.equal(as_measured(points), points)
