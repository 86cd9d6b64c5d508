"""The 1,797 handwritten digits of scikit-learn (UCI Optical Recognition, test set), 8x8, grey."""

import torch

from pidistill.data.dataset import Dataset


def load_digits_images() -> Dataset:
    """The digits as images (1797, 1, 8, 8) in [-1, 1] with labels 0 .. 9."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # from grey levels 0 .. 16
    return Dataset(images, torch.from_numpy(digits.target).long(), num_classes=10, name="digits")
