"""What a network of diffusers can take: shapes of samples, timesteps."""

import json
from typing import Any

import torch

from pidistill.errors import one_line
from pidistill.networks.diffusers_unet import DiffusersUNet, FractionalEmbedding, TextUNet
from pidistill.precondition import Precondition
from pidistill.teachers.formats import RefusedError

MAX_SIDE = 65_536


def sample_shape(config: Any) -> tuple[int, int, int]:
    """The sample shape of a network with this configuration.

    Raises `RefusedError` if it sees more than its sample, or its sample_size is no size.
    """
    channels, returned = config["in_channels"], config["out_channels"]
    if not isinstance(channels, int) or channels < 1:
        raise RefusedError(
            f"has a network whose in_channels is {json.dumps(channels)}; expected a number of "
            "channels, such as 3: set it in its config.json"
        )
    if returned not in (None, channels, 2 * channels):
        raise RefusedError(
            f"has a network that takes {channels} channels and returns {json.dumps(returned)}, as "
            "for inpainting, editing or upscaling, where it sees another image beside the noisy "
            f"one; expected {channels} channels, or {2 * channels} with a predicted variance, as "
            "of the model that it was made from"
        )
    return channels, *sides_of(config["sample_size"])


def sides_of(size: Any) -> tuple[int, int]:
    """Height and width by a config's sample_size. Raises `RefusedError` if it is no size."""
    sides = [side_of(side) for side in (size if isinstance(size, list | tuple) else [size])]
    if 0 in sides or len(sides) not in (1, 2):
        raise RefusedError(
            f"has a network whose sample_size is {json.dumps(size)}; expected the training "
            "resolution, as 64 or [64, 32]: set it in its config.json"
        )
    return sides[0], sides[-1]


def side_of(value: Any) -> int:
    """The side of an image from a config, also from "8" or 8.0; 0 if it is no size."""
    try:
        number = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if 0 < number <= MAX_SIDE and number.is_integer() else 0


def check_shape(network: DiffusersUNet | TextUNet, shape: tuple[int, int, int]) -> None:
    """Raise `RefusedError` if a network on the meta device does not take samples of `shape`."""
    x = torch.empty((1, *shape), device="meta")
    try:
        out = network(x, x[:, 0, 0, 0])
    except Exception as error:  # an odd config can raise anything
        config = network.unet.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        halved = not any(side % factor for side in shape[1:])
        raise RefusedError(
            f"has a UNet that does not take samples of shape {shape}: "
            + (one_line(error) if halved else f"sides must be multiples of {factor}")
        ) from error
    if out.shape[2:] != x.shape[2:]:
        raise RefusedError(
            f"has a UNet that turns samples of shape {shape} into {tuple(out.shape[1:])}"
        )


def check_times(network: DiffusersUNet | TextUNet, precondition: Precondition) -> None:
    """Raise `RefusedError` if a network cannot embed the first or the last noise level."""
    ends = torch.tensor([precondition.sigma_min, precondition.sigma_max])
    times = precondition.scales(ends).c_noise
    embedding = network.unet.time_proj
    rows = embedding.num_embeddings if isinstance(embedding, FractionalEmbedding) else None
    outside = rows is not None and not ((times >= 0) & (times <= rows - 1)).all()
    if outside or not embedding(times).isfinite().all():
        raise RefusedError(
            f"has a UNet whose embedding of time ({network.unet.config.time_embedding_type}) does "
            f"not cover the timesteps {times[0]:g} to {times[1]:g} of its scheduler; narrow them "
            "by sigma_min and sigma_max, or use the scheduler it was trained with"
        )
