"""Converts schedulers of the diffusers library to preconditionings."""

from typing import Any

from pidistill.precondition import EDMPrecondition, Precondition
from pidistill.precondition.discrete import (
    DiscreteVPPrecondition,
    FlowPrecondition,
    TimestepEDMPrecondition,
    discrete_sigmas,
)
from pidistill.teachers.formats import RefusedError

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
CONSISTENCY_SCHEDULER = "CMStochasticIterativeScheduler"
SCHEDULERS = (*VP_SCHEDULERS, *FLOW_SCHEDULERS, *EDM_SCHEDULERS, CONSISTENCY_SCHEDULER)


def precondition_of(
    scheduler: Any,
    *,
    sigma_data: float,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Precondition:
    """The preconditioning equivalent to a scheduler, one of `SCHEDULERS`.

    `sigma_data` is the standard deviation of the data if the scheduler does not state it. The range
    of noise levels is the scheduler's, unless `sigma_min` and `sigma_max` narrow it. It ends at the
    highest finite level: pure noise (s = 1 in flow matching, zero terminal SNR) has no place in EDM
    coordinates.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if name in VP_SCHEDULERS:
        refuse(config, timestep_type="continuous", use_flow_sigmas=True)
        table = scheduler.alphas_cumprod.double()
        table = table[table > 0]
        # Before version 0.9 the library wrote `predict_epsilon` instead of `prediction_type`.
        old_sample = config.get("predict_epsilon") is False
        return DiscreteVPPrecondition(
            table.tolist(),
            prediction_type="sample" if old_sample else config.prediction_type,
            sigma_data=sigma_data,
            **narrowed(discrete_sigmas(table).tolist(), sigma_min, sigma_max),
        )
    if name in FLOW_SCHEDULERS:
        refuse(config, invert_sigmas=True)
        s = scheduler.sigmas.double()
        s = s[(s > 0) & (s < 1)]
        return FlowPrecondition(
            sigma_data=sigma_data,
            num_timesteps=config.num_train_timesteps,
            **narrowed((s / (1 - s)).tolist(), sigma_min, sigma_max),
        )
    refuse(config, prediction_type="v_prediction")
    edm = TimestepEDMPrecondition if name == CONSISTENCY_SCHEDULER else EDMPrecondition
    levels = [config.sigma_min, config.sigma_max]
    return edm(sigma_data=config.sigma_data, **narrowed(levels, sigma_min, sigma_max))


def narrowed(levels: list[float], low: float | None, high: float | None) -> dict[str, float]:
    """The range from `low` to `high`, which must lie within a scheduler's noise `levels`."""
    first, last = min(levels), max(levels)
    low, high = first if low is None else low, last if high is None else high
    if not first <= low < high <= last:
        raise RefusedError(
            f"has a scheduler that allows {first:g} <= sigma_min < sigma_max <= {last:g}; "
            f"sigma_min is {low:g} and sigma_max is {high:g}"
        )
    return {"sigma_min": low, "sigma_max": high}


def refuse(config: Any, **settings: Any) -> None:
    """Raise `RefusedError` if a scheduler has one of these settings."""
    for name, value in settings.items():
        if config.get(name) == value:
            raise RefusedError(
                f"has a scheduler whose {name} is {value!r}, which is not supported; see "
                "docs/teachers/diffusers.md"
            )
