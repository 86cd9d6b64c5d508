"""Torch flags for training and sampling, set within a block and restored afterwards."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def precise(*, tf32: bool = False, benchmark: bool = False) -> Iterator[None]:
    """Flush subnormals to zero, and choose the arithmetic of CUDA's convolutions and products.

    Subnormal numbers slow CPU kernels down 20 times. The subnormal flag belongs to the calling
    thread, the others to the process. Also usable as a decorator.

    Args:
        tf32: Whether float32 is rounded to the 10 bits of TF32 there.
        benchmark: Whether cuDNN tries its algorithms and takes the fastest, for fixed shapes.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = flushes_subnormals(), cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
    torch.set_flush_denormal(True)
    cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = tf32, tf32, benchmark
    try:
        yield
    finally:
        torch.set_flush_denormal(before[0])
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before[1:]


def evaluation_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which networks evaluate `x`: autocast's where it is on, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def flushes_subnormals() -> bool:
    """Whether this thread flushes subnormals to zero; torch has no getter, so compute one."""
    smallest_normal = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    return (smallest_normal / 2).item() == 0
