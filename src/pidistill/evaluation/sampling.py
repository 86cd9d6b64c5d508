"""Who is measured: a student, a teacher, or given samples; each draws samples by their index."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.model_folder import is_model_folder, load_model
from pidistill.noise import device_of
from pidistill.ode import Solution, solve
from pidistill.paths import user_path
from pidistill.storage import weights_sha256
from pidistill.students.base import Student, sample_in_batches
from pidistill.teachers import load_teacher

NUM = 50_000
"""Samples that published distances are taken over."""
TEACHER_STEPS = 40
"""Nodes of Heun's method that stand for the teacher's solution."""
DECODED_AT_ONCE = 8
"""Latents turned into images at a time."""

OnBatch = Callable[[int], None]
"""Called with the number of samples in every batch that is done."""


@dataclasses.dataclass(frozen=True)
class ProportionalLabels:
    r"""Labels in the proportions of given ones; every stretch of samples keeps to them closely.

    The label of sample i is the quantile of $u_i = i \phi \bmod 1$, with the golden ratio $\phi$:
    the Kronecker sequence of least discrepancy (Niederreiter 1992).
    """

    counts: tuple[int, ...]
    """How often each label occurs."""

    def __call__(self, first: int, count: int) -> Tensor:
        """Labels (count,), int64, of the samples from `first` on."""
        index = torch.arange(first, first + count, dtype=torch.float64)
        quantile = (index * ((1 + math.sqrt(5)) / 2)) % 1
        shares = torch.tensor(self.counts, dtype=torch.float64).cumsum(0) / sum(self.counts)
        return torch.searchsorted(shares, quantile, right=True).clamp(max=len(shares) - 1)


class Subject(Protocol):
    """What draws the samples that are measured."""

    @property
    def decoder(self) -> nn.Module | None:
        """What turns samples that are latents into images."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is measured: of the image, where samples are latents."""

    @property
    def num_classes(self) -> int:
        """Number of labels; 0 means unconditional."""

    @property
    def device(self) -> torch.device:
        """Where samples are drawn, and measured."""

    def with_labels(self, labels: ProportionalLabels | None) -> "Subject":
        """The same, with these labels; None means that sample i has label `i % num_classes`."""

    def draw(self, seed: int, first: int, count: int, on_batch: OnBatch) -> Solution:
        """The samples `first .. first + count - 1` of a seed, with their cost in evaluations."""

    def count(self, num: int | None) -> int:
        """How many samples are measured where `num` are asked for; None means the usual number."""

    def identity(self, seed: int) -> dict[str, Any]:
        """All that these samples depend on, as JSON values."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A student, or a teacher whose equation is solved, as a `Subject`."""

    model: Student | Denoiser
    steps: int
    """Evaluations of a student, or a teacher's nodes."""
    solver: str = "heun"
    """Of a teacher (see `ode.solve`)."""
    labels: ProportionalLabels | None = None
    """None: sample i has label `i % num_classes`."""
    batch_size: int = 256
    decoder: nn.Module | None = None

    @functools.cached_property
    @torch.no_grad()
    def image_shape(self) -> tuple[int, ...]:
        """See `Subject`."""
        if self.decoder is None:
            return self.model.sample_shape
        zeros = torch.zeros(1, *self.model.sample_shape, device=device_of(self.decoder))
        return tuple(self.decoder(zeros).shape[1:])

    @property
    def num_classes(self) -> int:
        """See `Subject`."""
        return self.model.num_classes

    @property
    def device(self) -> torch.device:
        """See `Subject`."""
        return device_of(self.model)

    def with_labels(self, labels: ProportionalLabels | None) -> "Subject":
        """See `Subject`."""
        return dataclasses.replace(self, labels=labels)

    def draw(self, seed: int, first: int, count: int, on_batch: OnBatch) -> Solution:
        """See `Subject`."""
        label = None if self.labels is None else self.labels(first, count)
        generate = (
            self.model.generate
            if isinstance(self.model, Student)
            else functools.partial(teacher_samples, self.model, solver=self.solver)
        )
        return generate(
            count,
            seed=seed,
            steps=self.steps,
            label=label,
            first=first,
            batch_size=self.batch_size,
            on_batch=on_batch,
        )

    def count(self, num: int | None) -> int:
        """See `Subject`."""
        return NUM if num is None else num

    def identity(self, seed: int) -> dict[str, Any]:
        """See `Subject`; the batch size does not count."""
        model = self.model
        facts = {
            "model": type(model).__qualname__,
            "source": model.source,
            "weights": weights_sha256(model),
            "sigmas": [model.sigma_min, model.sigma_max, model.sigma_data],
            "shape": list(model.sample_shape),
            "num_classes": model.num_classes,
            "labels": repr(self.labels),
            "seed": seed,
            "steps": self.steps,
        }
        if isinstance(model, Student):
            how = {"options": model.options(), "precondition": repr(model.precondition)}
            return {**facts, **how}
        return {**facts, "solver": self.solver}


@dataclasses.dataclass(frozen=True)
class GivenSamples:
    """Anybody's samples as a `Subject`; their cost is not known, and is 0."""

    x: Tensor
    """Shape (n, *sample_shape), images in 8 bits or in [-1, 1]."""
    name: str
    device: torch.device
    """Where their features are computed."""
    decoder: None = None
    num_classes: int = 0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """See `Subject`."""
        return tuple(self.x.shape[1:])

    def with_labels(self, labels: ProportionalLabels | None) -> "Subject":
        """See `Subject`; given samples keep theirs."""
        return self

    def draw(self, seed: int, first: int, count: int, on_batch: OnBatch) -> Solution:
        """See `Subject`; there is one seed."""
        on_batch(count)
        return Solution(self.x[first : first + count], 0)

    def count(self, num: int | None) -> int:
        """See `Subject`: all, unless there are fewer asked for."""
        if num is not None and num > len(self.x):
            raise PidistillError(f"num is {num}, but {self.name} holds {len(self.x)} samples")
        return len(self.x) if num is None else num

    def identity(self, seed: int) -> dict[str, Any]:
        """See `Subject`."""
        return {"given": self.name}


def teacher_samples(
    teacher: Denoiser,
    num: int,
    *,
    seed: int,
    steps: int = TEACHER_STEPS,
    solver: str = "heun",
    label: int | Tensor | None = None,
    first: int = 0,
    batch_size: int = 256,
    on_batch: OnBatch = lambda count: None,
) -> Solution:
    """Samples of the teacher from the noise that a student of the same seed starts from.

    Arguments as in `Student.generate`, with nodes and solver as in `ode.solve`.
    """
    return sample_in_batches(
        teacher,
        lambda z, part, _: solve(teacher, z, steps=steps, solver=solver, label=part),
        num,
        seed=seed,
        label=label,
        first=first,
        batch_size=batch_size,
        on_batch=on_batch,
    )


@torch.no_grad()
def decoded(x: Tensor, decoder: nn.Module | None) -> Tensor:
    """The images of latents `x` (n, ...) on the decoder's device, or `x` without a decoder."""
    if decoder is None:
        return x
    device = device_of(decoder)
    return torch.cat([decoder(part.to(device)) for part in x.split(DECODED_AT_ONCE)])


def open_model(name: str | Path, ema: float | None = None) -> Student | Denoiser:
    """The model in a run folder, with the weights averaged at rate `ema`, or a teacher by its spec.

    Raises `PidistillError` when it is neither, or when `ema` is given for a teacher's spec.
    """
    path = user_path(name)
    if is_model_folder(path):
        model = load_model(path, ema)
        return model.eval().requires_grad_(False)
    if path.is_dir() and (path / "config.toml").is_file():
        raise PidistillError(f"{name} holds a run that has not saved its first checkpoint yet")
    if ema is not None:
        raise PidistillError(f"ema is {ema:g}, but {str(name)!r} is not a run folder")
    return load_teacher(str(name))
