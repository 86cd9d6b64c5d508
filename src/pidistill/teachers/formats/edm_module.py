"""What the pickled modules of EDM say: preconditioning, network arguments and weights.

Every value comes from a file that may be hostile, and is checked for type and size before use.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from pidistill.networks.dhariwal_unet import DhariwalUNet
from pidistill.networks.song_unet import SongUNet
from pidistill.precondition import (
    EDMPrecondition,
    IDDPMPrecondition,
    Precondition,
    VEPrecondition,
    VPPrecondition,
)
from pidistill.teachers.formats.edm_pickle import PickledModule, PickledTensor
from pidistill.teachers.formats.safe_pickle import kind_of, shown

NETWORKS = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}
PRECONDITIONS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16")
ARGUMENTS = {  # constructor arguments of the preconditionings, in order
    "EDMPrecond": (*COMMON, "sigma_min", "sigma_max", "sigma_data", "model_type"),
    "VPPrecond": (*COMMON, "beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": (*COMMON, "sigma_min", "sigma_max", "model_type"),
    "iDDPMPrecond": (*COMMON, "C_1", "C_2", "M", "model_type"),
}
NETWORK_ARGUMENTS = {
    "SongUNet": tuple(inspect.signature(SongUNet).parameters),
    "DhariwalUNet": tuple(inspect.signature(DhariwalUNet).parameters),
}

# Bounds far above any published network.
INTEGERS = {
    "img_resolution": (1, 4096),
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "label_dim": (0, 1_000_000),
    "augment_dim": (0, 1_000_000),
    "model_channels": (1, 8192),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (1, 32),
}
LISTS = {"channel_mult": 8, "attn_resolutions": 64, "resample_filter": 16}
PROBABILITIES = ("dropout", "label_dropout")
MAX_MODULES = 20_000
MAX_WEIGHTS = 50_000
MAX_DEPTH = 16
MAX_NAME = 200


class UnfitError(Exception):
    """What in the file is not as EDM writes it."""


def precondition_of(ema: PickledModule) -> Precondition:
    """The preconditioning that the attributes of `ema` set, or else its arguments, or defaults."""

    def setting(name: str, default: float, low: float, high: float) -> float:
        return _number(name, _setting(ema, name, default), low, high)

    match ema.class_name:
        case "EDMPrecond":
            sigma_min = setting("sigma_min", 0.0, 0.0, 1e6)
            sigma_max = setting("sigma_max", math.inf, 0.0, math.inf)
            return _checked(
                EDMPrecondition(
                    # 0 and infinity are what the files say; EDM's sampler puts these in their place
                    sigma_min=sigma_min if sigma_min > 0 else 0.002,
                    sigma_max=sigma_max if sigma_max < math.inf else 80.0,
                    sigma_data=setting("sigma_data", 0.5, 1e-6, 1e6),
                )
            )
        case "VPPrecond":
            return _checked(
                VPPrecondition(
                    beta_d=setting("beta_d", 19.9, 1e-3, 100.0),
                    beta_min=setting("beta_min", 0.1, 0.0, 100.0),
                    num_times=int(setting("M", 1000, 2, 100_000)),
                    epsilon_t=setting("epsilon_t", 1e-5, 1e-12, 0.5),
                )
            )
        case "VEPrecond":
            return _checked(
                VEPrecondition(
                    sigma_min=setting("sigma_min", 0.02, 1e-9, 1e6),
                    sigma_max=setting("sigma_max", 100.0, 1e-9, 1e6),
                )
            )
        case _:
            return _checked(
                IDDPMPrecondition(
                    c_1=setting("C_1", 0.001, 1e-9, 0.25),
                    c_2=setting("C_2", 0.008, 0.0, 1.0),
                    num_steps=int(setting("M", 1000, 2, 100_000)),
                )
            )


def _checked(precondition: Precondition) -> Precondition:
    low, high = precondition.sigma_min, precondition.sigma_max
    if not 0 < low < high:
        raise UnfitError(f"its noise levels go from {low} to {high}")
    return precondition


def network_of(ema: PickledModule) -> tuple[str, dict[str, Any], PickledModule]:
    """The registered name of the network in `ema`, its constructor arguments, and the network.

    The arguments are those that the network was made with, or else those that `ema` passed on.
    """
    model = _table(ema, "_modules").get("model")
    if not isinstance(model, PickledModule) or model.class_name not in NETWORKS:
        raise UnfitError(f"its model is {_what(model)}; expected one of {', '.join(NETWORKS)}")
    known = NETWORK_ARGUMENTS[model.class_name]
    given = _arguments(model, known)
    if "img_resolution" not in given:
        outer = _arguments(ema, ARGUMENTS[ema.class_name])
        channels = outer.get("img_channels")
        passed_on = {key: value for key, value in outer.items() if key in known}
        given = {"in_channels": channels, "out_channels": channels} | passed_on | given
        if ema.class_name == "iDDPMPrecond" and type(channels) is int:
            given["out_channels"] = 2 * channels
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UnfitError(f"its network has the unknown argument {_what(unknown[0])}")
    config = {name: _network_argument(name, value) for name, value in given.items()}
    missing = [name for name in known[:3] if name not in config]
    if missing:
        raise UnfitError(f"its network has no argument {missing[0]}")
    config.setdefault("label_dim", 0)
    return NETWORKS[model.class_name], config, model


def weights_of(model: PickledModule) -> dict[str, PickledTensor]:
    """The state dict of `model`: parameters and persistent buffers by their full names."""
    found: dict[str, PickledTensor] = {}
    pending = [("", model)]
    num_modules = 0
    while pending:
        prefix, module = pending.pop()
        num_modules += 1
        if num_modules > MAX_MODULES or prefix.count(".") > MAX_DEPTH:
            raise UnfitError("its modules hold one another without end")
        for name, child in _table(module, "_modules").items():
            if isinstance(child, PickledModule):
                pending.append((f"{prefix}{_name(name)}.", child))
            elif child is not None:
                raise UnfitError(f"its module {_name(name)} is {_what(child)}")
        passing = module.state.get("_non_persistent_buffers_set")
        for table in ("_parameters", "_buffers"):
            for name, tensor in _table(module, table).items():
                if isinstance(tensor, PickledTensor):
                    if not (isinstance(passing, set) and name in passing):
                        found[prefix + _name(name)] = tensor
                elif tensor is not None:
                    raise UnfitError(f"its weight {_name(name)} is {_what(tensor)}")
            if len(found) > MAX_WEIGHTS:
                raise UnfitError(f"it has more than {MAX_WEIGHTS} weights")
    return found


def _setting(module: PickledModule, name: str, default: Any) -> Any:
    """An attribute of `module`, or else the argument of that name, or else the default."""
    arguments = _arguments(module, ARGUMENTS[module.class_name])
    return module.state.get(name, arguments.get(name, default))


def _arguments(module: PickledModule, names: Sequence[str]) -> dict[str, Any]:
    """The arguments that `module` was constructed with, by name."""
    positional = module.state.get("_init_args", ())
    if type(positional) is not tuple or len(positional) > len(names):
        raise UnfitError(f"the arguments of {shown(module.class_name)} are {_what(positional)}")
    return dict(zip(names, positional, strict=False)) | _table(module, "_init_kwargs")


def _network_argument(name: str, value: Any) -> Any:
    """The network argument `name`, if it is of its kind and of a sane size."""
    if name in INTEGERS:
        low, high = INTEGERS[name]
        if type(value) is not int or not low <= value <= high:
            raise UnfitError(f"its argument {name} is {_what(value)}; expected {low} .. {high}")
        return value
    if name in LISTS:
        if type(value) not in (list, tuple) or not len(value) <= LISTS[name]:
            raise UnfitError(f"its argument {name} is {_what(value)}; expected a short list")
        kind = float if name == "resample_filter" else int
        return [kind(_number(name, item, 0, 65_536)) for item in value]
    if name in PROBABILITIES:
        return _number(name, value, 0, 1)
    if type(value) is not str:
        raise UnfitError(f"its argument {name} is {_what(value)}; expected a word")
    return shown(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    """`value`, if it is a number from `low` to `high`."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise UnfitError(f"its argument {name} is {_what(value)}; expected {low} .. {high}")
    return float(value)


def _table(module: PickledModule, name: str) -> dict[str, Any]:
    """The attribute `name` of `module`, a dictionary; empty where there is none."""
    table = module.state.get(name, {})
    if type(table) is not dict:
        raise UnfitError(f"the {name} of {shown(module.class_name)} is {_what(table)}")
    return table


def _name(name: str) -> str:
    if len(name) > MAX_NAME or not name.isprintable():
        raise UnfitError("a weight has an unprintable or very long name")
    return name


def _what(value: Any) -> str:
    """A value from the file, as far as it fits an error."""
    if type(value) in (bool, float) or (type(value) is int and abs(value) < 10**18):
        return str(value)
    return repr(shown(value, 40)) if type(value) is str else kind_of(value)
