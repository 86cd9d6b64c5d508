"""What is measured of a batch that several processes evaluate in several micro-batches."""

import torch

from pidistill.methods.base import Losses
from pidistill.processes import Processes


def batch_means(measured: list[Losses], processes: Processes) -> dict[str, float]:
    """The mean `loss` and the mean scalars of a whole batch, the same in every process.

    Args:
        measured: The losses of each micro-batch of this process, all of the same size.
        processes: Those that share the batch.
    """
    values = torch.stack([_numbers(losses) for losses in measured])
    sums = processes.sum(values.mean(0).tolist())
    means = [value / processes.count for value in sums]
    return dict(zip(("loss", *measured[0].scalars), means, strict=True))


def _numbers(losses: Losses) -> torch.Tensor:
    """The mean loss and the scalars, in double precision."""
    loss = losses.loss.mean().double()
    return torch.stack([loss, *(scalar.to(loss) for scalar in losses.scalars.values())])


def where_not_finite(measured: list[Losses], processes: Processes) -> str:
    """The noise levels of the losses that are not finite, in words; arguments as `batch_means`."""
    bad = [losses.sigma.cpu()[~losses.loss.cpu().isfinite()] for losses in measured]
    sigma = torch.cat(processes.share(processes.gather(torch.cat(bad))))
    return f"sigma {sigma.min():.4g} .. {sigma.max():.4g}" if len(sigma) else "every sigma"
