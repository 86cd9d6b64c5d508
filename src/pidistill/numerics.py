"""Torch flags that the PID loss needs, set within a block and restored afterwards."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Flush subnormals to zero, and keep convolutions in full single precision.

    Subnormal numbers slow CPU kernels down 20 times. TF32 rounds too coarsely for a difference of
    two student evaluations with weights up to 50 (docs/numeric-traps.md). The subnormal flag
    belongs to the calling thread, the TF32 flag to the process. Also usable as a decorator.
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
    """Whether this thread flushes subnormals to zero; torch has no getter, so compute one."""
    smallest_normal = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    return (smallest_normal / 2).item() == 0
