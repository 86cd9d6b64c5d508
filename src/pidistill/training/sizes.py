"""A ladder of networks for one's own samples, from one that a laptop trains to EDM's."""

import math
import re
from typing import Any, NamedTuple

ENOUGH_STEPS = 6000
"""Steps that train a network of the ladder well; a larger one is chosen only if there is time."""
ENOUGH_IMAGES = 64 * ENOUGH_STEPS
"""Images in so many steps, by the preset's batch size."""
COARSEST = 4
"""Levels are halved while their sides stay at least this."""
FINEST_ATTENTION = 16
"""Attention on larger grids costs more than it gives."""


class Size(NamedTuple):
    """A rung of the ladder."""

    width: int
    """Channels of the first level; a perceptron is eight times as wide."""
    widest: int
    """Channels of the lowest level, as a multiple of `width`."""
    num_blocks: int
    """Residual blocks per level."""
    finest: int
    """The largest grid it works on: larger images are folded into patches of pixels."""
    dropout: float


SIZES = {
    "xs": Size(16, 4, 1, 16, 0.0),
    "s": Size(32, 4, 1, 16, 0.0),
    "m": Size(64, 2, 3, 32, 0.1),
    "l": Size(128, 2, 4, 64, 0.1),
}
"""The sizes by name, from the smallest."""


def network_of_size(size: str, sample_shape: tuple[int, ...]) -> dict[str, Any]:
    """The table `[network]` of a run config for samples of this shape; `size` is one of `SIZES`."""
    rung = SIZES[size]
    if len(sample_shape) != 3 or sample_shape[1] != sample_shape[2] or sample_shape[1] < 8:
        return {"name": "mlp", "config": {"width": 8 * rung.width, "num_blocks": 4}}
    side = sample_shape[1]
    patches = [p for p in (1, 2, 4, 8, 16) if side % p == 0]
    patch = next((p for p in patches if side // p <= rung.finest), patches[-1])
    grid = side // patch
    halvings = 0
    while halvings < 3 and grid % 2 ** (halvings + 1) == 0 and grid >> (halvings + 1) >= COARSEST:
        halvings += 1
    lowest = grid >> halvings
    first = 0 if halvings > 1 else 1  # few levels are wide ones
    channel_mult = [min(2 ** (first + level), rung.widest) for level in range(halvings + 1)]
    return {
        "name": "song_unet",
        "config": {
            "model_channels": rung.width,
            "channel_mult": channel_mult,
            "num_blocks": rung.num_blocks,
            "attn_resolutions": [lowest] if size != "xs" and lowest <= FINEST_ATTENTION else [],
            "dropout": rung.dropout,
            "patch_size": patch,
        },
    }


def duration_of(text: str) -> float:
    """Seconds of a duration such as `90s`, `30m`, `2h` or `1.5d`.

    Raises `ValueError` if it is none.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    found = re.fullmatch(r"(\d+\.?\d*)([smhd])", text)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"{text!r} is not a duration; expected one such as 90s, 30m or 2h")
    return float(found[1]) * units[found[2]]


def duration_text(seconds: float) -> str:
    """A duration that `duration_of` reads, in whole units of at least this many seconds."""
    units = [("h", 3600), ("m", 60), ("s", 1)]
    unit, length = next((pair for pair in units if seconds > 1.5 * pair[1]), units[-1])
    return f"{math.ceil(seconds / length)}{unit}"
