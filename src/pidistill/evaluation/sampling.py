r"""Samples to measure, drawn in blocks by as many processes as there are, and kept on the disk.

Sample i depends on the seed and on i only. A block is a range of `BLOCK` consecutive indices; it is
drawn by one process and written at once or not at all, so that a run that was killed goes on where
it was, and the same samples come for any number of processes.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import pidistill
from pidistill import images
from pidistill.data.noise import device_of
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.ode import Solution, solve
from pidistill.processes import Processes
from pidistill.storage import read_tensors, weights_sha256, write_tensors
from pidistill.student import Student, sample_in_batches

BLOCK = 512
"""Samples in a block: what a killed run loses at most, for each process."""

DECODED_AT_ONCE = 8
"""Latents turned into images at a time."""

TEACHER_STEPS = 40
"""Nodes of Heun's method that stand for the teacher's solution."""

Labels = Callable[[int, int], Tensor | None]
"""Labels (count,) of the samples `first .. first + count - 1`; None means those of the model."""

T = TypeVar("T")


class Sampler(NamedTuple):
    """Who is measured: it draws any consecutive samples of one seed."""

    draw: Callable[[int, int], Solution]
    """The samples `first .. first + count - 1` with their cost, float32, on any device."""
    identity: dict[str, Any]
    """All that the samples depend on, as JSON values."""


def even_labels(first: int, count: int) -> None:
    """The model's own choice: sample i has label `i % num_classes`."""


@dataclasses.dataclass(frozen=True)
class ProportionalLabels:
    r"""Labels in the proportions of given ones; every stretch of samples keeps to them closely.

    The label of sample i is the quantile of $u_i = i \phi \bmod 1$, with the golden ratio $\phi$:
    the additive recurrence of least discrepancy (Niederreiter 1992, section 3.1).
    """

    counts: tuple[int, ...]
    """How often each label occurs."""

    def __call__(self, first: int, count: int) -> Tensor:
        """Labels (count,), int64, of the samples from `first` on."""
        index = torch.arange(first, first + count, dtype=torch.float64)
        quantile = (index * ((1 + math.sqrt(5)) / 2)) % 1
        shares = torch.tensor(self.counts, dtype=torch.float64).cumsum(0) / sum(self.counts)
        return torch.searchsorted(shares, quantile, right=True).clamp(max=len(shares) - 1)


def labels_like(labels: Tensor | None, num_classes: int, name: str) -> ProportionalLabels:
    """Labels in the proportions of the reference's `labels` (n,), for a model of `num_classes`.

    Raises `PidistillError` when the reference, which `name` names, has none or other ones.
    """
    if num_classes == 0:
        raise PidistillError("--labels reference, but the model is not class-conditional")
    if labels is None:
        raise PidistillError(f"--labels reference, but the reference {name} has no labels")
    if int(labels.max()) >= num_classes:
        raise PidistillError(
            f"--labels reference: {name} has the label {int(labels.max())}; the model knows "
            f"0 .. {num_classes - 1}"
        )
    return ProportionalLabels(tuple(torch.bincount(labels, minlength=num_classes).tolist()))


def student_sampler(
    student: Student,
    *,
    seed: int,
    steps: int = 1,
    labels: Labels = even_labels,
    decoder: nn.Module | None = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Sampler:
    """A student as a sampler; arguments as in `Student.generate`.

    Args:
        student: The student.
        seed: The seed.
        steps: Evaluations a sample.
        labels: Whose labels samples have.
        decoder: What turns samples that are latents into images; None leaves them.
        batch_size: Samples evaluated at once.
        on_batch: Called after every batch with its size.
    """

    def draw(first: int, count: int) -> Solution:
        drawn = student.generate(
            count,
            seed=seed,
            steps=steps,
            label=labels(first, count),
            first=first,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        return Solution(decoded(decoder, drawn.x), drawn.nfe)

    settings = {"options": student.options(), "precondition": repr(student.precondition)}
    return Sampler(draw, _identity(student, seed, steps, labels, decoder) | settings)


def teacher_sampler(
    teacher: Denoiser,
    *,
    seed: int,
    steps: int = TEACHER_STEPS,
    solver: str = "heun",
    labels: Labels = even_labels,
    decoder: nn.Module | None = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Sampler:
    """A teacher as a sampler, from the noise that a student of the same seed starts from.

    Arguments as in `student_sampler`, with the nodes of the `solver` (see `ode.solve`) as `steps`.
    """

    def draw(first: int, count: int) -> Solution:
        drawn = teacher_samples(
            teacher,
            count,
            seed=seed,
            steps=steps,
            solver=solver,
            label=labels(first, count),
            first=first,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        return Solution(decoded(decoder, drawn.x), drawn.nfe)

    return Sampler(draw, _identity(teacher, seed, steps, labels, decoder) | {"solver": solver})


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
    on_batch: Callable[[int], None] = lambda count: None,
) -> Solution:
    """Samples of the teacher from the noise that a student of the same seed starts from.

    Arguments as in `Student.generate`, with the solver's steps; the cost is that of the solver.
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
def decoded(decoder: nn.Module | None, x: Tensor) -> Tensor:
    """The images of latents `x` (n, ...), or `x` where there is no decoder."""
    if decoder is None:
        return x
    device = device_of(decoder)
    return torch.cat([decoder(part.to(device)) for part in x.split(DECODED_AT_ONCE)])


def rounded(x: Tensor) -> Tensor:
    """Samples as they are measured, on the CPU: images in 8 bits, anything else as it is."""
    return (images.to_uint8(x) if images.is_image(tuple(x.shape[1:])) else x.float()).cpu()


class BlockFolder:
    """Where blocks of samples are kept until they are measured.

    The folder's name is a hash of all that the samples depend on: what other weights, another seed
    or another version drew is never taken for them.
    """

    def __init__(self, parent: Path, sampler: Sampler) -> None:
        """Name the folder for the samples of `sampler` in `parent`; nothing is written yet."""
        identity = {**sampler.identity, "version": pidistill.__version__}
        text = json.dumps(identity, sort_keys=True, default=str)
        self.sampler = sampler
        self.folder = parent / hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_there(self, block: range) -> bool:
        """Whether a block was drawn before."""
        return self._path(block).is_file()

    def block(self, block: range) -> Solution:
        """The samples of a block as they are measured (see `rounded`): read, or drawn and kept.

        Raises `PidistillError` when the file of the block is damaged.
        """
        path = self._path(block)
        if path.is_file():
            kept = read_tensors(path)
            return Solution(kept["x"], int(kept["nfe"]))
        drawn = draw_block(self.sampler, block)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"x": drawn.x, "nfe": torch.tensor(drawn.nfe)})
        return drawn

    def remove(self) -> None:
        """Remove all blocks, and the parent folder where it holds nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()

    def _path(self, block: range) -> Path:
        return self.folder / f"{block.start:09d}-{block.stop:09d}.safetensors"


def draw_block(sampler: Sampler, block: range) -> Solution:
    """The samples of a block as they are measured (see `rounded`)."""
    drawn = sampler.draw(block.start, len(block))
    return Solution(rounded(drawn.x), drawn.nfe)


def blocks(num: int) -> list[range]:
    """The blocks of the samples 0 .. num - 1."""
    return [range(first, min(first + BLOCK, num)) for first in range(0, num, BLOCK)]


def in_order(num: int, work: Callable[[range], T], processes: Processes) -> Iterator[T]:
    """Do `work` for every block of `num` samples, each block in one of the processes.

    Yields:
        What `work` returns, block by block, in the main process; nothing in the others, which have
        to iterate all the same.
    """
    every = blocks(num)
    for first in range(0, len(every), processes.count):
        own = every[first + processes.index :][:1]
        for results in processes.gather([work(block) for block in own]):
            yield from results


def _identity(
    model: Student | Denoiser, seed: int, steps: int, labels: Labels, decoder: nn.Module | None
) -> dict[str, Any]:
    return {
        "model": type(model).__qualname__,
        "source": model.source,
        "weights": weights_sha256(model),
        "decoder": None if decoder is None else weights_sha256(decoder),
        "sigmas": [model.sigma_min, model.sigma_max, model.sigma_data],
        "shape": list(model.sample_shape),
        "num_classes": model.num_classes,
        "labels": repr(labels) if isinstance(labels, ProportionalLabels) else "even",
        "seed": seed,
        "steps": steps,
        "block": BLOCK,
    }
