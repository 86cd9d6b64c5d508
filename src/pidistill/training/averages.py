"""Exponential moving averages of weights, at several rates at once."""

import torch
from torch import Tensor, nn

from pidistill.sharding import divided, local, whole_of


class Averages:
    """Averages of a module's parameters, one set per rate, in the parameters' dtype.

    If the parameters are sharded over processes, so are the averages.
    """

    def __init__(self, module: nn.Module, rates: list[float], *, warmup: bool) -> None:
        """Start every average at the module's current weights.

        Args:
            module: The module to average; its buffers are copied, not averaged.
            rates: Weights of the old average in every update.
            warmup: Whether to cap the rate at (step + 1) / (step + 10).
        """
        self.module = module
        self.rates = rates
        self.warmup = warmup
        self.averages = [[local(p.detach()).clone() for p in module.parameters()] for _ in rates]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move every average towards the weights after optimizer step `step`, counted from 0."""
        parameters = [local(p.detach()) for p in self.module.parameters()]
        for rate, average in zip(self.rates, self.averages, strict=True):
            keep = min(rate, (step + 1) / (step + 10)) if self.warmup else rate
            torch._foreach_lerp_(average, parameters, 1 - keep)

    def weights(self, index: int) -> dict[str, Tensor]:
        """The module's state dict, gathered, with the averages at `rates[index]`."""
        averaged = {
            name: whole_of(average, p)
            for (name, p), average in zip(
                self.module.named_parameters(), self.averages[index], strict=True
            )
        }
        return {**self.module.state_dict(), **averaged}

    @torch.no_grad()
    def load(self, index: int, weights: dict[str, Tensor]) -> None:
        """Restore the averages at `rates[index]` from a state dict of whole weights."""
        for (name, p), average in zip(
            self.module.named_parameters(), self.averages[index], strict=True
        ):
            average.copy_(local(divided(weights[name], p)))
