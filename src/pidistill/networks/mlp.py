"""A residual multilayer perceptron for small samples, fast on a CPU."""

import math
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.networks.layers import one_hot_label, plain_arguments


def linear_in_parts(layer: nn.Linear, h: Tensor) -> Tensor:
    """`layer(h)` as the sum of eight partial sums, which halves the rounding error.

    PID amplifies rounding errors of its network by up to 30 (see `pidistill.derivative`), and most
    of them come from the last layer.
    """
    pairs = zip(h.chunk(8, dim=-1), layer.weight.chunk(8, dim=-1), strict=True)
    sums = torch.stack([functional.linear(part, weight) for part, weight in pairs])
    return sums.sum(0) + layer.bias


class ModulatedBlock(nn.Module):
    """`h + linear(silu(linear(norm(h) * (1 + scale) + shift)))`, conditioned on the embedding."""

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(embedding_width, 2 * width)
        self.linear0 = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, width)
        nn.init.zeros_(self.linear1.weight)
        nn.init.zeros_(self.linear1.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=-1)
        update = torch.addcmul(shift, self.norm(h), 1 + scale)
        out: Tensor = h + self.linear1(functional.silu(self.linear0(update)))
        return out


class MLP(nn.Module):
    """Residual blocks over flattened samples, conditioned on noise level and label."""

    frequencies: Tensor

    def __init__(
        self,
        sample_shape: tuple[int, ...] | list[int],
        *,
        num_classes: int = 0,
        width: int = 384,
        num_blocks: int = 4,
        embedding_width: int = 128,
        num_frequencies: int = 32,
        max_frequency: float = 16.0,
    ) -> None:
        """Build the network.

        Args:
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            width: Width of the residual stream.
            num_blocks: Number of residual blocks.
            embedding_width: Width of the embedding of noise level and label.
            num_frequencies: Number of sine-cosine pairs in the embedding of `c_noise`.
            max_frequency: Their highest angular frequency; the lowest is 1/4.
        """
        config = plain_arguments(locals())
        super().__init__()
        self.config, self.num_classes = config, num_classes
        size = math.prod(sample_shape)
        frequencies = torch.logspace(
            math.log10(0.25), math.log10(max_frequency), num_frequencies, dtype=torch.float64
        )
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.noise0 = nn.Linear(2 * num_frequencies, embedding_width)
        self.noise1 = nn.Linear(embedding_width, embedding_width)
        if num_classes > 0:
            self.label = nn.Linear(num_classes, embedding_width, bias=False)
        self.input = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, embedding_width) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @classmethod
    def arguments_for(cls, sample_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
        """The constructor arguments implied by the samples."""
        return {"sample_shape": list(sample_shape), "num_classes": num_classes}

    def forward(self, u: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return F(u, c_noise, label) (see `pidistill.networks`)."""
        angle = c_noise[:, None] * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        embedding = self.noise1(functional.silu(self.noise0(waves)))
        if self.num_classes > 0:
            embedding = embedding + self.label(one_hot_label(label, self.num_classes, u))
        embedding = functional.silu(embedding)
        h = self.input(u.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = linear_in_parts(self.output, self.norm(h)).reshape(u.shape)
        return out
