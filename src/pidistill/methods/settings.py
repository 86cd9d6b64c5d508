"""Settings of methods and optimizers. Imports no torch: the command line reads them."""

from typing import Literal

import pydantic

from pidistill.settings import STRICT


class MethodSettings(pydantic.BaseModel):
    """Settings of a method, checked strictly: the table `[method]` of a run config."""

    model_config = {**STRICT, "use_attribute_docstrings": True}

    name: str
    """The name that the method is registered under."""


class OptimizerSettings(pydantic.BaseModel):
    """How one part of a method is optimised; the names are those of diffusers' scripts."""

    model_config = {**STRICT, "use_attribute_docstrings": True}

    optimizer: Literal["adamw", "radam"] = "adamw"
    """The optimizer."""
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    """Learning rate after the warm-up."""
    adam_beta1: float = pydantic.Field(default=0.9, ge=0, lt=1)
    """Averaging rate of the gradient."""
    adam_beta2: float = pydantic.Field(default=0.99, ge=0, lt=1)
    """Averaging rate of the squared gradient."""
    adam_weight_decay: float = pydantic.Field(default=0.0, ge=0)
    """Weight decay, decoupled for adamw, part of the gradient for radam."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """Decay of the learning rate over the run."""
    lr_warmup_steps: int = pydantic.Field(default=100, ge=0)
    """Steps over which the learning rate rises from zero."""
    lr_end: float = pydantic.Field(default=0.02, ge=0, le=1)
    """Fraction of the learning rate that is left after the last step."""
    max_grad_norm: float | None = pydantic.Field(default=None, gt=0)
    """Norm that gradients are clipped to; they are not clipped unless it is set."""
