"""Teachers from ScoreSDE's PyTorch checkpoints (Song et al. 2021): DDPM++ and NCSN++.

A checkpoint of yang-song/score_sde_pytorch is a `torch.save` file with the entries `model` (a
state dict with keys `module.all_modules.N...`), `ema` (with the averaged weights as a bare list, in
the order of the trainable parameters), `optimizer` and `step`. It is read with
`weights_only=True`. The averaged weights are renamed for a `SongUNet`, which computes the same
function.

The architecture is inferred from the weights. Settings that do not show in the weights are
assumed, with a warning, unless a JSON file beside the checkpoint, `FILE.json` or `config.json`,
states them:

    {"sde": "vpsde", "image_size": 32, "fir": false, "beta_min": 0.1, "beta_max": 20.0}

docs/teachers/score-sde.md explains the entries. The sub-VP SDE, whose checkpoints look like those
of the VP SDE, is not supported.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError, one_line
from pidistill.paths import user_path
from pidistill.precondition import Precondition, VEPrecondition, VPPrecondition
from pidistill.teachers.formats import RefusedError, refusals_of
from pidistill.teachers.formats.score_sde_modules import network_config, renamed, split_parts
from pidistill.teachers.formats.weights import (
    json_beside,
    network_with_weights,
    read_torch,
)

OPTIONS = ("sde", "image_size", "fir", "beta_min", "beta_max", "sigma_min", "sigma_max")


def load(locator: str) -> PreconditionedDenoiser:
    """Load the checkpoint in the file `locator`.

    Raises `PidistillError` if it is missing, damaged, or of an unsupported network or SDE.
    """
    path = user_path(locator)
    if not path.is_file():
        raise PidistillError(f"{locator!r} is not a file; expected score-sde:FILE")
    beside, options = json_beside(path)
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise PidistillError(
            f"{beside} has the unknown entry {unknown[0]!r}; expected {', '.join(OPTIONS)}"
        )
    with refusals_of(path):
        weights, sigmas = averaged_weights(read_torch(path))
        try:
            parts = split_parts(weights)
            config, assumed = network_config(parts, options)
            state = renamed(parts, config)
            precondition = precondition_of(config, options, sigmas)
        except (ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise RefusedError(
                f"has weights whose shapes do not fit DDPM++ or NCSN++: {one_line(error)}"
            ) from error
        network = network_with_weights("song_unet", config, state, str(path))
    if "sde" not in options:
        assumed.append("the VP SDE" if isinstance(precondition, VPPrecondition) else "the VE SDE")
    if assumed:
        warnings.warn(
            f"{path.name} does not state all settings, so {', '.join(assumed)} was assumed; state "
            f"it in {path.with_suffix('.json').name} beside it",
            stacklevel=2,
        )
    size = config["img_resolution"]
    return PreconditionedDenoiser(
        network,
        precondition,
        sample_shape=(config["in_channels"], size, size),
        source=f"{path.name} (ScoreSDE, {type(precondition).__name__})",
    )


def recognises(path: Path) -> bool:
    """Whether `path` is a `torch.save` file with averaged weights and a module list."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                head = file.read(4_000_000)
    except Exception:  # a foreign archive can raise anything
        return False
    return b"all_modules.0." in head and b"shadow_params" in head


def averaged_weights(content: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """The averaged weights of a checkpoint by name, and its buffer `sigmas` if it has one."""
    match content:
        case {"model": dict(model), "ema": {"shadow_params": list(shadow)}}:
            pass
        case _:
            raise RefusedError(
                "is not a ScoreSDE checkpoint; expected the entries 'model' and 'ema', the latter "
                "with 'shadow_params'"
            )
    if not all(isinstance(value, Tensor) for value in [*model.values(), *shadow]):
        raise RefusedError("holds values other than tensors in 'model' or 'shadow_params'")
    weights = {str(key).removeprefix("module."): value for key, value in model.items()}
    sigmas = weights.pop("sigmas", None)
    trainable = [key for key in weights if key != "all_modules.0.W"]  # W: Fourier features
    if len(trainable) != len(shadow):
        raise RefusedError(
            f"has {len(shadow)} averaged weights; expected {len(trainable)}, one per trainable "
            "weight of its model"
        )
    for key, average in zip(trainable, shadow, strict=True):
        if average.shape != weights[key].shape:
            raise RefusedError(
                f"has the averaged weight {key!r} with shape {tuple(average.shape)}; expected "
                f"{tuple(weights[key].shape)}"
            )
        weights[key] = average.detach().clone()
    return weights, sigmas


def precondition_of(
    config: dict[str, Any], options: dict[str, Any], sigmas: Tensor | None
) -> Precondition:
    """The preconditioning of the SDE that the network was trained on.

    The VE networks were trained on images in [0, 1]; EDM coordinates are twice as wide.
    """
    own = {"positional": "vpsde", "fourier": "vesde"}[config["embedding_type"]]
    sde = options.get("sde", own)
    if sde != own:
        raise RefusedError(
            f"has a {config['embedding_type']} embedding but the sde {sde!r}; only {own!r} is "
            "supported with this embedding"
        )
    low, high = (0.01, 50.0) if sigmas is None else (sigmas.min().item(), sigmas.max().item())
    defaults = {"beta_min": 0.1, "beta_max": 20.0, "sigma_min": low, "sigma_max": high}
    level = defaults | options
    for kind in ("beta", "sigma"):
        low, high = level[f"{kind}_min"], level[f"{kind}_max"]
        if not all(isinstance(value, int | float) for value in (low, high)) or not 0 < low < high:
            raise RefusedError(
                f"has {kind}_min {low!r} and {kind}_max {high!r}; expected numbers with "
                f"0 < {kind}_min < {kind}_max"
            )
    if sde == "vpsde":
        return VPPrecondition(
            beta_d=level["beta_max"] - level["beta_min"], beta_min=level["beta_min"]
        )
    return VEPrecondition(sigma_min=2 * level["sigma_min"], sigma_max=2 * level["sigma_max"])
