r"""Samples to measure, drawn in blocks by as many processes as there are, and kept on the disk.

Sample i depends on the seed and on i only. A block is a range of `BLOCK` consecutive indices; one
process draws it and writes it at once or not at all. So an evaluation that was killed goes on where
it was, and any number of processes draws the same samples.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pidistill import __version__, images
from pidistill.errors import PidistillError
from pidistill.evaluation.sampling import OnBatch, Subject, decoded
from pidistill.files import sha256_of
from pidistill.ode import Solution
from pidistill.processes import Processes
from pidistill.storage import read_tensors, write_tensors

BLOCK = 512
"""Samples in a block: what a killed evaluation loses at most, for each process."""

T = TypeVar("T")


def as_measured(x: Tensor, decoder: nn.Module | None = None) -> Tensor:
    """Samples (n, ...), or their images where there is a decoder: images in 8 bits, else float32.

    What is in 8 bits already is returned unchanged.
    """
    x = decoded(x, decoder)
    if x.dtype == torch.uint8:
        return x
    return images.to_uint8(x) if images.is_image(tuple(x.shape[1:])) else x.float()


def as_pixels(x: Tensor) -> Tensor:
    """Samples in the numbers that are compared: float32, images in [-1, 1]."""
    return images.from_uint8(x) if x.dtype == torch.uint8 else x.float()


class Blocks:
    """The blocks of a subject's samples under one seed, kept in a folder where there is a store.

    The folder's name is a hash of all that the samples depend on: what other weights, another seed
    or another version drew is never taken for them.
    """

    def __init__(self, subject: Subject, seed: int, store: Path | None = None) -> None:
        """Name the folder in `store`; without a store, blocks are drawn on each request."""
        self.subject, self.seed = subject, seed
        self.folder: Path | None = None
        if store is not None:
            facts = {**subject.identity(seed), "block": BLOCK, "version": __version__}
            self.folder = store / sha256_of(facts)[:16]

    def count(self) -> int:
        """How many blocks were drawn before."""
        return 0 if self.folder is None else len(list(self.folder.glob("*.safetensors")))

    def get(self, block: range, on_batch: OnBatch = lambda count: None) -> Solution:
        """The samples of a block as the model draws them, on the CPU: read, or drawn and kept.

        Raises `PidistillError` when the file of the block is damaged, or samples are not finite.
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

    def _draw(self, block: range, on_batch: OnBatch) -> Solution:
        x, nfe = self.subject.draw(self.seed, block.start, len(block), on_batch)
        x = x.cpu()
        finite = x.flatten(1).isfinite().all(1)
        if not finite.all():  # they would be rounded to numbers
            raise PidistillError(
                f"{int((~finite).sum())} of the {len(x)} samples {block.start} .. {block.stop - 1} "
                f"of seed {self.seed} are not finite; has the training diverged?"
            )
        return Solution(x, nfe)


def blocks(num: int) -> list[range]:
    """The blocks of the samples 0 .. num - 1."""
    return [range(first, min(first + BLOCK, num)) for first in range(0, num, BLOCK)]


def own_share(num: int, processes: Processes) -> int:
    """How many of `num` samples this process draws."""
    return sum(len(block) for block in blocks(num)[processes.index :: processes.count])


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
