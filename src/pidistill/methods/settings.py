"""Settings of methods and optimizers. Imports no torch, since the command line reads them."""

import math
from typing import Literal

import pydantic

from pidistill.settings import STRICT

SMALL, LARGE = 0.7e6, 56e6
"""Numbers of parameters at which learning rates are known: the U-Net of the bundled glyphs, and
that of EDM's CIFAR-10, which the publications train."""

RATES = (4e-3, 2e-4)
"""Learning rates of a network with `SMALL` and with `LARGE` parameters that regresses on a target;
the latter is the published one."""


def rate_by_size(num_parameters: int, rates: tuple[float, float] = RATES) -> float:
    """The learning rate for a network: a power law between the known sizes, constant beyond.

    Args:
        num_parameters: The size of the network.
        rates: The rates at `SMALL` and at `LARGE`.
    """
    size = min(max(num_parameters, SMALL), LARGE)
    share = math.log(size / SMALL) / math.log(LARGE / SMALL)
    return float(f"{rates[0] * (rates[1] / rates[0]) ** share:.3g}")


class MethodSettings(pydantic.BaseModel):
    """Settings of a method, validated strictly: the table `[method]` of a run config."""

    model_config = {**STRICT, "use_attribute_docstrings": True}

    name: str
    """The name under which the method is registered."""

    def for_share(self, share: float) -> "MethodSettings":
        """The settings of a run with this share of the budget: what counts per run shrinks."""
        return self


class OptimizerSettings(pydantic.BaseModel):
    """Optimizer settings of one part of a method, named as in diffusers' scripts."""

    model_config = {**STRICT, "use_attribute_docstrings": True}

    optimizer: Literal["adamw", "radam"] = "adamw"
    """The optimizer."""
    learning_rate: float | None = pydantic.Field(default=None, gt=0)
    """Learning rate after the warm-up; if unset, it follows from the number of parameters."""
    learning_rate_scale: float = pydantic.Field(default=1.0, gt=0)
    """Factor on all learning rates of the run, those that the method sets included."""
    adam_beta1: float = pydantic.Field(default=0.9, ge=0, lt=1)
    """Decay rate of the gradient's running average."""
    adam_beta2: float = pydantic.Field(default=0.99, ge=0, lt=1)
    """Decay rate of the squared gradient's running average."""
    adam_weight_decay: float = pydantic.Field(default=0.0, ge=0)
    """Weight decay: decoupled for adamw, added to the gradient for radam."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """Decay schedule of the learning rate over the run."""
    lr_warmup_steps: int = pydantic.Field(default=100, ge=0)
    """Steps over which the learning rate rises from zero."""
    lr_end: float = pydantic.Field(default=0.02, ge=0, le=1)
    """Lower bound on the decayed learning rate, as a fraction of learning_rate."""
    max_grad_norm: float | None = pydantic.Field(default=None, gt=0)
    """Maximum gradient norm; if unset, gradients are not clipped."""
