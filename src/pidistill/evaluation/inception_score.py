r"""The Inception Score (Salimans et al. 2016): are samples of clear classes, and of all of them?

$\exp \mathbb{E}_x \, \mathrm{KL}(p(y|x) \,\|\, p(y))$, for each of ten parts of the samples.
"""

import torch
from torch import Tensor

SPLITS = 10
"""Parts of the samples, one after the other, that are scored apart."""


class ClassScores:
    """Scores of consecutive tenths of samples, in one pass over their logits."""

    def __init__(self, num: int) -> None:
        """Begin; `num` is how many samples there will be."""
        splits = min(SPLITS, num)
        self.ends = [(i + 1) * num // splits for i in range(splits)]
        self.sizes = torch.tensor(self.ends).diff(prepend=torch.tensor([0]))
        self.first = 0
        self.marginal: list[Tensor] = []
        self.negative_entropy: list[Tensor] = []

    def add(self, logits: Tensor) -> None:
        """Take in the logits (n, k) of the next samples."""
        split = sum(end <= self.first for end in self.ends)
        while len(logits):
            if split == len(self.marginal):
                zeros = torch.zeros(logits.shape[1] + 1, dtype=torch.float64)
                self.marginal.append(zeros[:-1])
                self.negative_entropy.append(zeros[-1])
            part = logits[: self.ends[split] - self.first].cpu().double()
            log_p = part.log_softmax(1)
            self.marginal[split] = self.marginal[split] + log_p.exp().sum(0)
            self.negative_entropy[split] = (
                self.negative_entropy[split] + (log_p.exp() * log_p).sum()
            )
            self.first += len(part)
            logits = logits[len(part) :]
            split += 1

    def result(self) -> Tensor:
        """The score of each part, shape (10,) or (num,) where there are fewer samples."""
        p = torch.stack(self.marginal) / self.sizes[:, None]
        given = torch.stack(self.negative_entropy) / self.sizes
        return (given - torch.special.xlogy(p, p).sum(1)).exp()
