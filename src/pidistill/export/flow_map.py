r"""Sampling a flow map by constants, in one or several evaluations.

In the coordinate $y = x / \sqrt{\sigma^2 + \sigma_{data}^2}$ every map from $\theta_s$ to $\theta$
(`pidistill.students.flow_map`) is

$$y' = y + (\theta_s - \theta) (c_{skip} y + c_{out} F(c_{in} y, c_{noise}; t))$$

where the network F sees $\theta$ as the second time $t$. Everything but the network, and its
embedding of the second time, is a number that depends on the number of evaluations alone. The
operations are those of the student, in its order, so that the samples have the same bits.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.second_time import call_with_shift

MOST_STEPS = 8
"""Most evaluations per sample that are exported; the student in pidistill takes any number."""


@dataclasses.dataclass(frozen=True)
class MapScales:
    """The constants of one map."""

    c_in: float
    c_noise: float
    c_skip: float
    c_out: float
    length: float
    """The distance from theta_s to theta."""
    second_time: float
    to_x: float
    """Turns y at its end into x."""


@dataclasses.dataclass(frozen=True)
class FlowScales:
    """The constants of sampling in a number of maps."""

    to_y: float
    """Turns starting noise into y."""
    maps: Sequence[MapScales]


def flow_map_sample(
    network: nn.Module,
    layer: str,
    second_time: Callable[[Tensor], Tensor],
    z: Tensor,
    label: Tensor | None,
    scales: FlowScales,
    after: Callable[[int, float, Tensor], Tensor] | None = None,
) -> Tensor:
    """Samples in `len(scales.maps)` evaluations, with the shape and dtype of the starting noise.

    Args:
        network: The raw network, called as `network(u, c_noise, label)`.
        layer: The layer whose output the embedding of the second time is added to.
        second_time: Turns times (b,) into their embeddings.
        z: Starting noise (b, ...) from N(0, sigma_max^2 I).
        label: Class labels (b,), int64; -1 means "no label", as does None for the whole batch.
        scales: The constants.
        after: Called after every map, with its index, the noise level that the network saw and the
            points x it came to; sampling goes on from what it returns.
    """
    x, y = z, scales.to_y * z
    for index, one in enumerate(scales.maps):
        c_noise = z.new_full(z.shape[:1], one.c_noise)
        shift = second_time(z.new_full(z.shape[:1], one.second_time))
        raw = call_with_shift(network, layer, shift, one.c_in * y, c_noise, label)
        y = y + one.length * (one.c_skip * y + one.c_out * raw)
        x = one.to_x * y
        if after is not None:
            x = after(index, one.c_noise, x)
            y = y + (x - one.to_x * y) / one.to_x  # the same bits if nothing was changed
    return x


def flow_scales(student: FlowMapStudent, steps: int) -> FlowScales:
    """The constants of `student.sample` in `steps` evaluations."""
    nodes = student.nodes(steps)
    factors = student.scales(nodes[:-1])
    constants = {name: values.tolist() for name, values in factors._asdict().items()}
    constants["length"] = [(start - end).item() for start, end in itertools.pairwise(nodes)]
    constants["second_time"] = student.time(nodes[1:]).tolist()
    one = torch.ones((), dtype=torch.float64)
    constants["to_x"] = student.to_x(one.expand(steps), nodes[1:]).tolist()
    rows = zip(*constants.values(), strict=True)
    return FlowScales(
        to_y=student.to_y(one, nodes[:1]).item(),
        maps=[MapScales(**dict(zip(constants, row, strict=True))) for row in rows],
    )
