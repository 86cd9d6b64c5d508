"""Preconditionings `D = c_skip x + c_out F(c_in x, c_noise)`, one source per file."""

from typing import Any

from pidistill.errors import PidistillError
from pidistill.precondition.base import Precondition, Scales
from pidistill.precondition.discrete import (
    DiscreteVPPrecondition,
    FlowPrecondition,
    TimestepEDMPrecondition,
)
from pidistill.precondition.karras import (
    EDMPrecondition,
    IDDPMPrecondition,
    VEPrecondition,
    VPPrecondition,
)
from pidistill.precondition.score_sde import DiscreteVEPrecondition, SubVPPrecondition

__all__ = [
    "PRECONDITIONS",
    "DiscreteVEPrecondition",
    "DiscreteVPPrecondition",
    "EDMPrecondition",
    "FlowPrecondition",
    "IDDPMPrecondition",
    "Precondition",
    "Scales",
    "SubVPPrecondition",
    "TimestepEDMPrecondition",
    "VEPrecondition",
    "VPPrecondition",
    "build_precondition",
]

PRECONDITIONS: dict[str, type[Precondition]] = {
    "edm": EDMPrecondition,
    "vp": VPPrecondition,
    "ve": VEPrecondition,
    "iddpm": IDDPMPrecondition,
    "discrete_vp": DiscreteVPPrecondition,
    "discrete_ve": DiscreteVEPrecondition,
    "sub_vp": SubVPPrecondition,
    "flow": FlowPrecondition,
    "edm_timestep": TimestepEDMPrecondition,
}
"""Preconditionings by their names in `network.json`."""


def build_precondition(name: str, config: dict[str, Any]) -> Precondition:
    """Build the preconditioning registered as `name` from its arguments.

    Raises `PidistillError` if the name is unknown.
    """
    if name not in PRECONDITIONS:
        raise PidistillError(
            f"unknown preconditioning {name!r}; expected one of {', '.join(PRECONDITIONS)}"
        )
    return PRECONDITIONS[name](**config)
