"""The diffusers pipeline of an exported student; `diffusers_models` has its models.

`pidistill.export.bundle` copies it into exports, so diffusers is needed to open one, not to write
it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (  # type: ignore[import-not-found, unused-ignore]
    DiffusionPipeline,
    ImagePipelineOutput,
)
from diffusers.callbacks import (  # type: ignore[import-not-found, unused-ignore]
    MultiPipelineCallbacks,
    PipelineCallback,
)
from diffusers.utils.torch_utils import (  # type: ignore[import-not-found, unused-ignore]
    randn_tensor,
)
from torch import Tensor, nn

from pidistill.noise import initial_noise

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "raw")

Labels = int | str | Sequence[int | str] | Tensor | None


class OneStepPipeline(DiffusionPipeline):  # type: ignore[misc, unused-ignore]
    """Generates images by a student distilled by pidistill, in one network evaluation or a few."""

    model_cpu_offload_seq = "student->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (the library's own form)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(self, student: nn.Module, vae: nn.Module | None = None) -> None:
        """Create the pipeline; `vae` decodes the student's samples if they are latents."""
        super().__init__()
        student.network.to(next(student.parameters()).dtype)  # loading does not cast buffers
        self.register_modules(student=student, vae=vae)

    @property
    def labels(self) -> dict[str, int]:
        """The label of every class or prompt; empty if the student does not know their names."""
        return {name: label for label, name in enumerate(self.student.class_names)}

    @property
    def num_timesteps(self) -> int:
        """Network evaluations per sample of the latest call, for callbacks."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Labels = None,
        num_inference_steps: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        z: Tensor | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_images_per_prompt: int = 1,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> "ImagePipelineOutput | tuple[Any]":
        """Draw samples.

        Args:
            batch_size: Number of samples, or with `num_images_per_prompt` of groups of samples.
                None: as many as there are latents, or else labels.
            class_labels: One label for all samples, or one per sample: numbers, or names of classes
                or prompts (`labels`); -1 means "no label". None: sample i has the label
                `i % num_classes`, as in `pidistill sample`.
            num_inference_steps: Network evaluations per sample, at most `student.most_steps`.
            generator: Source of the noise, or a list with one for every sample.
            latents: Standard normal noise (b, ...), as in other pipelines.
            z: Starting noise (b, ...) from N(0, sigma_max^2 I).
            seed: Draw the noise as `pidistill sample --seed` does: sample i depends only on the
                seed and i.
            output_type: `pil`, `np` (b, h, w, c) or `pt` (b, c, h, w), both in [0, 1]; `latent` or
                `raw`: the student's output, images in about [-1, 1] or latents, not decoded or
                clipped.
            return_dict: Whether to wrap the images in an `ImagePipelineOutput`.
            num_images_per_prompt: Samples in a row with each label.
            callback_on_step_end: Called after every evaluation as
                `callback(pipeline, step, timestep, {"latents": x})`; sampling goes on from the
                "latents" of what it returns. `timestep` is the noise level as the network sees it.
            callback_on_step_end_tensor_inputs: What it receives: `("latents",)` or nothing.

        Raises:
            ValueError: An argument is out of range, or two arguments contradict each other.
        """
        tensor_inputs = callback_on_step_end_tensor_inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(num_inference_steps, output_type, tensor_inputs)
        label = self.prepare_labels(class_labels)
        groups = self.count_groups(batch_size, label, latents, z, num_images_per_prompt)
        noise = self.prepare_noise(groups * num_images_per_prompt, generator, latents, z, seed)
        label = self.spread_labels(label, groups, num_images_per_prompt)
        x = self.draw(noise, label, num_inference_steps, callback_on_step_end, tensor_inputs)
        images = self.postprocess(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def draw(
        self,
        noise: Tensor,
        label: Tensor | None,
        steps: int,
        callback: Callable[..., dict[str, Any]] | None,
        tensor_inputs: Sequence[str],
    ) -> Tensor:
        """The student's samples, under a progress bar, with the callback after every evaluation."""
        self._num_timesteps = steps
        with self.progress_bar(total=steps) as progress_bar:

            def after(step: int, c_noise: float, x: Tensor) -> Tensor:
                progress_bar.update()
                if callback is None:
                    return x
                given = dict.fromkeys(tensor_inputs, x)
                return callback(self, step, torch.tensor(c_noise), given).pop("latents", x)

            return self.student(noise, label, steps, after)

    def check_inputs(
        self, num_inference_steps: int, output_type: str, tensor_inputs: Sequence[str]
    ) -> None:
        """Raise `ValueError` if one of these arguments is out of range."""
        most = self.student.most_steps
        if not 1 <= num_inference_steps <= most:
            expected = "1" if most == 1 else f"1 to {most}"
            raise ValueError(f"num_inference_steps is {num_inference_steps}; expected {expected}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {OUTPUT_TYPES}")
        for name in tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise ValueError(
                    f"callback_on_step_end_tensor_inputs has {name!r}; expected no more than "
                    f"{self._callback_tensor_inputs}"
                )

    def count_groups(
        self,
        batch_size: int | None,
        label: Tensor | None,
        latents: Tensor | None,
        z: Tensor | None,
        num_images_per_prompt: int,
    ) -> int:
        """The number of groups of `num_images_per_prompt` samples."""
        if num_images_per_prompt < 1:
            raise ValueError(
                f"num_images_per_prompt is {num_images_per_prompt}; expected at least 1"
            )
        given = z if latents is None else latents
        if batch_size is None:
            in_labels = 1 if label is None else label.numel()
            batch_size = in_labels if given is None else len(given) // num_images_per_prompt
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        return batch_size

    def prepare_noise(
        self,
        num: int,
        generator: "torch.Generator | list[torch.Generator] | None",
        latents: Tensor | None,
        z: Tensor | None,
        seed: int | None,
    ) -> Tensor:
        """The starting noise of `num` samples, from the one argument that specifies it."""
        device = self._execution_device
        sources = {"generator": generator, "latents": latents, "z": z, "seed": seed}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; expected one source of noise")
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"generator is a list of {len(generator)}; expected {num}")
        shape = (num, *self.student.sample_shape)
        if seed is not None:
            z = initial_noise(self.student, num, seed=seed)
        elif z is None:
            if latents is None:
                latents = randn_tensor(shape, generator=generator, device=device)
            z = self.student.sigma_max * latents
        if tuple(z.shape) != shape:
            raise ValueError(f"the noise has shape {tuple(z.shape)}; expected {shape}")
        return z.to(device, torch.float32)

    def prepare_labels(self, class_labels: Labels) -> Tensor | None:
        """The numbers of the labels as they are given, shape () or (n,), or None."""
        if class_labels is None:
            return None
        num_classes = self.student.num_classes
        if num_classes == 0:
            raise ValueError(f"class_labels is {class_labels}; the student is unconditional")
        label = torch.as_tensor(self.get_label_ids(class_labels))
        if label.is_floating_point() or (label < -1).any() or (label >= num_classes).any():
            raise ValueError(
                f"class_labels is {class_labels}; expected 0 .. {num_classes - 1}, or -1"
            )
        return label.to(torch.int64)

    def spread_labels(
        self, label: Tensor | None, groups: int, num_images_per_prompt: int
    ) -> Tensor | None:
        """The labels of all samples, or None if the student is unconditional."""
        if self.student.num_classes == 0:
            return None
        if label is None:
            label = torch.arange(groups) % self.student.num_classes
        if label.shape not in ((), (1,), (groups,)):
            raise ValueError(
                f"class_labels has shape {tuple(label.shape)}; expected one label, or {groups}"
            )
        label = label.to(self._execution_device).expand(groups)
        return label.repeat_interleave(num_images_per_prompt)

    def get_label_ids(self, label: Labels) -> Any:
        """Labels with the names of classes or prompts replaced by their numbers."""
        if isinstance(label, list | tuple):
            return [self.get_label_ids(one) for one in label]
        if isinstance(label, str) and label not in self.labels:
            known = ", ".join(self.labels) or "a number, since the classes have no names"
            raise ValueError(f"class_labels has {label!r}; expected one of {known}")
        return self.labels[label] if isinstance(label, str) else label

    def postprocess(self, x: Tensor, output_type: str) -> Any:
        """Convert samples to `output_type`."""
        if output_type in ("latent", "raw"):
            return x
        if self.vae is not None:
            config = self.vae.config
            x = x / config.scaling_factor + (config.get("shift_factor") or 0)
            x = self.vae.decode(x.to(self.vae.dtype), return_dict=False)[0]
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
