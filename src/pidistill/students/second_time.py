"""A second time for a network that was built for one: an embedding added to its noise embedding.

The embedding starts at zero, so that a copied network starts as it was.
"""

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.graph import Node

from pidistill.denoiser import call_network

WIDTH = 128
"""Width of the hidden layer."""
NUM_FREQUENCIES = 32
"""Number of sine-cosine pairs."""
FREQUENCIES = (0.25, 16.0)
"""Lowest and highest angular frequency, for a time of a few units, such as ln(sigma) / 4."""


class SecondTime(nn.Module):
    """Sines and cosines of a time, and two linear layers, the last of which starts at zero."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        """Build the embedding of `size` numbers."""
        super().__init__()
        low, high = map(math.log10, FREQUENCIES)
        frequencies = torch.logspace(low, high, NUM_FREQUENCIES, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.linear0 = nn.Linear(2 * NUM_FREQUENCIES, WIDTH)
        self.linear1 = nn.Linear(WIDTH, size)
        nn.init.zeros_(self.linear1.weight)
        nn.init.zeros_(self.linear1.bias)

    def forward(self, time: Tensor) -> Tensor:
        """The embedding (b, size) of times (b,)."""
        angle = time[:, None] * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        hidden = functional.silu(self.linear0(waves.to(self.linear0.weight)))
        out: Tensor = self.linear1(hidden)
        return out


def call_with_shift(
    network: nn.Module,
    layer: str,
    shift: Tensor,
    u: Tensor,
    c_noise: Tensor,
    label: Tensor | None,
) -> Tensor:
    """Call a raw network with `shift` (b, size) added to the output of its `layer`.

    If `layer` is empty, the shift is added to the input. Other arguments as in `call_network`.
    """
    if not layer:
        return call_network(network, u + shift.to(u).reshape(u.shape), c_noise, label)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + shift.to(output)

    with network.get_submodule(layer).register_forward_hook(add):
        return call_network(network, u, c_noise, label)


def noise_embedding(
    network: nn.Module, sample_shape: tuple[int, ...], num_classes: int
) -> tuple[str, int]:
    """Find where a network embeds its noise level: the name of a layer and its width.

    It is the last layer that turns the noise level, and nothing of the sample, into a vector, and
    through which everything passes that the network knows of the noise level. If no layer is like
    that, because the noise level enters as a further channel, say, the name is empty and the width
    that of a sample.

    The network is called on a sample of zeros, and autograd's graph says what depends on what.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    u = torch.zeros(1, *sample_shape, device=device, requires_grad=True)
    c_noise = torch.full((1,), 0.5, device=device, requires_grad=True)
    label = torch.zeros(1, dtype=torch.int64, device=device) if num_classes else None
    candidates: dict[str, int] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
            leaves = _leaves(output, (u, c_noise))
            if c_noise in leaves and u not in leaves:
                candidates[name] = output.shape[1]

    handles = [
        module.register_forward_hook(lambda m, i, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    call_network(network, u, c_noise, label)
    for handle in handles:
        handle.remove()
    for name, width in reversed(candidates.items()):
        with network.get_submodule(name).register_forward_hook(lambda m, i, o: o.detach()):
            cut = call_network(network, u, c_noise, label)
        if c_noise not in _leaves(cut, (u, c_noise)):
            return name, width
    return "", math.prod(sample_shape)


def _leaves(output: Tensor, among: tuple[Tensor, ...]) -> set[Tensor]:
    """Which of the leaves `among` the graph of `output` reaches."""
    found: set[Tensor] = set()
    seen: set[Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        found.update(tensor for tensor in among if tensor is leaf)
        waiting.extend(next_node for next_node, _ in node.next_functions)
    return found
