r"""The Inception Score (Salimans et al. 2016): are samples of clear classes, and of all of them?

$\exp \mathbb{E}_x \, \mathrm{KL}(p(y|x) \,\|\, p(y))$, for each of ten parts of the samples.
"""

import torch
from torch import Tensor

from pidistill.evaluation.frechet import in_float64

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
            part = logits[: self.ends[split] - self.first]
            log_p = in_float64(part).log_softmax(1)
            marginal = log_p.exp().sum(0).cpu()
            negative_entropy = (log_p.exp() * log_p).sum().cpu()
            if split < len(self.marginal):
                self.marginal[split] += marginal
                self.negative_entropy[split] += negative_entropy
            else:
                self.marginal.append(marginal)
                self.negative_entropy.append(negative_entropy)
            self.first += len(part)
            logits = logits[len(part) :]
            split += 1

    def result(self) -> Tensor:
        """The score of each part, shape (10,) or (num,) where there are fewer samples."""
        p = torch.stack(self.marginal) / self.sizes[:, None]
        given = torch.stack(self.negative_entropy) / self.sizes
        return (given - torch.special.xlogy(p, p).sum(1)).exp()
