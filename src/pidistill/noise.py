"""Random numbers that depend only on the seed and the sample index.

Sample `i` owns a counter range of a Philox generator, so its numbers do not depend on the batch,
the number of processes or the order of the work. No generator state needs saving.
"""

import dataclasses
import math
import zlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pidistill.errors import PidistillError

SEEDS = 2**63
"""Number of seeds."""

_WORDS_PER_COUNT = 4  # Philox-4x64 yields four 64-bit words per step


class _Samples(Protocol):
    """The attributes that `initial_noise` needs; all denoisers and students have them."""

    sigma_max: float
    sample_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of the samples `first .. first + num - 1` under `seed`.

    Each purpose has its own named stream; reading a stream twice gives the same numbers.
    """

    seed: int
    first: int
    num: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise PidistillError(f"seed is {self.seed}; expected 0 <= seed < 2**63")

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, shape (num, *shape), float64, by the Box-Muller transform."""
        size = math.prod(shape)
        words = self._words(stream, size + size % 2)
        half = words.shape[1] // 2
        radius = np.sqrt(-2 * np.log1p(-_unit(words[:, :half])))
        angle = 2 * np.pi * _unit(words[:, half:])
        numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return torch.from_numpy(numbers[:, :size].reshape(self.num, *shape))

    def uniform(self, stream: str) -> Tensor:
        """Uniform numbers in [0, 1), one per sample, shape (num,), float64."""
        return torch.from_numpy(_unit(self._words(stream, 1)[:, 0]))

    def integers(self, stream: str, high: int) -> Tensor:
        """Uniform integers in 0 .. high - 1, one per sample, shape (num,), int64."""
        return (self.uniform(stream) * high).long()

    def _words(self, stream: str, num_words: int) -> np.ndarray:
        """Raw 64-bit words, shape (num, num_words)."""
        counts = -(-num_words // _WORDS_PER_COUNT)
        key = np.array([self.seed, zlib.crc32(stream.encode())], dtype=np.uint64)
        counter = np.array([self.first * counts, 0, 0, 0], dtype=np.uint64)
        raw = np.random.Philox(key=key, counter=counter).random_raw(
            self.num * counts * _WORDS_PER_COUNT
        )
        return np.asarray(raw).reshape(self.num, -1)[:, :num_words]


def _unit(words: np.ndarray) -> np.ndarray:
    """Map 64-bit words to [0, 1) by their upper 53 bits, the precision of a double."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def initial_noise(denoiser_or_student: _Samples, num: int, *, seed: int, first: int = 0) -> Tensor:
    """Starting noise `z ~ N(0, sigma_max^2 I)`, on the device of the denoiser or student.

    Args:
        denoiser_or_student: Has `sigma_max` and `sample_shape`.
        num: Number of samples.
        seed: The seed; sample i depends only on it and i.
        first: Index of the first sample, for drawing part of a longer list.

    Returns:
        Shape (num, *sample_shape), float32.
    """
    normal = Draws(seed, first, num).normal("z", denoiser_or_student.sample_shape)
    z = (denoiser_or_student.sigma_max * normal).float()
    if isinstance(denoiser_or_student, torch.nn.Module):
        z = z.to(device_of(denoiser_or_student))
    return z


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer, or the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
