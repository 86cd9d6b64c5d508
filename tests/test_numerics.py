"""Flags of torch: set within a block, restored after it, whatever they were."""

import pytest
import torch

from pidistill.numerics import flushes_subnormals, precise


@pytest.fixture(params=[False, True], autouse=True)
def before(request):
    tf32 = torch.backends.cudnn.allow_tf32
    torch.set_flush_denormal(request.param)
    torch.backends.cudnn.allow_tf32 = not request.param
    yield request.param
    torch.set_flush_denormal(False)
    torch.backends.cudnn.allow_tf32 = tf32


def test_the_flags_hold_within_the_block_and_are_restored(before):
    assert flushes_subnormals() == before
    with precise(), precise():
        assert flushes_subnormals()
        assert not torch.backends.cudnn.allow_tf32
    assert flushes_subnormals() == before
    assert torch.backends.cudnn.allow_tf32 == (not before)


def test_they_are_restored_after_an_error(before):
    with pytest.raises(KeyError), precise():
        raise KeyError
    assert flushes_subnormals() == before


def test_sampling_leaves_the_process_as_it_found_it(before, mlp_student):
    within = []
    mlp_student.generate(3, seed=0, on_batch=lambda done: within.append(flushes_subnormals()))
    assert within == [True]
    assert flushes_subnormals() == before
    assert torch.backends.cudnn.allow_tf32 == (not before)
