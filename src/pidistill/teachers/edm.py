"""Teachers from checkpoints of EDM and EDM2 (Karras et al. 2022, 2024), without executing them.

`edm:FILE[?OPTION=VALUE&...]`: `guide=FILE` and `guidance=W` add a second checkpoint as a guide,
`vae=DIR` decodes the latents of EDM2 (docs/teachers/edm2.md).

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

import inspect
import math
from pathlib import Path
from typing import Any

from pidistill.denoiser import Denoiser, PreconditionedDenoiser
from pidistill.errors import PidistillError
from pidistill.guidance import AutoguidedDenoiser
from pidistill.networks import NETWORKS
from pidistill.paths import user_path
from pidistill.precondition import build_precondition
from pidistill.teachers.formats import RefusedError, edm2_latent, openai_unet, refusals_of
from pidistill.teachers.formats.edm2_latent import LatentScale
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
from pidistill.teachers.options import Options, parse_options

OPTIONS: Options = {"guide": str, "guidance": float, "vae": str}
UNUSED = {"augment_dim": 0, "dropout": 0.0, "label_dropout": 0.0}


def load(locator: str) -> Denoiser:
    """Load the checkpoint in a file; `locator` is its path, and options after a question mark.

    Raises `PidistillError` if a file is missing, damaged, or not a checkpoint of EDM or EDM2, or
    the options do not fit it.
    """
    name, options = parse_options("edm", locator, OPTIONS)
    if ("guide" in options) != ("guidance" in options):
        raise PidistillError(
            f"'edm:{locator}' needs both a guide and its scale; expected "
            "edm:FILE?guide=OTHER_FILE&guidance=2.0"
        )
    denoiser, numbers = _load_file(name)
    if "vae" in options:
        denoiser.decoder = _decoder(locator, options["vae"], numbers)
    if "guide" not in options:
        return denoiser
    guide, guide_numbers = _load_file(options["guide"])
    if guide_numbers != numbers:
        raise PidistillError(
            f"the guide {guide.source} is for other samples than {denoiser.source}: their encoders "
            "differ"
        )
    return AutoguidedDenoiser(denoiser, guide, options["guidance"])


def load_decoder(locator: str) -> edm2_latent.EDM2Decoder | None:
    """Only the latent decoder of the teacher `locator`; None if it names none.

    Raises `PidistillError` if the checkpoint or the autoencoder cannot be read.
    """
    name, options = parse_options("edm", locator, OPTIONS)
    return _decoder(locator, options["vae"], _load_file(name)[1]) if "vae" in options else None


def _decoder(locator: str, vae: str, numbers: LatentScale | None) -> edm2_latent.EDM2Decoder:
    if numbers is None:
        raise PidistillError(f"'edm:{locator}' names a VAE, but its samples are images; omit vae")
    return edm2_latent.load_decoder(vae, numbers)


def _load_file(name: str) -> tuple[PreconditionedDenoiser, LatentScale | None]:
    """The denoiser in a file, and the scale of its latents if it has latents."""
    path = user_path(name)
    if not path.is_file():
        raise PidistillError(f"{name!r} is not a file; expected edm:FILE")
    if path.suffix in SUFFIXES:
        with refusals_of(path):
            return _load_state_dict(path), None
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


def _load_pickle(path: Path) -> tuple[PreconditionedDenoiser, LatentScale | None]:
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
    config |= _unused(name)
    weights = {key: weight.tensor() for key, weight in pickled.items()}
    size = config["img_resolution"]
    numbers = edm2_latent.latent_scale(content.get("encoder"), config["in_channels"])
    latents = f", latents of {edm2_latent.vae_name(content['encoder'])}" if numbers else ""
    denoiser = PreconditionedDenoiser(
        network_with_weights(name, config, weights, str(path)),
        precondition,
        sample_shape=(config["in_channels"], size, size),
        num_classes=config["label_dim"],
        source=f"{path.name} ({ema.class_name} of {model.class_name}{latents})",
    )
    return denoiser, numbers


def _unused(name: str) -> dict[str, Any]:
    """What is switched off, of the arguments that the network has."""
    known = inspect.signature(NETWORKS[name]).parameters
    return {key: value for key, value in UNUSED.items() if key in known}


def _without_description(path: Path) -> RefusedError:
    if path.name.startswith("training-state"):
        return RefusedError(
            "is the state of a training run of EDM or EDM2; expected the network-snapshot-*.pkl "
            "beside it"
        )
    return RefusedError(
        f"has no JSON file beside it; expected {path.with_suffix('.json').name} or config.json "
        "with the entries 'network' and 'precondition'"
    )


def _load_state_dict(path: Path) -> PreconditionedDenoiser:
    beside, description = json_beside(path)
    if beside is None:
        raise _without_description(path)
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
    arguments: dict[str, Any] = {**config, **_unused(name)}
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
            precondition, settings = "discrete_vp", openai_unet.discrete_vp_settings(settings)
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
