"""Random numbers that depend on the seed and the sample's index, and on nothing else.

Sample `i` owns a range of the counter of a Philox generator, so any batch, any number of processes
and any order of work sees the same numbers for it. No generator state has to be saved.
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

_WORDS_PER_COUNT = 4  # one step of Philox-4x64 yields four 64-bit words


class _Samples(Protocol):
    """What `initial_noise` needs to know: every denoiser and every student qualifies."""

    sigma_max: float
    sample_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of the samples `first .. first + num - 1` under `seed`.

    Each purpose has its own stream, named by a string; asking twice for the same stream gives the
    same numbers.
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
        """Uniform numbers in [0, 1), one a sample, shape (num,), float64."""
        return torch.from_numpy(_unit(self._words(stream, 1)[:, 0]))

    def integers(self, stream: str, high: int) -> Tensor:
        """Uniform integers in 0 .. high - 1, one a sample, shape (num,), int64."""
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
    """Map 64-bit words to [0, 1) by their upper 53 bits, all that a double can hold."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def initial_noise(denoiser_or_student: _Samples, num: int, *, seed: int, first: int = 0) -> Tensor:
    """Starting noise `z ~ N(0, sigma_max^2 I)`, on the device of the denoiser or student.

    Args:
        denoiser_or_student: Has `sigma_max` and `sample_shape`.
        num: Number of samples.
        seed: The seed; sample i depends on it and on i only.
        first: Index of the first sample, to draw a part of a longer list.

    Returns:
        Shape (num, *sample_shape), float32.
    """
    normal = Draws(seed, first, num).normal("z", denoiser_or_student.sample_shape)
    z = (denoiser_or_student.sigma_max * normal).float()
    if isinstance(denoiser_or_student, torch.nn.Module):
        z = z.to(device_of(denoiser_or_student))
    return z


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU when it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
