"""Random numbers that depend only on the seed and the sample index.

Sample `i` owns a counter range of a Philox generator, so its numbers do not depend on the batch,
the device, the number of processes or the order of the work. No generator state needs saving.
"""

import dataclasses
import math
import zlib
from typing import Protocol

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.philox import WORDS_PER_COUNT, philox_words

SEEDS = 2**63
"""Number of seeds."""

_CPU = torch.device("cpu")
_DRAWN_ON = ("cuda", "xpu")
"""Types of devices that draw their own numbers; the others lack double precision or are the CPU."""


class _Samples(Protocol):
    """The attributes that `initial_noise` needs; all denoisers and students have them."""

    sigma_max: float
    sample_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of the samples `first .. first + num - 1` under `seed`.

    Each purpose has its own named stream; reading a stream twice gives the same numbers. All
    numbers are in double precision, on `device`: the integers behind them are the same on every
    device, and the numbers themselves up to the rounding of its functions.
    """

    seed: int
    first: int
    num: int
    device: torch.device = _CPU

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise PidistillError(f"seed is {self.seed}; expected 0 <= seed < 2**63")

    def on(self, device: torch.device) -> "Draws":
        """The same numbers, drawn on `device` if it draws its own, else on the CPU."""
        return dataclasses.replace(self, device=drawing_device(device))

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, shape (num, *shape), float64, by the Box-Muller transform."""
        size = math.prod(shape)
        words = self._words(stream, size + size % 2)
        half = words.shape[1] // 2
        radius = (-2 * torch.log1p(-_unit(words[:, :half]))).sqrt()
        angle = 2 * math.pi * _unit(words[:, half:])
        numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return numbers[:, :size].reshape(self.num, *shape)

    def uniform(self, stream: str) -> Tensor:
        """Uniform numbers in [0, 1), one per sample, shape (num,), float64."""
        return _unit(self._words(stream, 1)[:, 0])

    def integers(self, stream: str, high: int) -> Tensor:
        """Uniform integers in 0 .. high - 1, one per sample, shape (num,), int64."""
        return (self.uniform(stream) * high).long()

    def _words(self, stream: str, num_words: int) -> Tensor:
        """Raw 64-bit words, shape (num, num_words), as int64."""
        counts = -(-num_words // WORDS_PER_COUNT)
        words = philox_words(
            (self.seed, zlib.crc32(stream.encode())),
            self.first * counts,
            self.num * counts,
            self.device,
        )
        return words.reshape(self.num, -1)[:, :num_words]


def drawing_device(device: torch.device) -> torch.device:
    """Where to draw the numbers of samples on `device`: there, or on the CPU."""
    return device if device.type in _DRAWN_ON else _CPU


def _unit(words: Tensor) -> Tensor:
    """Map 64-bit words to [0, 1) by their upper 53 bits, the precision of a double."""
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53


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
    device = _CPU
    if isinstance(denoiser_or_student, torch.nn.Module):
        device = device_of(denoiser_or_student)
    draws = Draws(seed, first, num, drawing_device(device))
    normal = draws.normal("z", denoiser_or_student.sample_shape)
    return (denoiser_or_student.sigma_max * normal).float().to(device)


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer, or the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
