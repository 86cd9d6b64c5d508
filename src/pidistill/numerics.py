"""Flags of torch that the PID loss needs, set within a block and restored after it."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Flush subnormals to zero, and keep convolutions in full single precision.

    Subnormal numbers make CPU kernels 20 times slower. TF32 rounds more than a difference of two
    student evaluations, multiplied by up to 50, can bear (docs/numeric-traps.md). Subnormals are a
    flag of the calling thread, TF32 of the process. Also works as a decorator.
    """
    flushed, tf32 = flushes_subnormals(), torch.backends.cudnn.allow_tf32
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.backends.cudnn.allow_tf32 = tf32


def flushes_subnormals() -> bool:
    """Whether this thread flushes subnormals to zero; torch has no getter, so one is computed."""
    smallest_normal = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    return (smallest_normal / 2).item() == 0
