"""Preconditioning, network arguments and weights from the pickled modules of EDM and EDM2.

The file may be hostile, so the type and size of every value are checked before use.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any, get_args

from pidistill.networks import NETWORKS
from pidistill.precondition import PRECONDITIONS, Precondition
from pidistill.teachers.formats import RefusedError
from pidistill.teachers.formats.edm_pickle import PickledModule, PickledTensor
from pidistill.teachers.formats.safe_pickle import shown

NETWORK_NAMES = {
    "SongUNet": "song_unet",
    "DhariwalUNet": "dhariwal_unet",
    "UNet": "edm2_unet",
}
EDM2 = "Precond"
"""EDM2's name of its preconditioning, and of the only one that holds its network."""
PRECONDITION_NAMES = {
    EDM2: "edm",
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
SETTINGS = {  # EDM's name: (our name, lowest, highest sane value)
    EDM2: {"sigma_data": ("sigma_data", 1e-6, 1e6)},
    "EDMPrecond": {
        "sigma_min": ("sigma_min", 0.0, 1e6),
        "sigma_max": ("sigma_max", 0.0, math.inf),
        "sigma_data": ("sigma_data", 1e-6, 1e6),
    },
    "VPPrecond": {
        "beta_d": ("beta_d", 1e-3, 100.0),
        "beta_min": ("beta_min", 0.0, 100.0),
        "M": ("num_times", 2, 100_000),
        "epsilon_t": ("epsilon_t", 1e-12, 0.5),
    },
    "VEPrecond": {"sigma_min": ("sigma_min", 1e-9, 1e6), "sigma_max": ("sigma_max", 1e-9, 1e6)},
    "iDDPMPrecond": {
        "C_1": ("c_1", 1e-9, 0.25),
        "C_2": ("c_2", 0.0, 1.0),
        "M": ("num_steps", 2, 100_000),
    },
}

# Far above any published network. The network is built before the size of its weights is known.
LARGEST = {"num_blocks": 32, "model_channels": 8192}
LONGEST = {"channel_mult": 8}
MAX_MODULES = 20_000
MAX_DEPTH = 16


def precondition_of(ema: PickledModule) -> Precondition:
    """The preconditioning, from the attributes of `ema`, else its arguments, else defaults."""
    given = _outer_arguments(ema) | ema.state
    values: dict[str, Any] = {}
    for name, (ours, low, high) in SETTINGS[ema.class_name].items():
        if name in given:
            values[ours] = _number(name, given[name], low, high)
    if ema.class_name == "EDMPrecond":  # it accepts any sigma; EDM samples in our default range
        unlimited = {"sigma_min": 0.0, "sigma_max": math.inf}
        values = {name: v for name, v in values.items() if v != unlimited.get(name)}
    precondition = PRECONDITIONS[PRECONDITION_NAMES[ema.class_name]](**values)
    low, high = precondition.sigma_min, precondition.sigma_max
    if not 0 < low < high:
        raise RefusedError(f"has noise levels from {low} to {high}; expected an increasing range")
    return precondition


def network_of(ema: PickledModule) -> tuple[str, dict[str, Any], PickledModule]:
    """The registered name of the network in `ema`, its constructor arguments, and the network.

    The arguments are the network's own, or else those that `ema` passed on to it.
    """
    is_edm2 = ema.class_name == EDM2
    model = _table(ema, "_modules").get("unet" if is_edm2 else "model")
    expected = [name for name in NETWORK_NAMES if (name == "UNet") == is_edm2]
    if not isinstance(model, PickledModule) or model.class_name not in expected:
        raise RefusedError(f"has {_what(model)} as its model; expected {', '.join(expected)}")
    name = NETWORK_NAMES[model.class_name]
    known = inspect.signature(NETWORKS[name]).parameters
    order = list(known)
    if is_edm2:  # it has one argument for both numbers of channels
        order[1:3] = ["img_channels"]
    given = _arguments(model, order)
    if "img_resolution" not in given:
        outer = _outer_arguments(ema)
        passed_on = {key: outer[key] for key in outer if key in (*known, "img_channels")}
        given = {**passed_on, **given}
    if "img_channels" in given:
        channels: Any = given.pop("img_channels")
        twice = ema.class_name == "iDDPMPrecond" and type(channels) is int
        widths = {"in_channels": channels, "out_channels": 2 * channels if twice else channels}
        given = {**widths, **given}
    for argument in given:
        if argument not in known:
            raise RefusedError(f"has a network with the unknown argument {_what(argument)}")
    for argument in ("img_resolution", "in_channels", "out_channels"):
        if argument not in given:
            raise RefusedError(f"has a network without the argument {argument}")
    config = {key: _argument(known[key], value) for key, value in given.items()}
    return name, {"label_dim": 0, **config}, model


def weights_of(model: PickledModule) -> dict[str, PickledTensor]:
    """The state dict of `model`: parameters and persistent buffers by full name."""
    found: dict[str, PickledTensor] = {}
    pending = [("", model)]
    for prefix, module in pending:  # grows during the loop
        if len(pending) > MAX_MODULES or prefix.count(".") > MAX_DEPTH:
            raise RefusedError("has modules nested too deeply, or too many of them")
        for name, child in _table(module, "_modules").items():
            if isinstance(child, PickledModule):
                pending.append((f"{prefix}{_name(name)}.", child))
            elif child is not None:
                raise RefusedError(f"has {_what(child)} as its module {_name(name)}")
        transient = module.state.get("_non_persistent_buffers_set")
        skipped = transient if isinstance(transient, set) else set()
        for name, tensor in (_table(module, "_parameters") | _table(module, "_buffers")).items():
            if isinstance(tensor, PickledTensor):
                if name not in skipped:
                    found[prefix + _name(name)] = tensor
            elif tensor is not None:
                raise RefusedError(f"has {_what(tensor)} as its weight {_name(name)}")
    return found


def _outer_arguments(ema: PickledModule) -> dict[str, Any]:
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    return _arguments(ema, (*names, *SETTINGS[ema.class_name], "model_type"))


def _arguments(module: PickledModule, names: Iterable[str]) -> dict[str, Any]:
    """The constructor arguments of `module`, by name."""
    names, positional = tuple(names), module.state.get("_init_args", ())
    if type(positional) is not tuple or len(positional) > len(names):
        raise RefusedError(f"has {_what(positional)} as the arguments of a module")
    return dict(zip(names, positional, strict=False)) | _table(module, "_init_kwargs")


def _argument(parameter: inspect.Parameter, value: Any) -> Any:
    """A network argument, checked to have the type of its default and a sane size."""
    name, default = parameter.name, parameter.default
    largest = LARGEST.get(name, 1_000_000)
    if isinstance(default, tuple):
        if type(value) not in (list, tuple) or len(value) > LONGEST.get(name, 64):
            raise RefusedError(f"has {_what(value)} as argument {name}; expected a short list")
        return [_number(name, item, 0, largest) for item in value]
    if isinstance(default, str):
        if type(value) is not str:
            raise RefusedError(f"has {_what(value)} as argument {name}; expected a string")
        return shown(value)
    if value is None and type(None) in get_args(parameter.annotation):
        return None
    return _number(name, value, 0, largest)


def _number(name: str, value: Any, low: float, high: float) -> float | int:
    if type(value) not in (int, float) or not low <= value <= high:
        raise RefusedError(f"has {_what(value)} as {name}; expected {low} .. {high}")
    return value


def _table(module: PickledModule, name: str) -> dict[str, Any]:
    """The dict attribute `name` of `module`; empty if it is missing."""
    table = module.state.get(name, {})
    if type(table) is not dict:
        raise RefusedError(f"has {_what(table)} as {name} of {shown(module.class_name)}")
    return table


def _name(name: str) -> str:
    if len(name) > 200 or not name.isprintable():
        raise RefusedError("has a weight with an unprintable or very long name")
    return name


def _what(value: Any) -> str:
    """A value from the file, shortened for an error message."""
    if type(value) in (bool, float) or (type(value) is int and abs(value) < 10**18):
        return str(value)
    return repr(shown(value, 40)) if type(value) is str else f"a {type(value).__name__}"
