"""Teachers from EDM's checkpoints (Karras et al. 2022), which are read and never executed.

Two kinds of file are read.

- The published pickles, such as `edm-cifar10-32x32-uncond-vp.pkl`. They carry their own source
  text, which Python's pickle would execute; here it is ignored (see `safe_pickle`), and the
  network is built from its constructor arguments in the file.
- A state dict of the same networks in safetensors or `torch.save` format, with a JSON file beside
  it, `FILE.json` or `config.json`, that says the same as the `network.json` of a run folder:

      {
        "network": {"name": "song_unet", "config": {"img_resolution": 32, "in_channels": 3, ...}},
        "precondition": {"name": "edm", "config": {}},
        "sample_shape": [3, 32, 32],
        "num_classes": 0
      }

  `network.name` is `song_unet` or `dhariwal_unet` (or EDM's `SongUNet`, `DhariwalUNet`) with their
  constructor arguments; `precondition.name` is a key of `PRECONDITIONS` (or EDM's `EDMPrecond`,
  `VPPrecond`, `VEPrecond`, `iDDPMPrecond`) with its arguments. The last two lines may be left out.

The state dict may also be one of OpenAI's `UNetModel` (see `openai_unet`): then `network.name` is
`dhariwal_unet`, `precondition.name` is `edm_timestep` for the networks of consistency-models, and
`"qkv_order"` is `three-major` (as if left out) or `legacy`.

The augmentation embedding is dropped: without augmentation labels it adds nothing. Dropout, of
activations and of labels, is set to 0, so that a student that copies the network has none.
"""

import math
from pathlib import Path
from typing import Any

from pidistill.denoiser import PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.paths import user_path
from pidistill.precondition import build_precondition
from pidistill.teachers.formats.edm_module import (
    NAMES,
    NETWORKS,
    network_of,
    precondition_of,
    weights_of,
)
from pidistill.teachers.formats.edm_pickle import PickledModule, read_pickle
from pidistill.teachers.formats.openai_unet import NETWORK, is_openai_unet, renamed_weights
from pidistill.teachers.formats.safe_pickle import RefusedError
from pidistill.teachers.formats.weights import (
    SUFFIXES,
    json_beside,
    network_with_weights,
    read_json_beside,
    read_weights,
)

UNUSED = {"augment_dim": 0, "dropout": 0.0, "label_dropout": 0.0}


def load(locator: str) -> PreconditionedDenoiser:
    """Load the checkpoint in the file `locator`.

    Raises `PidistillError` when it is missing, damaged, or not a checkpoint of EDM's networks.
    """
    path = user_path(locator)
    if not path.is_file():
        raise PidistillError(f"{locator!r} is not a file; expected edm:FILE")
    return load_state_dict(path) if path.suffix in SUFFIXES else load_pickle(path)


def recognises(path: Path) -> bool:
    """Whether `path` is a pickle of EDM, or weights with a JSON file that describes them."""
    if not path.is_file():
        return False
    if path.suffix in SUFFIXES:
        return {"network", "precondition"} <= read_json_beside(path).keys()
    with path.open("rb") as file:
        head = file.read(65_536)
    return head.startswith(b"\x80") and b"torch_utils.persistence" in head


def load_state_dict(path: Path) -> PreconditionedDenoiser:
    """Load weights that a JSON file beside them describes (see the top of this module)."""
    beside = json_beside(path)
    if beside is None:
        raise PidistillError(
            f"{path} has no JSON file beside it; expected {path.with_suffix('.json').name} or "
            "config.json with the entries 'network' and 'precondition'"
        )
    description = read_json_beside(path)
    match description:
        case {
            "network": {"name": str(name), "config": dict(config)},
            "precondition": {"name": str(precondition), "config": dict(settings)},
        }:
            name, precondition = NETWORKS.get(name, name), NAMES.get(precondition, precondition)
        case _:
            raise PidistillError(
                f"{beside} must hold 'network' and 'precondition', each an object with the "
                "entries 'name' and 'config'"
            )
    if name not in NETWORKS.values():
        raise PidistillError(
            f"{beside} names the network {name!r}; expected one of {', '.join(NETWORKS.values())}"
        )
    weights = read_weights(path)
    arguments: dict[str, Any] = {**config, **UNUSED}
    if is_openai_unet(weights):
        if name != NETWORK or precondition == "edm":
            raise PidistillError(
                f"{path} holds the weights of a guided-diffusion UNetModel, which is not {name!r} "
                f"with the precondition {precondition!r}; expected {NETWORK!r} with "
                "'edm_timestep' (consistency-models) or 'iddpm'"
            )
        order = description.get("qkv_order", "three-major")
        weights = renamed_weights(weights, arguments, order, str(path))
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


def load_pickle(path: Path) -> PreconditionedDenoiser:
    """Load a pickle as EDM publishes them."""
    content = read_pickle(path)
    ema = content.get("ema") if type(content) is dict else None
    if not isinstance(ema, PickledModule) or ema.class_name not in NAMES:
        raise PidistillError(
            f"{path} holds no network of EDM; expected a pickle of a dict whose 'ema' is one of "
            f"{', '.join(NAMES)}"
        )
    try:
        precondition = precondition_of(ema)
        name, config, model = network_of(ema)
        pickled = weights_of(model)
    except RefusedError as error:
        raise PidistillError(f"{path} {error}; it is not a genuine EDM checkpoint") from error
    if 2 * sum(math.prod(weight.shape) for weight in pickled.values()) > path.stat().st_size:
        raise PidistillError(f"{path} claims more weights than it has room for")
    pickled.pop("map_augment.weight", None)
    config |= UNUSED
    resolution = config["img_resolution"]
    return PreconditionedDenoiser(
        network_with_weights(
            name, config, {key: weight.tensor() for key, weight in pickled.items()}, str(path)
        ),
        precondition,
        sample_shape=(config["in_channels"], resolution, resolution),
        num_classes=config["label_dim"],
        source=f"{path.name} ({ema.class_name} of {model.class_name})",
    )
