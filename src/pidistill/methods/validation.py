"""How well a denoiser denoises images that it was not trained on, by noise level.

The yardstick is a denoiser that always answers the mean image of the class (of all images, without
classes): the best answer where noise hides everything.
"""

from typing import Any

import torch
from torch import Tensor

from pidistill.data import Dataset
from pidistill.denoiser import Denoiser, over_sample
from pidistill.noise import Draws, device_of

SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The noise levels, for pixels in [-1, 1]."""
HELD_OUT_AT_MOST = 1000
IMAGES = 100
"""Images at each noise level, at least."""
AT_ONCE = 64


class Validation:
    """Measures a denoiser of a data set."""

    def __init__(self, data: Dataset, share: float) -> None:
        """Hold out this share of the images, at most `HELD_OUT_AT_MOST`."""
        self.data = data
        self.held_out, self.seen = data.held_out(share, HELD_OUT_AT_MOST)
        self._means: Tensor | None = None

    @torch.no_grad()
    def measure(self, denoiser: Denoiser) -> dict[str, Any]:
        """Mean squared errors, as JSON values.

        By noise level, `held_out` has the errors of held-out images and `seen` those of images seen
        in training, each divided by the error of the mean of the class; `images` is the number of
        held-out images, `classes` that of classes, and `variance` the mean squared distance of a
        pixel to the mean of the class. `held_out` is empty if there are none.
        """
        training = denoiser.training
        denoiser.eval()
        held_out, seen = (
            {f"{sigma:g}": self._errors(denoiser, sigma, rows) for sigma, rows in _in_turn(part)}
            for part in (self.held_out, self._some_seen())
        )
        of_mean = [mean for _, mean in (held_out or seen).values()]
        denoiser.train(training)
        return {
            "images": len(self.held_out),
            "classes": self.data.num_classes,
            "variance": sum(of_mean) / len(of_mean),
            "held_out": {key: error / mean for key, (error, mean) in held_out.items()},
            "seen": {key: error / mean for key, (error, mean) in seen.items()},
        }

    def _some_seen(self) -> Tensor:
        order = Draws(0, 0, len(self.seen)).uniform("seen again").argsort()
        return self.seen[order[: len(self.held_out) or IMAGES]]

    def _errors(self, denoiser: Denoiser, sigma: float, rows: Tensor) -> tuple[float, float]:
        """Mean squared errors of the denoiser and of the mean of the class."""
        device = device_of(denoiser)
        found = torch.zeros(2, dtype=torch.float64)
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            label = None if self.data.labels is None else self.data.labels[part]
            x0 = self.data.batch(part)
            eps = Draws(0, first, len(part)).normal(f"validation {sigma}", denoiser.sample_shape)
            levels = torch.full((len(part),), sigma)
            noisy = (x0 + over_sample(levels, x0) * eps.to(x0)).to(device)
            given = None if label is None else label.to(device)
            denoised = denoiser(noisy, levels.to(device), given).float().cpu()
            mean = self._class_means()[0 if label is None else label]
            found += torch.stack([(x - x0).double().square().sum() for x in (denoised, mean)])
        error, of_mean = (found / (len(rows) * x0[0].numel())).tolist()
        return error, max(of_mean, 1e-12)

    def _class_means(self) -> Tensor:
        """The mean of the images seen in training by class, shape (classes, c, h, w)."""
        if self._means is None:
            labels = self.data.labels
            classes = max(1, self.data.num_classes)
            sums = torch.zeros(classes, *self.data.sample_shape, dtype=torch.float64)
            counts = torch.zeros(classes)
            for rows in self.seen.split(AT_ONCE):
                label = torch.zeros_like(rows) if labels is None else labels[rows]
                sums.index_add_(0, label, self.data.batch(rows).double())
                counts += label.bincount(minlength=classes)
            self._means = (sums / over_sample(counts.clamp(min=1), sums)).float()
        return self._means


def _in_turn(rows: Tensor) -> list[tuple[float, Tensor]]:
    """The noise levels with their images: different ones where there are many, else repeated."""
    if not len(rows):
        return []
    rows = rows.repeat(-(-IMAGES // len(rows)))
    turns = min(len(SIGMAS), len(rows) // IMAGES)
    return [(sigma, rows[i % turns :: turns]) for i, sigma in enumerate(SIGMAS)]
