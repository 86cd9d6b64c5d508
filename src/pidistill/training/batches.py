"""Micro-batches and dropout seeds, determined by the run's seed and the sample indices."""

import torch

from pidistill.data import Dataset
from pidistill.devices import sent_to
from pidistill.methods.base import Batch, Method, noise_batch
from pidistill.noise import Draws


def make_batch(method: Method, data: Dataset | None, draws: Draws, device: torch.device) -> Batch:
    """The micro-batch for `draws` on `device`, with the images and labels that `method` needs."""
    num_classes = method.student.num_classes
    if method.needs == "images":
        assert data is not None
        here = draws.on(data.pixels.device)
        index = here.integers("train image", len(data if method.rows is None else method.rows))
        index = index if method.rows is None else method.rows.to(here.device)[index]
        label = None
        if data.labels is not None and num_classes:
            label = sent_to(device, data.labels[index])
        return Batch(draws, label, sent_to(device, data.batch(index)))
    return noise_batch(draws, num_classes, device)


def seed_dropout(draws: Draws, device: torch.device) -> None:
    """Seed torch's generators, which drive dropout, from the first sample of a batch.

    A resumed run thus repeats the dropout of an uninterrupted one.
    """
    first = Draws(draws.seed, draws.first, 1)
    seed = int(first.uniform("dropout").item() * 2**53)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
