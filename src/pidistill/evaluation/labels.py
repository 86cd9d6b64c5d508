"""Which labels samples are drawn with: evenly, or in the proportions of a reference."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pidistill.errors import PidistillError

Labels = Callable[[int, int], Tensor | None]
"""Labels (count,) of the samples `first .. first + count - 1`; None means those of the model."""


def even_labels(first: int, count: int) -> None:
    """The model's own choice: sample i has label `i % num_classes`."""


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
