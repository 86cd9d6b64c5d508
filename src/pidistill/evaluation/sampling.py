r"""Samples to measure, drawn in blocks by as many processes as there are, and kept on the disk.

Sample i depends on the seed and on i only. A block is a range of `BLOCK` consecutive indices; it is
drawn by one process and written at once or not at all, so that a run that was killed goes on where
it was, and the same samples come for any number of processes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import pidistill
from pidistill import images
from pidistill.denoiser import Denoiser
from pidistill.evaluation.labels import Labels, ProportionalLabels, even_labels
from pidistill.noise import device_of
from pidistill.ode import Solution, solve
from pidistill.processes import Processes
from pidistill.storage import read_tensors, weights_sha256, write_tensors
from pidistill.students.base import Student, sample_in_batches

BLOCK = 512
"""Samples in a block: what a killed run loses at most, for each process."""

SUFFIX = ".safetensors"

DECODED_AT_ONCE = 8
"""Latents turned into images at a time."""

TEACHER_STEPS = 40
"""Nodes of Heun's method that stand for the teacher's solution."""

T = TypeVar("T")


class Sampler(NamedTuple):
    """Who is measured: it draws any consecutive samples of one seed."""

    draw: Callable[[int, int], Solution]
    """The samples `first .. first + count - 1` with their cost, on any device."""
    identity: dict[str, Any]
    """All that the samples depend on, as JSON values."""


def student_sampler(
    student: Student,
    *,
    seed: int,
    steps: int = 1,
    labels: Labels = even_labels,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Sampler:
    """A student as a sampler; arguments as in `Student.generate`.

    Args:
        student: The student.
        seed: The seed.
        steps: Evaluations a sample.
        labels: Whose labels samples have.
        batch_size: Samples evaluated at once.
        on_batch: Called after every batch with its size.
    """

    def draw(first: int, count: int) -> Solution:
        return student.generate(
            count,
            seed=seed,
            steps=steps,
            label=labels(first, count),
            first=first,
            batch_size=batch_size,
            on_batch=on_batch,
        )

    settings = {"options": student.options(), "precondition": repr(student.precondition)}
    return Sampler(draw, _identity(student, seed, steps, labels) | settings)


def teacher_sampler(
    teacher: Denoiser,
    *,
    seed: int,
    steps: int = TEACHER_STEPS,
    solver: str = "heun",
    labels: Labels = even_labels,
    batch_size: int = 256,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Sampler:
    """A teacher as a sampler, from the noise that a student of the same seed starts from.

    Arguments as in `student_sampler`, with the nodes of the `solver` (see `ode.solve`) as `steps`.
    """

    def draw(first: int, count: int) -> Solution:
        return teacher_samples(
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

    return Sampler(draw, _identity(teacher, seed, steps, labels) | {"solver": solver})


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


def measured(sampler: Sampler, decoder: nn.Module | None = None) -> Sampler:
    """What is measured of a sampler (see `as_measured`), as a sampler."""

    def draw(first: int, count: int) -> Solution:
        drawn = sampler.draw(first, count)
        return Solution(as_measured(drawn.x, decoder), drawn.nfe)

    name = None if decoder is None else weights_sha256(decoder)
    return Sampler(draw, {**sampler.identity, "measured": True, "decoder": name})


def array_sampler(given: Solution, name: str) -> Sampler:
    """Samples that are there already as a sampler; `name` says which they are."""

    def draw(first: int, count: int) -> Solution:
        return Solution(given.x[first : first + count], given.nfe)

    return Sampler(draw, {"given": name})


def as_measured(x: Tensor, decoder: nn.Module | None = None) -> Tensor:
    """Samples (n, ...), or their images where there is a decoder: images in 8 bits, else float32.

    What is in 8 bits stays as it is.
    """
    x = decoded(x, decoder)
    if x.dtype == torch.uint8:
        return x
    return images.to_uint8(x) if images.is_image(tuple(x.shape[1:])) else x.float()


@torch.no_grad()
def decoded(x: Tensor, decoder: nn.Module | None) -> Tensor:
    """The images of latents `x` (n, ...), or `x` where there is no decoder."""
    if decoder is None:
        return x
    device = device_of(decoder)
    return torch.cat([decoder(part.to(device)) for part in x.split(DECODED_AT_ONCE)])


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

    def count(self) -> int:
        """How many blocks were drawn before."""
        return len(list(self.folder.glob(f"*{SUFFIX}")))

    def block(self, block: range) -> Solution:
        """The samples of a block, on the CPU: read, or drawn and kept.

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
        return self.folder / f"{block.start:09d}-{block.stop:09d}{SUFFIX}"


def draw_block(sampler: Sampler, block: range) -> Solution:
    """The samples of a block, on the CPU."""
    drawn = sampler.draw(block.start, len(block))
    return Solution(drawn.x.cpu(), drawn.nfe)


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


def _identity(model: Student | Denoiser, seed: int, steps: int, labels: Labels) -> dict[str, Any]:
    return {
        "model": type(model).__qualname__,
        "source": model.source,
        "weights": weights_sha256(model),
        "sigmas": [model.sigma_min, model.sigma_max, model.sigma_data],
        "shape": list(model.sample_shape),
        "num_classes": model.num_classes,
        "labels": repr(labels) if isinstance(labels, ProportionalLabels) else "even",
        "seed": seed,
        "steps": steps,
        "block": BLOCK,
    }
