"""The diffusers models of an exported student.

`pidistill.export.bundle` copies the definitions in this file into exports, so diffusers is needed
to open an export, but not to write it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers import (  # type: ignore[import-not-found, unused-ignore]
    ConfigMixin,
    ModelMixin,
)
from diffusers.configuration_utils import (  # type: ignore[import-not-found, unused-ignore]
    register_to_config,
)
from torch import Tensor, nn

from pidistill.export.flow_map import FlowScales, MapScales, flow_map_sample
from pidistill.export.one_step import Scales, one_step_sample
from pidistill.students.second_time import SecondTime

After = Callable[[int, float, Tensor], Tensor]


class OneStepModel(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Samples from starting noise in one evaluation; a subclass sets `network_class`."""

    network_class: type[nn.Module]
    most_steps = 1
    """Most network evaluations per sample."""

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(
        self,
        network_config: dict[str, Any],
        scales: dict[str, float],
        sigma_max: float,
        sample_shape: list[int],
        num_classes: int = 0,
        class_names: Sequence[str] = (),
        source: str = "",
    ) -> None:
        """Build the model with fresh weights.

        Args:
            network_config: Constructor arguments of the raw network.
            scales: The constants of `one_step_sample`.
            sigma_max: The starting noise is drawn from N(0, sigma_max^2 I).
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            class_names: What the labels stand for, such as prompts; empty if that is not known.
            source: Where the student comes from, for humans.
        """
        super().__init__()
        self.network = self.network_class(**network_config)
        self.scales = Scales(**scales)
        self.sigma_max = sigma_max
        self.sample_shape = tuple(sample_shape)
        self.num_classes, self.class_names = num_classes, tuple(class_names)

    def forward(
        self, z: Tensor, label: Tensor | None = None, steps: int = 1, after: After | None = None
    ) -> Tensor:
        """Samples from the starting noise `z` (b, *sample_shape) and `label` (b,), int64.

        `after` is called with 0, the noise level that the network saw and the samples; the result
        is what it returns.
        """
        x = one_step_sample(self.network, z, label, self.scales)
        return x if after is None else after(0, self.scales.c_noise, x)


class FlowMapModel(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Samples from starting noise in one or a few evaluations; see `OneStepModel`."""

    network_class: type[nn.Module]

    @register_to_config  # type: ignore[untyped-decorator, unused-ignore]
    def __init__(
        self,
        network_config: dict[str, Any],
        layer: str,
        width: int,
        scales: list[dict[str, Any]],
        sigma_max: float,
        sample_shape: list[int],
        num_classes: int = 0,
        class_names: Sequence[str] = (),
        source: str = "",
    ) -> None:
        """Build the model with fresh weights.

        Args:
            network_config: Constructor arguments of the raw network.
            layer: The layer of the network that learns of the second time.
            width: Width of its output.
            scales: The constants of `flow_map_sample`, for 1, 2, ... evaluations.
            sigma_max: The starting noise is drawn from N(0, sigma_max^2 I).
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            class_names: What the labels stand for, such as prompts; empty if that is not known.
            source: Where the student comes from, for humans.
        """
        super().__init__()
        self.network = self.network_class(**network_config)
        self.layer, self.second_time = layer, SecondTime(width)
        self.scales = [
            FlowScales(one["to_y"], [MapScales(**m) for m in one["maps"]]) for one in scales
        ]
        self.most_steps = len(scales)
        self.sigma_max = sigma_max
        self.sample_shape = tuple(sample_shape)
        self.num_classes, self.class_names = num_classes, tuple(class_names)

    def forward(
        self, z: Tensor, label: Tensor | None = None, steps: int = 1, after: After | None = None
    ) -> Tensor:
        """Samples from the starting noise `z` (b, *sample_shape) in `steps` evaluations.

        `after` as in `flow_map_sample`.
        """
        scales = self.scales[steps - 1]
        return flow_map_sample(self.network, self.layer, self.second_time, z, label, scales, after)
