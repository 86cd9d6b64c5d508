"""Which checkpoint is the best: the one where the loss, averaged over the last steps, is lowest."""

import dataclasses

STEPS = 100
"""The average forgets a loss after about so many steps."""


@dataclasses.dataclass
class Best:
    """The running average of the loss, and the checkpoint where it was lowest so far.

    The plain mean of the first `STEPS` losses, and an exponential average after that. It is a
    matter of steps alone, so that it is the same however often a run is interrupted.
    """

    average: float = 0.0
    count: int = 0
    """Losses averaged."""
    step: int | None = None
    """Step of the best checkpoint; None before the first."""
    lowest: float = 0.0
    """The average at it."""

    def update(self, loss: float) -> None:
        """Take in the loss of a step."""
        self.count += 1
        self.average += (loss - self.average) / min(self.count, STEPS)

    def judge(self, step: int) -> None:
        """Ask whether the checkpoint of `step`, about to be written, is the best so far."""
        if self.step is None or self.average <= self.lowest:
            self.step, self.lowest = step, self.average
