"""The diffusers classes of an exported student.

`pidistill.export.bundle` copies the definitions in this file into exports, so diffusers is needed
to open an export, but not to write it.
"""

from typing import Any

import torch
from diffusers import (  # type: ignore[import-not-found, unused-ignore]
    ConfigMixin,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.configuration_utils import (  # type: ignore[import-not-found, unused-ignore]
    register_to_config,
)
from diffusers.utils.torch_utils import (  # type: ignore[import-not-found, unused-ignore]
    randn_tensor,
)
from torch import Tensor, nn

from pidistill.export.flow_map import FlowScales, MapScales, flow_map_sample
from pidistill.export.one_step import Scales, one_step_sample
from pidistill.noise import initial_noise
from pidistill.students.second_time import SecondTime


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
        source: str = "",
    ) -> None:
        """Build the model with fresh weights.

        Args:
            network_config: Constructor arguments of the raw network.
            scales: The constants of `one_step_sample`.
            sigma_max: The starting noise is drawn from N(0, sigma_max^2 I).
            sample_shape: Shape of one sample, without the batch axis.
            num_classes: Number of labels; 0 means unconditional.
            source: Where the student comes from, for humans.
        """
        super().__init__()
        self.network = self.network_class(**network_config)
        self.scales = Scales(**scales)
        self.sigma_max = sigma_max
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Samples from the starting noise `z` (b, *sample_shape) and `label` (b,), int64."""
        return one_step_sample(self.network, z, label, self.scales)


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
            source: Where the student comes from, for humans.
        """
        super().__init__()
        self.network = self.network_class(**network_config)
        self.layer, self.second_time = layer, SecondTime(width)
        self.scales = [
            FlowScales(one["to_y"], one["to_x"], [MapScales(**m) for m in one["maps"]])
            for one in scales
        ]
        self.most_steps = len(scales)
        self.sigma_max = sigma_max
        self.sample_shape = tuple(sample_shape)
        self.num_classes = num_classes

    def forward(self, z: Tensor, label: Tensor | None = None, steps: int = 1) -> Tensor:
        """Samples from the starting noise `z` (b, *sample_shape) in `steps` evaluations."""
        scales = self.scales[steps - 1]
        return flow_map_sample(self.network, self.layer, self.second_time, z, label, scales)


OUTPUT_TYPES = ("pil", "np", "pt", "raw")


class OneStepPipeline(DiffusionPipeline):  # type: ignore[misc, unused-ignore]
    """Generates images by a student distilled by pidistill, in one network evaluation or a few."""

    model_cpu_offload_seq = "student->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (the library's own form)

    def __init__(self, student: nn.Module, vae: nn.Module | None = None) -> None:
        """Create the pipeline; `vae` decodes the student's samples if they are latents."""
        super().__init__()
        student.network.to(next(student.parameters()).dtype)  # loading does not cast buffers
        self.register_modules(student=student, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | list[int] | Tensor | None = None,
        num_inference_steps: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        z: Tensor | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> "ImagePipelineOutput | tuple[Any]":
        """Draw samples.

        Args:
            batch_size: Number of samples; ignored if `latents` or `z` is given.
            class_labels: One label for all samples, or one per sample; -1 means "no label". None:
                sample i has the label `i % num_classes`, as in `pidistill sample`.
            num_inference_steps: Network evaluations per sample, at most `student.most_steps`.
            generator: Source of the noise, as in other pipelines.
            latents: Standard normal noise (b, ...), as in other pipelines.
            z: Starting noise (b, ...) from N(0, sigma_max^2 I).
            seed: Draw the noise as `pidistill sample --seed` does: sample i depends only on the
                seed and i.
            output_type: `pil`, `np` (b, h, w, c) or `pt` (b, c, h, w), both in [0, 1], or `raw`:
                the student's output, images in about [-1, 1] or latents, not decoded or clipped.
            return_dict: Whether to wrap the images in an `ImagePipelineOutput`.

        Raises:
            ValueError: An argument is out of range, or two arguments specify the noise.
        """
        most = self.student.most_steps
        if not 1 <= num_inference_steps <= most:
            expected = "1" if most == 1 else f"1 to {most}"
            raise ValueError(f"num_inference_steps is {num_inference_steps}; expected {expected}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {OUTPUT_TYPES}")
        z = self.prepare_noise(batch_size, generator, latents, z, seed)
        label = self.prepare_labels(class_labels, len(z))
        steps = () if most == 1 else (num_inference_steps,)
        images = self.postprocess(self.student(z, label, *steps), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare_noise(
        self,
        batch_size: int,
        generator: "torch.Generator | list[torch.Generator] | None",
        latents: Tensor | None,
        z: Tensor | None,
        seed: int | None,
    ) -> Tensor:
        """The starting noise, from the one argument that specifies it."""
        device = self._execution_device
        sources = {"generator": generator, "latents": latents, "z": z, "seed": seed}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; expected one source of noise")
        shape = (batch_size, *self.student.sample_shape)
        if seed is not None:
            z = initial_noise(self.student, batch_size, seed=seed)
        elif z is None:
            if latents is None:
                latents = randn_tensor(shape, generator=generator, device=device)
            z = self.student.sigma_max * latents
        if tuple(z.shape[1:]) != shape[1:]:
            raise ValueError(f"the noise has shape {tuple(z.shape)}; expected (b, *{shape[1:]})")
        return z.to(device, torch.float32)

    def prepare_labels(
        self, class_labels: "int | list[int] | Tensor | None", num: int
    ) -> Tensor | None:
        """Labels (num,), or None if the student is unconditional."""
        num_classes = self.student.num_classes
        if num_classes == 0:
            if class_labels is not None:
                raise ValueError(f"class_labels is {class_labels}; the student is unconditional")
            return None
        if class_labels is None:
            label = torch.arange(num) % num_classes
        else:
            label = torch.as_tensor(class_labels, dtype=torch.int64).cpu().expand(num)
        if (label < -1).any() or (label >= num_classes).any():
            raise ValueError(
                f"class_labels is {class_labels}; expected 0 .. {num_classes - 1}, or -1"
            )
        return label.to(self._execution_device)

    def postprocess(self, x: Tensor, output_type: str) -> Any:
        """Convert samples to `output_type`."""
        if output_type == "raw":
            return x
        if self.vae is not None:
            config = self.vae.config
            x = x / config.scaling_factor + (config.get("shift_factor") or 0)
            x = self.vae.decode(x, return_dict=False)[0]
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} are not images of 1 or 3 channels; "
                "use output_type='raw'"
            )
        images = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array
