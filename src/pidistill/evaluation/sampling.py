"""Samples to measure: drawn by a student or a teacher in stored blocks, or given.

Sample i depends only on the seed and on i. A block is a range of consecutive indices that one
process draws and writes atomically, so that a killed evaluation resumes where it stopped, and any
number of processes draws the same samples.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill import __version__
from pidistill.denoiser import Denoiser
from pidistill.errors import PidistillError
from pidistill.files import sha256_of
from pidistill.model_folder import is_model_folder, load_model
from pidistill.noise import device_of
from pidistill.ode import Solution, solve
from pidistill.paths import user_path
from pidistill.processes import Processes
from pidistill.storage import read_tensors, weights_sha256, write_tensors
from pidistill.students.base import Student, require_finite, sample_in_batches
from pidistill.teachers import load_teacher

TEACHER_STEPS = 40
"""Nodes of Heun's method for the teacher's solution."""
BLOCK = 512
"""Samples per block: the most that each process of a killed evaluation loses."""
DECODED_AT_ONCE = 8
"""Latents decoded at a time."""

OnBatch = Callable[[int], None]
"""Called with the number of samples in each completed batch."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws samples from a student, or from a teacher by solving its ODE."""

    model: Student | Denoiser
    steps: int
    """Evaluations per sample of a student, or solver nodes of a teacher."""
    refine: int = 0
    """Further evaluations per sample of a student that refines (`Student.refine`)."""
    solver: str = "heun"
    """The solver of a teacher (see `ode.solve`)."""
    seed: int = 0
    batch_size: int = 256
    decoder: nn.Module | None = None
    """Turns latents into images."""
    store: Path | None = None
    """Folder for blocks; None draws them on each request."""

    @functools.cached_property
    @torch.no_grad()
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample as measured: that of the image if samples are latents."""
        if self.decoder is None:
            return self.model.sample_shape
        zeros = torch.zeros(1, *self.model.sample_shape, device=device_of(self.decoder))
        return tuple(self.decoder(zeros).shape[1:])

    @property
    def device(self) -> torch.device:
        """Where samples are drawn and measured."""
        return device_of(self.model)

    def draw(self, block: range, on_batch: OnBatch = lambda count: None) -> Solution:
        """The undecoded samples of a block, on the CPU: read, or drawn and stored.

        Raises `PidistillError` if the file of the block is damaged.
        """
        if self.folder is None:
            return self._draw(block, on_batch)
        path = self.folder / f"{block.start:09d}-{block.stop:09d}.safetensors"
        if path.is_file():
            kept = read_tensors(path)
            on_batch(len(block))
            return Solution(kept["x"], int(kept["nfe"]))
        drawn = self._draw(block, on_batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"x": drawn.x, "nfe": torch.tensor(drawn.nfe)})
        return drawn

    @functools.cached_property
    def folder(self) -> Path | None:
        """The folder of blocks, named by a hash of everything that samples depend on."""
        if self.store is None:
            return None
        model = self.model
        facts: dict[str, Any] = {
            "model": type(model).__qualname__,
            "source": model.source,
            "weights": weights_sha256(model),
            "sigmas": [model.sigma_min, model.sigma_max, model.sigma_data],
            "shape": list(model.sample_shape),
            "num_classes": model.num_classes,
            "seed": self.seed,
            "steps": self.steps,
            "block": BLOCK,
            "version": __version__,
        }
        if isinstance(model, Student):
            facts |= {"options": model.options(), "precondition": repr(model.precondition)}
            facts["refine"] = self.refine
        else:
            facts["solver"] = self.solver
        return self.store / sha256_of(facts)[:16]

    def _draw(self, block: range, on_batch: OnBatch) -> Solution:
        generate = (
            functools.partial(self.model.generate, refine=self.refine)
            if isinstance(self.model, Student)
            else functools.partial(teacher_samples, self.model, solver=self.solver)
        )
        x, nfe = generate(
            len(block),
            seed=self.seed,
            steps=self.steps,
            first=block.start,
            batch_size=self.batch_size,
            on_batch=on_batch,
        )
        return Solution(x.cpu(), nfe)


@dataclasses.dataclass(frozen=True)
class GivenSamples:
    """Given samples, in place of a `Sampler`; their NFE is unknown, and set to 0."""

    x: Tensor
    """Shape (n, *sample_shape); images are uint8 or in [-1, 1]."""
    device: torch.device
    """Where their features are computed."""
    seed: int = 0
    """Has no effect."""
    decoder: None = None
    folder: None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def draw(self, block: range, on_batch: OnBatch = lambda count: None) -> Solution:
        """The samples of a block."""
        on_batch(len(block))
        x = self.x[block.start : block.stop].cpu()
        require_finite(x, "the file", block.start)
        return Solution(x, 0)


Subject = Sampler | GivenSamples
"""What is measured."""


def blocks(num: int) -> list[range]:
    """The blocks of samples 0 .. num - 1."""
    return [range(first, min(first + BLOCK, num)) for first in range(0, num, BLOCK)]


def own_share(num: int, processes: Processes) -> int:
    """How many of `num` samples this process draws."""
    return sum(len(block) for block in blocks(num)[processes.index :: processes.count])


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
    """Samples of the teacher, from the same noise as a student with this seed.

    Arguments as in `Student.generate`; `steps` and `solver` as in `ode.solve`.
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
    """Images of latents `x` (n, ...), on the decoder's device; `x` without a decoder.

    Raises `PidistillError` if an image is not finite.
    """
    if decoder is None:
        return x
    device = device_of(decoder)
    decoded = torch.cat([decoder(part.to(device)) for part in x.split(DECODED_AT_ONCE)])
    require_finite(decoded, "the latent decoder")
    return decoded


def open_model(name: str | Path, ema: float | None = None) -> Student | Denoiser:
    """Load a run folder's model, with the weights averaged at rate `ema`, or a teacher by spec.

    Raises `PidistillError` if it is neither, or if `ema` is given for a spec.
    """
    path = user_path(name)
    if is_model_folder(path):
        return load_model(path, ema).eval().requires_grad_(False)
    if path.is_dir() and (path / "config.toml").is_file():
        raise PidistillError(f"{name} holds a run that has not saved its first checkpoint yet")
    if ema is not None:
        raise PidistillError(f"ema is {ema:g}, but {str(name)!r} is not a run folder")
    return load_teacher(str(name))
