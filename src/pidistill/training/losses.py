"""What a run measures, as sums on its device: nothing waits for the device until they are read."""

import math
from typing import Any

import torch
from torch import Tensor

from pidistill.errors import PidistillError
from pidistill.methods.base import Losses
from pidistill.processes import Processes
from pidistill.schedule import finest_dtype
from pidistill.training.log import BEST_OVER

STUDENT = "student"
"""The name of the one part that every method has."""


def require_losses(losses: Any, part: str) -> Losses:
    """Return what the loss of a part returned; raise `TypeError` unless it is `Losses`."""
    if isinstance(losses, Losses) and losses.loss.shape == losses.sigma.shape[:1]:
        return losses
    raise TypeError(
        f"the loss of part {part!r} returned {type(losses).__name__}; expected Losses with the "
        "loss and the sigma of each sample, both of shape (b,)"
    )


class LogSigmaBins:
    """Bins of width 1 in ln(sigma), for the loss as a function of the noise level."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        """Cover `sigma_min` to `sigma_max`; the end bins include everything beyond."""
        self.first = math.floor(math.log(sigma_min))
        self.num = math.floor(math.log(sigma_max)) - self.first + 1

    def sums(self, losses: Losses) -> Tensor:
        """The sums of the losses per bin and their counts, shape (2, num), in `finest_dtype`."""
        loss = losses.loss.detach()
        loss = loss.to(finest_dtype(loss.device))
        index = losses.sigma.detach().to(loss).log().floor().long() - self.first
        inside = index.clamp(0, self.num - 1)[:, None] == torch.arange(self.num, device=loss.device)
        return torch.stack([torch.where(inside, loss[:, None], 0).sum(0), inside.sum(0).to(loss)])


class Measured:
    """The sums over the updates since the last line of the log, and the average for the best.

    Every process sums its own share; sums over all of them are made when they are read.
    """

    def __init__(self, bins: LogSigmaBins, processes: Processes, device: torch.device) -> None:
        """Start empty."""
        self.bins, self.processes = bins, processes
        self.zeros = torch.zeros(2, dtype=finest_dtype(device), device=device)
        self.loss = self.zeros[0]
        """The student's at its last update, over this process's share of the batch."""
        self.sums: dict[str, Tensor] = {}
        self.by_sigma = self.zeros.new_zeros(2, bins.num)
        self.overflows = self.zeros.new_zeros(1)  # gradients that were not finite, in all
        self.restart_average()
        self.bad = self.zeros.new_zeros(4)  # step, mean loss, lowest and highest sigma

    def restart_average(self) -> None:
        """Begin the running average of the student's loss again."""
        self.average, self.num_averaged = self.zeros.new_zeros(1), 0

    def add(self, part: str, measured: list[Losses], grad_norm: Tensor, step: int) -> None:
        """Add an update.

        Args:
            part: The name of the part that was updated.
            measured: The losses of this process's micro-batches, all of the same size.
            grad_norm: The norm of the gradient; fp16 skips a step where it is not finite.
            step: The optimizer step, counted from 1.
        """
        prefix = "" if part == STUDENT else f"{part}_"
        names = ("loss", *measured[0].scalars)
        means = torch.stack([self._numbers(losses) for losses in measured]).mean(0)
        for name, mean in zip(names, means, strict=True):
            self._add(prefix + name, mean, torch.ones_like(mean))
        finite = grad_norm.isfinite()
        self._add(f"{prefix}grad_norm", torch.where(finite, grad_norm, 0), finite)
        self.overflows += (~finite).to(self.zeros) / self.processes.count
        self._note_if_not_finite(means[0], measured, step)
        if part == STUDENT:
            self.loss = means[0]
            for losses in measured:
                self.by_sigma += self.bins.sums(losses)
            self.num_averaged += 1
            share = means[0] / self.processes.count
            self.average += (share - self.average) / min(self.num_averaged, BEST_OVER)

    def _numbers(self, losses: Losses) -> Tensor:
        """The mean loss and the scalars."""
        scalars = (scalar.detach().to(self.zeros) for scalar in losses.scalars.values())
        return torch.stack([losses.loss.detach().to(self.zeros).mean(), *scalars])

    def _add(self, name: str, number: Tensor, count: Tensor) -> None:
        """Add this process's part of a number: an update counts once over all processes."""
        pair = torch.stack([number.to(self.zeros), count.to(self.zeros)])
        self.sums[name] = self.sums.get(name, self.zeros) + pair / self.processes.count

    def _note_if_not_finite(self, mean: Tensor, measured: list[Losses], step: int) -> None:
        """Keep the first step whose mean loss is not finite, and the noise levels to blame."""
        finite = torch.cat([losses.loss.detach().isfinite() for losses in measured])
        sigma = torch.cat([losses.sigma.detach().to(self.zeros) for losses in measured])
        lowest = torch.where(finite, math.inf, sigma).min()
        highest = torch.where(finite, -math.inf, sigma).max()
        found = torch.stack([torch.full_like(mean, step), mean, lowest, highest])
        self.bad = torch.where(mean.isfinite() | (self.bad[0] > 0), self.bad, found)

    def require_finite(self) -> None:
        """Raise `PidistillError` if a loss was not finite in any process; all must call it."""
        gathered = self.processes.share(self.processes.gather(self.bad.tolist()))
        found = [record for record in gathered if record[0] > 0]
        if not found:
            return
        step, mean, *_ = min(found)
        ranges = [record[2:] for record in found if record[0] == step and record[2] <= record[3]]
        where = "every sigma"
        if ranges:
            where = f"sigma {min(r[0] for r in ranges):.4g} .. {max(r[1] for r in ranges):.4g}"
        raise PidistillError(
            f"the loss is {mean} at step {step:.0f} ({where}); the last checkpoint is kept; lower "
            "learning_rate, or set max_grad_norm"
        )

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """The means by name, and those of the loss by the lower edge of the bin in ln(sigma).

        All processes must call it, and all get the same.
        """
        numbers = self.processes.sum(self._vector().tolist())
        pairs = zip(numbers[0 : 2 * len(self.sums) : 2], numbers[1::2], strict=False)
        named = {
            name: total / count
            for name, (total, count) in zip(self.sums, pairs, strict=False)
            if count
        }
        by_bin = numbers[2 * len(self.sums) : -2]
        edges = zip(by_bin[: self.bins.num], by_bin[self.bins.num :], strict=True)
        by_sigma = {
            str(self.bins.first + index): total / count
            for index, (total, count) in enumerate(edges)
            if count
        }
        return named, by_sigma

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """`means`, after which the sums begin again; raises as `require_finite`."""
        self.require_finite()
        means = self.means()
        self.sums = {}
        self.by_sigma = torch.zeros_like(self.by_sigma)
        return means

    def best_average(self) -> float:
        """The running average of the student's loss over all processes, which must all call it."""
        return self.processes.sum(self.average.tolist())[0]

    def num_overflows(self) -> int:
        """Gradients that were not finite so far; all processes must call it, and get the same."""
        return round(self.processes.sum(self.overflows.tolist())[0])

    def _vector(self) -> Tensor:
        parts = (*self.sums.values(), self.by_sigma.flatten(), self.overflows, self.average)
        return torch.cat(parts)

    def values(self) -> dict[str, Any]:
        """The state as JSON values, in the main process; all must call it."""
        return {
            "names": list(self.sums),
            "numbers": self.processes.gather(self._vector().tolist()),
            "num_averaged": self.num_averaged,
        }

    def load(self, values: dict[str, Any]) -> None:
        """Restore `values`; if the number of processes has changed, the first one takes all."""
        numbers, index = values["numbers"], self.processes.index
        if len(numbers) == self.processes.count:
            own = numbers[index]
        else:
            own = [sum(column) * (index == 0) for column in zip(*numbers, strict=True)]
        vector = self.zeros.new_tensor(own)
        of_names = vector[: 2 * len(values["names"])].reshape(-1, 2)
        self.sums = dict(zip(values["names"], of_names, strict=True))
        self.by_sigma = vector[2 * len(self.sums) : -2].reshape(2, -1)
        self.overflows, self.average = vector[-2:-1], vector[-1:]
        self.num_averaged = values["num_averaged"]
