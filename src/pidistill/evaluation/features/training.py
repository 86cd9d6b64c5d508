"""Trains a feature network on a data set: a classifier of its labels, or an encoder without any.

The encoder is trained as in VICReg (Bardes et al. 2022): two augmented views of an image should
have the same projection, while every coordinate keeps its variance and no two are correlated.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pidistill.data import Dataset, fingerprint
from pidistill.errors import PidistillError
from pidistill.evaluation.features.base import AT_ONCE, features_of
from pidistill.evaluation.features.trained import FORMAT, Description, Encoder
from pidistill.evaluation.frechet import split_half_distance
from pidistill.noise import Draws

NUM_FEATURES = 64
HELD_OUT = 0.1
"""The share of the images that training does not see."""
MIN_IMAGES = 40
RETRIEVED = 2000
"""The more images, the harder it is to find one among them."""
SHIFT, ZOOM, NOISE = 0.1, 0.15, 0.1
"""Augmentation: shifts in half sides, relative changes of size, and noise of images in [-1, 1]."""
LEARNING_RATE = 2e-3
PROJECTED = 256
"""Width of VICReg's projections."""


class _Projector(nn.Sequential):
    """VICReg's expander."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(NUM_FEATURES, PROJECTED), nn.ReLU(), nn.Linear(PROJECTED, PROJECTED)
        )


def train_features(
    data: Dataset,
    *,
    max_train_steps: int = 1500,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, str], None] = lambda count, text: None,
) -> Encoder:
    """Train a feature network on `data`.

    Args:
        data: Images; with labels the network is a classifier, without an encoder.
        max_train_steps: Optimizer steps.
        batch_size: Images per step.
        seed: Decides the initial weights, batches, augmentation and held-out images.
        device: Where to train.
        on_step: Called after every step with 1 and a text.

    Returns:
        The network, frozen and on the CPU; the facts in its description say how good it is
        (`quality`).

    Raises:
        PidistillError: There are too few images.
    """
    num = len(data)
    if num < MIN_IMAGES:
        raise PidistillError(f"{data.name} has {num} images; expected at least {MIN_IMAGES}")
    order = Draws(seed, 0, num).uniform("features split").argsort()
    held_out, seen = order.split([round(HELD_OUT * num), num - round(HELD_OUT * num)])
    description = Description(
        format=FORMAT,
        sample_shape=list(data.sample_shape),
        num_features=NUM_FEATURES,
        num_classes=data.num_classes,
        data=data.name,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, projector = Encoder(description), _Projector()
    both = nn.ModuleList([network, projector]).to(device)
    optimizer = torch.optim.AdamW(both.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=max_train_steps + 1
    )
    for step in range(max_train_steps):
        draws = Draws(seed, step * batch_size, batch_size)
        rows = seen[draws.integers("features batch", len(seen))]
        loss = _loss(network, projector, data, rows, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(1, f"loss {loss.item():.3g}")
    network.cpu().eval().requires_grad_(False)
    settings = {"max_train_steps": max_train_steps, "batch_size": batch_size, "seed": seed}
    facts = {"num_images": num, "data_sha256": fingerprint(data), **settings}
    network.description.facts.update(facts, **quality(network, data, held_out))
    return network


def _loss(
    network: Encoder, projector: _Projector, data: Dataset, rows: Tensor, draws: Draws
) -> Tensor:
    """The loss of the images `rows` (b,): cross-entropy with labels, VICReg without."""
    device = next(network.parameters()).device
    x = data.batch(rows).to(device)
    if data.labels is not None:
        logits = network.extract(augmented(x, draws, "view")).logits
        assert logits is not None
        return functional.cross_entropy(logits, data.labels[rows].to(device))
    first, second = (
        projector(network.extract(augmented(x, draws, f"view {i}")).features) for i in range(2)
    )
    return vicreg_loss(first, second)


def vicreg_loss(first: Tensor, second: Tensor) -> Tensor:
    """VICReg's loss of the projections (b, d) of two views, with the published weights."""
    loss = 25 * functional.mse_loss(first, second)
    for view in (first, second):
        spread = (view.var(dim=0) + 1e-4).sqrt()
        loss = loss + 12.5 * functional.relu(1 - spread).mean()
        correlated = view.T.cov()
        off_diagonal = correlated - correlated.diag().diag()
        loss = loss + off_diagonal.square().sum() / view.shape[1]
    return loss


def augmented(x: Tensor, draws: Draws, view: str) -> Tensor:
    """Images `x` (b, c, h, w), each shifted, zoomed and with noise, by random amounts."""

    def between(low: float, high: float, stream: str) -> Tensor:
        return (low + (high - low) * draws.uniform(f"{view} {stream}")).to(x)

    size = between(1 - ZOOM, 1 + ZOOM, "size")
    zero = torch.zeros_like(size)
    rows = (
        torch.stack([size, zero, between(-SHIFT, SHIFT, "across")], dim=1),
        torch.stack([zero, size, between(-SHIFT, SHIFT, "down")], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return moved + NOISE * draws.normal(f"{view} noise", tuple(x.shape[1:])).to(x)


def quality(network: Encoder, data: Dataset, held_out: Tensor) -> dict[str, Any]:
    """How good the features are, by the images `held_out`, indices into the data.

    `held_out_accuracy` of a classifier; of an encoder `held_out_retrieval`, how often the features
    of one view of an image are nearest to those of another view of it, among `RETRIEVED` images at
    most; and `split_half_frechet_distance` of all images.
    """
    features, done = torch.empty(len(data), network.num_features), 0  # pieces would split the heap
    for x in data.chunks():
        features[done : done + len(x)] = features_of(x, network).features
        done += len(x)
    facts = {"split_half_frechet_distance": split_half_distance(features)}
    if data.labels is not None:
        right = 0
        for rows in held_out.split(AT_ONCE):
            logits = features_of(data.batch(rows), network).logits
            assert logits is not None
            right += int((logits.argmax(1) == data.labels[rows]).sum())
        return {**facts, "held_out_accuracy": right / len(held_out)}
    x = data.batch(held_out[:RETRIEVED])
    draws = Draws(0, 0, len(x))
    first, second = (
        features_of(augmented(x, draws, f"view {i}"), network).features for i in range(2)
    )
    nearest = torch.cdist(first, second).argmin(1)
    return {**facts, "held_out_retrieval": (nearest == torch.arange(len(x))).double().mean().item()}
