"""Teachers from checkpoints of denoising-diffusion-pytorch, `model-N.pt`.

`lucidrains:FILE?image_size=N[&OPTION=VALUE...]`. The file is what the `Trainer` of that package
saves: a `torch.save` file, read with `weights_only=True`, whose entry `ema` has the averaged
`GaussianDiffusion` under `ema_model`: a U-Net, and the noise schedule as buffers.

The architecture is inferred from the weights, the objective from the loss weights of the schedule.
The image size is not in the file and must be stated. docs/teachers/lucidrains.md has all options.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError, one_line
from pidistill.paths import user_path
from pidistill.teachers.formats import RefusedError, refusals_of
from pidistill.teachers.formats.discrete_schedule import table_precondition
from pidistill.teachers.formats.lucidrains_diffusion import network_config, objective_of
from pidistill.teachers.formats.weights import network_with_weights, read_torch, torch_head
from pidistill.teachers.options import Options, parse_options

OPTIONS: Options = {
    "image_size": int,
    "objective": str,
    "groups": int,
    "theta": float,
    "sigma_min": float,
    "sigma_max": float,
}
OBJECTIVES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
PREFIX = "ema_model."


def load(locator: str) -> PreconditionedDenoiser:
    """Load the checkpoint in a file; `locator` is its path, and options after a question mark.

    Raises `PidistillError` if it is missing, damaged, or of another network, or the options lack
    what the file does not state.
    """
    name, options = parse_options("lucidrains", locator, OPTIONS)
    path = user_path(name)
    if not path.is_file():
        raise PidistillError(f"{name!r} is not a file; expected lucidrains:FILE?image_size=N")
    with refusals_of(path):
        weights, buffers = averaged_model(read_torch(path))
        try:
            config = network_config(weights)
        except (ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise RefusedError(
                "does not have the U-Net of denoising-diffusion-pytorch with "
                f"GaussianDiffusion: {one_line(error)}"
            ) from error
        size = image_size(options, 2 ** (len(config["dim_mults"]) - 1))
        for key in ("groups", "theta"):
            if options.get(key, 1) <= 0:
                raise RefusedError(f"has {key} {options[key]}; expected a positive number")
        objective = options.get("objective") or objective_of(buffers)
        if objective not in OBJECTIVES:
            raise RefusedError(
                f"cannot have the objective {objective!r}; expected {', '.join(OBJECTIVES)}"
            )
        precondition = table_precondition(
            buffers["sqrt_recipm1_alphas_cumprod"],
            OBJECTIVES[objective],
            options.get("sigma_min"),
            options.get("sigma_max"),
        )
        if config["groups"] and "groups" not in options:
            warnings.warn(
                f"{path.name} does not state resnet_block_groups, so {config['groups']} was "
                "assumed, the package's default; state it as in FILE?image_size=64&groups=8",
                stacklevel=2,
            )
        config |= {key: options[key] for key in ("groups", "theta") if key in options}
        return PreconditionedDenoiser(
            network_with_weights("lucidrains_unet", config, weights, str(path)),
            precondition,
            sample_shape=(config["channels"], size, size),
            source=f"{path.name} (denoising-diffusion-pytorch, {objective})",
        )


def recognises(path: Path) -> bool:
    """Whether `path` is a checkpoint of the `Trainer` of denoising-diffusion-pytorch."""
    return b"ema_model.model.init_conv.weight" in torch_head(path)


def averaged_model(content: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged weights of the U-Net, and the buffers of the diffusion around it."""
    match content:
        case {"model": dict(), "ema": dict(ema)}:
            pass
        case _:
            raise RefusedError(
                "is not a checkpoint of denoising-diffusion-pytorch; expected the entries 'model' "
                "and 'ema' of its Trainer"
            )
    averaged = {
        key.removeprefix(PREFIX): value
        for key, value in ema.items()
        if isinstance(key, str) and key.startswith(PREFIX) and isinstance(value, Tensor)
    }
    weights = {
        key.removeprefix("model."): value.detach().clone()
        for key, value in averaged.items()
        if key.startswith("model.")
    }
    if "sqrt_recipm1_alphas_cumprod" not in averaged or "init_conv.weight" not in weights:
        raise RefusedError(
            "holds no GaussianDiffusion with a Unet in ema['ema_model.*'], but another model of "
            "denoising-diffusion-pytorch, which is not supported (see docs/teachers/lucidrains.md)"
        )
    table = averaged["sqrt_recipm1_alphas_cumprod"]
    if table.ndim != 1 or len(table) < 2 or not (table.diff() > 0).all():
        raise RefusedError(
            f"has a noise schedule of shape {tuple(table.shape)} in sqrt_recipm1_alphas_cumprod; "
            "expected at least two increasing levels"
        )
    return weights, {key: value for key, value in averaged.items() if not key.startswith("model.")}


def image_size(options: dict[str, Any], step: int) -> int:
    """The image size that the user states, a multiple of `step`."""
    if "image_size" not in options:
        raise RefusedError(
            "does not state the size of its images; append it as in lucidrains:FILE?image_size=64"
        )
    size: int = options["image_size"]
    if size < 1 or size % step:
        raise RefusedError(f"cannot have image_size {size}; expected a positive multiple of {step}")
    return size
