"""Statistics of a batch that several processes evaluate in several micro-batches."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.methods.base import Losses
from pidistill.processes import Processes


class LogSigmaBins:
    """Bins of width 1 in ln(sigma), for the loss as a function of the noise level."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        """Cover `sigma_min` to `sigma_max`; the end bins include everything beyond."""
        self.first = math.floor(math.log(sigma_min))
        self.num = math.floor(math.log(sigma_max)) - self.first + 1

    def sums(self, losses: Losses) -> Tensor:
        """The sums of the losses per bin, followed by their counts, shape (2 num,), float64."""
        ln_sigma = losses.sigma.detach().cpu().double().log()
        index = (ln_sigma.floor().long() - self.first).clamp(0, self.num - 1)
        loss = losses.loss.detach().cpu().double()
        weighted = torch.bincount(index, loss, self.num)
        return torch.cat([weighted, torch.bincount(index, minlength=self.num).double()])


class BatchMeans(NamedTuple):
    """The means of a whole batch, the same in every process."""

    means: dict[str, float]
    """The mean `loss` and the mean scalars."""
    by_sigma: dict[str, tuple[float, float]]
    """Mean loss and number of samples, by the lower edge of the bin in ln(sigma)."""


def batch_means(
    measured: list[Losses], processes: Processes, bins: LogSigmaBins, step: int
) -> BatchMeans:
    """The means of a batch over its micro-batches and processes.

    Args:
        measured: The losses of this process's micro-batches, all of the same size.
        processes: The processes that share the batch.
        bins: Bins of noise levels.
        step: Optimizer steps done so far, for the error message.

    Raises:
        PidistillError: The mean loss is not finite; every process raises it.
    """
    values = torch.stack([_numbers(losses) for losses in measured]).mean(0).tolist()
    by_bin = torch.stack([bins.sums(losses) for losses in measured]).sum(0).tolist()
    sums = processes.sum([*values, *by_bin])
    means = [total / processes.count for total in sums[: len(values)]]
    if not math.isfinite(means[0]):
        raise PidistillError(
            f"the loss is {means[0]} at step {step + 1} ({_where_not_finite(measured, processes)});"
            " the last checkpoint is kept; lower learning_rate, or set max_grad_norm"
        )
    totals, counts = sums[len(values) :][: bins.num], sums[len(values) :][bins.num :]
    by_sigma = {
        str(bins.first + index): (total / count, count)
        for index, (total, count) in enumerate(zip(totals, counts, strict=True))
        if count
    }
    return BatchMeans(dict(zip(("loss", *measured[0].scalars), means, strict=True)), by_sigma)


def _numbers(losses: Losses) -> Tensor:
    """The mean loss and the scalars, in double precision."""
    loss = losses.loss.mean().double()
    return torch.stack([loss, *(scalar.to(loss) for scalar in losses.scalars.values())])


def _where_not_finite(measured: list[Losses], processes: Processes) -> str:
    """The noise levels of the non-finite losses, as text."""
    bad = [losses.sigma.cpu()[~losses.loss.cpu().isfinite()] for losses in measured]
    sigma = torch.cat(processes.share(processes.gather(torch.cat(bad))))
    return f"sigma {sigma.min():.4g} .. {sigma.max():.4g}" if len(sigma) else "every sigma"
