"""Teachers from EDM checkpoints (Karras et al. 2022), read without executing their code.

Two kinds of file are supported:

- The published pickles, such as `edm-cifar10-32x32-uncond-vp.pkl`. They contain source code that
  Python's pickle would execute. Here that code is ignored (see `safe_pickle`), and the network is
  built from the constructor arguments in the file.
- State dicts of the same networks, or of OpenAI's `UNetModel`, in safetensors or `torch.save`
  format, with a JSON file beside them, `FILE.json` or `config.json`, in the format of a run
  folder's `network.json`:

      {
        "network": {"name": "song_unet", "config": {"img_resolution": 32, "in_channels": 3, ...}},
        "precondition": {"name": "edm", "config": {}}
      }

  docs/teachers/edm.md lists all entries.

The augmentation embedding is dropped: without augmentation labels it has no effect. Dropout of
activations and labels is set to 0, so that a student that copies the network has none.
"""

import math
from pathlib import Path
from typing import Any

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.precondition import build_precondition
from pidistill.teachers.formats import RefusedError, openai_unet, refusals_of
from pidistill.teachers.formats.edm_module import (
    NETWORK_NAMES,
    PRECONDITION_NAMES,
    network_of,
    precondition_of,
    weights_of,
)
from pidistill.teachers.formats.edm_pickle import PickledModule, read_pickle
from pidistill.teachers.formats.weights import (
    SUFFIXES,
    json_beside,
    network_with_weights,
    read_weights,
)

UNUSED = {"augment_dim": 0, "dropout": 0.0, "label_dropout": 0.0}


def load(locator: str) -> PreconditionedDenoiser:
    """Load the checkpoint in the file `locator`.

    Raises `PidistillError` if it is missing, damaged, or not a checkpoint of an EDM network.
    """
    path = user_path(locator)
    if not path.is_file():
        raise PidistillError(f"{locator!r} is not a file; expected edm:FILE")
    if path.suffix in SUFFIXES:
        with refusals_of(path):
            return _load_state_dict(path)
    with refusals_of(path, "; it is not a genuine EDM checkpoint"):
        return _load_pickle(path)


def recognises(path: Path) -> bool:
    """Whether `path` is an EDM pickle, or weights with a JSON file that describes them."""
    if not path.is_file():
        return False
    if path.suffix in SUFFIXES:
        return {"network", "precondition"} <= json_beside(path)[1].keys()
    with path.open("rb") as file:
        head = file.read(65_536)
    return head.startswith(b"\x80") and b"torch_utils.persistence" in head


def _load_pickle(path: Path) -> PreconditionedDenoiser:
    content = read_pickle(path)
    ema = content.get("ema") if type(content) is dict else None
    if not isinstance(ema, PickledModule) or ema.class_name not in PRECONDITION_NAMES:
        raise RefusedError(
            "holds no EDM network; expected a pickled dict whose 'ema' is one of "
            f"{', '.join(PRECONDITION_NAMES)}"
        )
    precondition = precondition_of(ema)
    name, config, model = network_of(ema)
    pickled = weights_of(model)
    if 2 * sum(math.prod(weight.shape) for weight in pickled.values()) > path.stat().st_size:
        raise RefusedError("declares more weights than its size allows")
    pickled.pop("map_augment.weight", None)
    config |= UNUSED
    weights = {key: weight.tensor() for key, weight in pickled.items()}
    size = config["img_resolution"]
    return PreconditionedDenoiser(
        network_with_weights(name, config, weights, str(path)),
        precondition,
        sample_shape=(config["in_channels"], size, size),
        num_classes=config["label_dim"],
        source=f"{path.name} ({ema.class_name} of {model.class_name})",
    )


def _load_state_dict(path: Path) -> PreconditionedDenoiser:
    beside, description = json_beside(path)
    if beside is None:
        raise RefusedError(
            f"has no JSON file beside it; expected {path.with_suffix('.json').name} or config.json "
            "with the entries 'network' and 'precondition'"
        )
    match description:
        case {
            "network": {"name": str(name), "config": dict(config)},
            "precondition": {"name": str(precondition), "config": dict(settings)},
        }:
            name = NETWORK_NAMES.get(name, name)
            precondition = PRECONDITION_NAMES.get(precondition, precondition)
        case _:
            raise PidistillError(
                f"{beside} must hold 'network' and 'precondition', each an object with the "
                "entries 'name' and 'config'"
            )
    if name not in NETWORK_NAMES.values():
        raise PidistillError(
            f"{beside} names the network {name!r}; expected one of "
            f"{', '.join(NETWORK_NAMES.values())}"
        )
    arguments: dict[str, Any] = {**config, **UNUSED}
    weights = read_weights(path)
    if openai_unet.is_openai_unet(weights):
        if name != openai_unet.NETWORK or precondition == "edm":
            raise RefusedError(
                f"holds the weights of a guided-diffusion UNetModel, which do not fit {name!r} "
                f"with the precondition {precondition!r}; expected {openai_unet.NETWORK!r} with "
                "'edm_timestep' (consistency-models) or 'guided_diffusion' and its noise_schedule, "
                "linear or cosine (see docs/teachers/edm.md)"
            )
        if precondition == "guided_diffusion":
            precondition = "discrete_vp"
            try:
                settings = openai_unet.discrete_vp_settings(**settings)
            except TypeError as error:
                raise PidistillError(f"{beside} has a wrong precondition: {error}") from error
        order = description.get("qkv_order", "three-major")
        weights = openai_unet.renamed_weights(weights, arguments, order)
    weights.pop("map_augment.weight", None)
    network = network_with_weights(name, arguments, weights, str(path))
    try:
        size = arguments["img_resolution"]
        shape = [arguments["in_channels"], size, size]
        return PreconditionedDenoiser(
            network,
            build_precondition(precondition, settings),
            sample_shape=tuple(description.get("sample_shape", shape)),
            num_classes=description.get("num_classes", arguments.get("label_dim", 0)),
            source=f"{path.name} ({name})",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PidistillError(f"{beside} does not describe a teacher: {error}") from error
