"""What the schedulers of the diffusers library say about a network, as a preconditioning."""

from typing import Any

from pidistill.errors import PidistillError
from pidistill.precondition import EDMPrecondition, Precondition
from pidistill.precondition.discrete import (
    DiscreteVPPrecondition,
    FlowPrecondition,
    TimestepEDMPrecondition,
    discrete_sigmas,
)

VP_SCHEDULERS = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
CONSISTENCY_SCHEDULERS = ("CMStochasticIterativeScheduler",)
SCHEDULERS = VP_SCHEDULERS + FLOW_SCHEDULERS + EDM_SCHEDULERS + CONSISTENCY_SCHEDULERS


def precondition_of(
    scheduler: Any,
    name: str,
    *,
    sigma_data: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Precondition:
    """The preconditioning that a scheduler stands for.

    Args:
        scheduler: The scheduler.
        name: Its class, one of `SCHEDULERS`.
        sigma_data: Standard deviation of the data, where the scheduler does not say it.
        sigma_min: Lowest noise level, if not the scheduler's.
        sigma_max: Highest noise level, if not the scheduler's. The scheduler's own is the last
            finite one: levels of pure noise (s = 1 of flow matching, zero terminal SNR) have no
            place in EDM coordinates.

    Raises:
        PidistillError: The scheduler has a setting without counterpart, or the noise levels are
            outside of its range.
    """
    config = scheduler.config

    def chosen(low: float, high: float) -> dict[str, float]:
        first = low if sigma_min is None else sigma_min
        last = high if sigma_max is None else sigma_max
        if not low <= first < last <= high:
            raise PidistillError(
                f"sigma_min is {first:g} and sigma_max is {last:g}; the scheduler allows "
                f"{low:g} <= sigma_min < sigma_max <= {high:g}"
            )
        return {"sigma_min": first, "sigma_max": last}

    if name in VP_SCHEDULERS:
        refuse(config, "timestep_type", "continuous")
        refuse(config, "use_flow_sigmas", True)
        table = scheduler.alphas_cumprod.double()
        table = table[table > 0]
        levels = discrete_sigmas(table)
        # Before 0.9 the library wrote `predict_epsilon` instead of `prediction_type`.
        old_sample = config.get("predict_epsilon") is False
        return DiscreteVPPrecondition(
            table.tolist(),
            prediction_type="sample" if old_sample else config.prediction_type,
            sigma_data=sigma_data,
            **chosen(levels[0].item(), levels[-1].item()),
        )
    if name in FLOW_SCHEDULERS:
        refuse(config, "invert_sigmas", True)
        s = scheduler.sigmas.double()
        s = s[(s > 0) & (s < 1)]
        levels = s / (1 - s)
        return FlowPrecondition(
            sigma_data=sigma_data,
            num_timesteps=config.num_train_timesteps,
            **chosen(levels.min().item(), levels.max().item()),
        )
    refuse(config, "prediction_type", "v_prediction")
    edm = TimestepEDMPrecondition if name in CONSISTENCY_SCHEDULERS else EDMPrecondition
    return edm(sigma_data=config.sigma_data, **chosen(config.sigma_min, config.sigma_max))


def refuse(config: Any, name: str, value: Any) -> None:
    """Raise `PidistillError` if a scheduler's setting `name` is `value`."""
    if config.get(name) == value:
        raise PidistillError(
            f"the scheduler's {name} is {value!r}, which is not supported; see "
            "docs/teachers/diffusers.md for what is read"
        )
