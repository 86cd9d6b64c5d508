"""Philox-4x64-10, the counter-based generator of Salmon et al. 2011, as numpy has it.

Words are a pure function of a key and a counter. On the CPU, numpy's own code computes them, ten
times faster than torch's integer operations; on an accelerator, the operations below, so that
nothing is copied there. Both give the same words.
"""

import numpy as np
import torch
from torch import Tensor

WORDS_PER_COUNT = 4
"""64-bit words per counter."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 2**32 - 1


def philox_words(key: tuple[int, int], first: int, num: int, device: torch.device) -> Tensor:
    """The words of the counters `first .. first + num - 1`, counted as numpy counts.

    Args:
        key: Two 64-bit words.
        first: The first counter, at most 63 bits; the other three words of a counter are 0.
        num: The number of counters.
        device: Where to compute them.

    Returns:
        Shape (num * WORDS_PER_COUNT,), int64, which holds unsigned words.
    """
    if device.type == "cpu":
        words = np.array(key, dtype=np.uint64), np.array([first, 0, 0, 0], dtype=np.uint64)
        generator = np.random.Philox(key=words[0], counter=words[1])
        raw = np.asarray(generator.random_raw(num * WORDS_PER_COUNT))
        return torch.from_numpy(raw.view(np.int64))
    return philox_words_in_torch(key, first, num, device)


def philox_words_in_torch(
    key: tuple[int, int], first: int, num: int, device: torch.device
) -> Tensor:
    """`philox_words` in torch's integer operations, for any device."""
    # numpy increments the counter before it computes a block
    c0 = torch.arange(first + 1, first + 1 + num, dtype=torch.int64, device=device)
    c1, c2, c3 = (torch.zeros_like(c0) for _ in range(3))
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiplied(c0, _MULTIPLIERS[0])
        high1, low1 = _multiplied(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(k0), low1, high0 ^ c3 ^ _signed(k1), low0
        k0, k1 = (k0 + _KEY_STEPS[0]) % 2**64, (k1 + _KEY_STEPS[1]) % 2**64
    return torch.stack([c0, c1, c2, c3], dim=1).flatten()


def _multiplied(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of the 128-bit products `a * factor`, by halves of 32 bits."""
    a_high, a_low = (a >> 32) & _LOW, a & _LOW
    f_high, f_low = factor >> 32, factor & _LOW
    low, cross0, cross1 = a_low * f_low, a_high * f_low, a_low * f_high
    carry = ((low >> 32) & _LOW) + (cross0 & _LOW) + (cross1 & _LOW)
    high = a_high * f_high + ((cross0 >> 32) & _LOW) + ((cross1 >> 32) & _LOW) + (carry >> 32)
    return high, a * _signed(factor)


def _signed(word: int) -> int:
    """An unsigned 64-bit word as the signed integer with the same bits."""
    return word - 2**64 if word >= 2**63 else word
