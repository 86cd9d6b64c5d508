"""A student as a model of the diffusers library.

This file is cut to pieces and bundled into exports (`pidistill.export.bundle`), so that the library
is imported where an export is opened, not where it is written.
"""

from typing import Any

from diffusers import ConfigMixin, ModelMixin  # type: ignore[import-not-found, unused-ignore]
from diffusers.configuration_utils import (  # type: ignore[import-not-found, unused-ignore]
    register_to_config,
)
from torch import Tensor, nn

from pidistill.export.one_step import one_step_sample


class OneStepModel(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Samples from starting noise in one evaluation; a subclass names the raw network."""

    network_class: type[nn.Module]

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(
        self,
        network_config: dict[str, Any],
        scales: dict[str, float],
        sigma_max: float,
        sample_shape: list[int],
        num_classes: int = 0,
        source: str = "",
    ) -> None:
        """Build the model with fresh weights.

        Args:
            network_config: Constructor arguments of the raw network.
            scales: The constants of `one_step_sample`.
            sigma_max: The starting noise comes from N(0, sigma_max^2 I).
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            source: Where the student comes from, for people to read.
        """
        super().__init__()
        self.network = self.network_class(**network_config)
        self.scales = dict(scales)
        self.sigma_max = sigma_max
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples of the shape of the starting noise `z` (b, *sample_shape), label (b,) int64."""
        return one_step_sample(self.network, z, label, **self.scales)
