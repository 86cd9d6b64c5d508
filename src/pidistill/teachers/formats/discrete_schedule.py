"""The preconditioning of a network that was trained on a table of noise levels."""

import torch
from torch import Tensor

from pidistill.precondition.discrete import DiscreteVPPrecondition
from pidistill.teachers.formats import RefusedError

FULL, CUT = 200.0, 80.0


def table_precondition(
    sigmas: Tensor,
    prediction_type: str,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    timestep_scale: float = 1.0,
) -> DiscreteVPPrecondition:
    """The preconditioning of a variance-preserving network on increasing levels `sigmas` (T,).

    The range of noise levels is that of the table, unless `sigma_min` and `sigma_max` narrow it.
    Above 200 nothing of the image remains and `x - sigma F` suffers cancellation, so a table that
    goes higher is used up to 80, as in EDM's sampler, unless `sigma_max` says otherwise.

    Raises `RefusedError` if the range does not lie within the table.
    """
    levels = sigmas.double()
    first, last = levels[0].item(), levels[-1].item()
    low = first if sigma_min is None else sigma_min
    high = (CUT if last > FULL else last) if sigma_max is None else sigma_max
    if not first <= low < high <= last:
        raise RefusedError(
            f"was trained on noise levels from {first:g} to {last:g}; sigma_min is {low:g} and "
            f"sigma_max is {high:g}"
        )
    table = torch.reciprocal(1 + levels**2).tolist()
    return DiscreteVPPrecondition(table, low, high, prediction_type, timestep_scale=timestep_scale)
