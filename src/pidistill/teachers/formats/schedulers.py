"""Converts schedulers of the diffusers library to preconditionings."""

from typing import Any

from torch import Tensor

from pidistill.networks.diffusers_unet import arguments_of
from pidistill.precondition import EDMPrecondition, Precondition
from pidistill.precondition.discrete import (
    PREDICTION_TYPES,
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
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
CONSISTENCY_SCHEDULER = "CMStochasticIterativeScheduler"
ZERO_SNR_PLACEHOLDER = 2.0**-24
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
    config, name = arguments_of(scheduler), type(scheduler).__name__
    if name in VP_SCHEDULERS:
        if config["prediction_type"] == "v_prediction":
            refuse(config, timestep_type="continuous")
        refuse(config, use_flow_sigmas=True)
        table = vp_table(scheduler)
        return DiscreteVPPrecondition(
            table.tolist(),
            prediction_type=prediction_type_of(scheduler),
            sigma_data=sigma_data,
            **narrowed(discrete_sigmas(table).tolist(), sigma_min, sigma_max),
        )
    if name in FLOW_SCHEDULERS:
        refuse(config, invert_sigmas=True)
        s = scheduler.sigmas.double()
        if not ((s >= 0) & (s <= 1)).all() or not (s.diff() < 0).all():
            raise RefusedError(
                f"has a flow schedule whose levels do not fall from 1 to 0 (its shift is "
                f"{config['shift']!r}); expected a positive shift in scheduler_config.json"
            )
        s = s[(s > 0) & (s < 1)]
        return FlowPrecondition(
            sigma_data=sigma_data,
            num_timesteps=config["num_train_timesteps"],
            **narrowed((s / (1 - s)).tolist(), sigma_min, sigma_max),
        )
    if config.get("prediction_type", "epsilon") != "epsilon":
        refuse(config, prediction_type=config["prediction_type"])
    low, high, sigma_data = (config[key] for key in ("sigma_min", "sigma_max", "sigma_data"))
    # Beyond these bounds float32 has no squares.
    if not all(type(value) in (int, float) and 1e-18 < value < 1e18 for value in (low, sigma_data)):
        raise RefusedError(
            f"has a scheduler whose sigma_min is {low!r} and sigma_data {sigma_data!r}; expected "
            "positive numbers"
        )
    if type(high) not in (int, float) or not low < high < 1e18:
        raise RefusedError(
            f"has a scheduler whose sigma_max is {high!r}; expected a number above its sigma_min, "
            f"{low!r}"
        )
    edm = TimestepEDMPrecondition if name == CONSISTENCY_SCHEDULER else EDMPrecondition
    return edm(sigma_data=sigma_data, **narrowed([low, high], sigma_min, sigma_max))


def vp_table(scheduler: Any) -> Tensor:
    """A scheduler's `alphas_cumprod` (n,), float64, without the levels of pure noise at its end.

    Raises `RefusedError` if they are no noise levels, or not one for each of its timesteps.
    """
    betas, steps = scheduler.betas, scheduler.config.num_train_timesteps
    if betas.shape != (steps,):
        raise RefusedError(
            f"has a scheduler with {betas.numel()} betas for {steps!r} num_train_timesteps; "
            "expected one for each timestep"
        )
    table: Tensor = scheduler.alphas_cumprod.double()
    outside = betas[~((betas >= 0) & (betas <= 1))].tolist()
    # With zero terminal SNR, some schedulers write a placeholder for the last level.
    table = table[(table > 0) & (table != ZERO_SNR_PLACEHOLDER)]
    if outside or len(table) < 2 or table[0] >= 1 or (table.diff() >= 0).any():
        found = f"one is {outside[0]:g}" if outside else f"{len(table)} of {steps} are usable"
        raise RefusedError(
            f"has a scheduler whose betas are no noise schedule ({found}); expected at least 2 "
            "between 0 and 1, each of which adds noise (beta_start, beta_end, trained_betas)"
        )
    return table


def prediction_type_of(scheduler: Any) -> str:
    """What the network of a variance-preserving scheduler predicts, by the name used here."""
    # Before version 0.9 the library wrote `predict_epsilon` instead of `prediction_type`.
    if scheduler.config.get("predict_epsilon") is False:
        return "sample"
    kind = scheduler.config.prediction_type
    if kind == "original_sample" and type(scheduler).__name__ == "EulerDiscreteScheduler":
        return "sample"
    if kind not in PREDICTION_TYPES:
        raise RefusedError(
            f"has a scheduler whose prediction_type is {kind!r}; expected one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return str(kind)


def narrowed(levels: list[float], low: float | None, high: float | None) -> dict[str, float]:
    """The range from `low` to `high`, which must lie within a scheduler's noise `levels`."""
    if len(set(levels)) < 2:
        raise RefusedError(
            f"has a scheduler with {len(set(levels))} finite noise levels; expected at least 2 "
            "(more num_train_timesteps, a greater sigma_max)"
        )
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
