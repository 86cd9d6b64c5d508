"""Raw networks `F(u, c_noise, label)`, without preconditioning.

A network is an `nn.Module` that is called with

- `u` (b, ...), the scaled input;
- `c_noise` (b,), the noise conditioning, in the dtype of `u`;
- `label` (b,) int64 or None; -1 means "no label", as does None for the whole batch;

and returns a tensor of the shape of `u` (or with twice its channels if it also predicts a
variance).

The networks in `NETWORKS` are built by name: their constructors take JSON values and keep them in
`self.config`, and their class method `arguments_for(sample_shape, num_classes)` returns the
arguments implied by the samples. Any other module works too, but must be passed as `network` when
its student is loaded.
"""

import copy
import functools
import inspect
from typing import Any

import pydantic
import torch
from torch import nn

from pidistill.errors import PidistillError, one_line
from pidistill.networks.dhariwal_unet import DhariwalUNet
from pidistill.networks.diffusers_transformer import ClassTransformer, PromptTransformer
from pidistill.networks.diffusers_unet import DiffusersUNet, TextUNet
from pidistill.networks.edm2_unet import EDM2UNet
from pidistill.networks.lucidrains_unet import LucidrainsUNet
from pidistill.networks.mlp import MLP
from pidistill.networks.song_unet import SongUNet
from pidistill.settings import STRICT, validate

NETWORKS: dict[str, Any] = {
    "mlp": MLP,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "edm2_unet": EDM2UNet,
    "diffusers_unet": DiffusersUNet,
    "text_unet": TextUNet,
    "class_transformer": ClassTransformer,
    "prompt_transformer": PromptTransformer,
    "lucidrains_unet": LucidrainsUNet,
}
"""Classes by their name in configs and `network.json`."""

BAD_ARGUMENTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
"""What a registered network may raise for invalid arguments."""


def network_class(name: str) -> Any:
    """The class registered as `name`. Raises `PidistillError` if there is none."""
    if name not in NETWORKS:
        raise PidistillError(f"unknown network {name!r}; expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build_network(name: str, config: dict[str, Any]) -> nn.Module:
    """Build the network registered as `name` from its constructor arguments.

    Raises `PidistillError` if the name or an argument is unknown, or an argument has a wrong type.
    """
    validate(_arguments(network_class(name)), config, f"network {name!r}")
    try:
        network: nn.Module = network_class(name)(**config)
    except BAD_ARGUMENTS as error:
        raise PidistillError(
            f"network {name!r} does not accept these arguments: {one_line(error)}"
        ) from error
    return network


@functools.cache
def _arguments(kind: Any) -> type[pydantic.BaseModel]:
    """A strict model of the constructor arguments of a network."""
    fields: dict[str, Any] = {}
    settings: pydantic.ConfigDict = {**STRICT}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            settings["extra"] = "allow"
            continue
        required = parameter.default is parameter.empty
        fields[name] = (parameter.annotation, ... if required else parameter.default)
    return pydantic.create_model(kind.__name__, __config__=settings, **fields)


def new_network(
    name: str, sample_shape: tuple[int, ...], num_classes: int, config: dict[str, Any]
) -> nn.Module:
    """Build the network registered as `name` for samples of this shape.

    Args:
        name: A key of `NETWORKS`.
        sample_shape: Shape of one sample, without the batch axis.
        num_classes: Number of labels; 0 means unconditional.
        config: Constructor arguments that are not implied by the samples.

    Raises:
        PidistillError: The name or an argument is unknown, or an argument contradicts the samples.
    """
    implied = network_class(name).arguments_for(sample_shape, num_classes)
    for key in implied.keys() & config.keys():
        if config[key] != implied[key]:
            raise PidistillError(
                f"network {name!r}: {key} is {config[key]!r}, but the samples imply "
                f"{implied[key]!r}; omit it"
            )
    return build_network(name, {**implied, **config})


def require_shape(network: nn.Module, sample_shape: tuple[int, ...], name: str) -> None:
    """Raise `PidistillError` if the arguments of a registered network are for other samples.

    `name` says where the network comes from.
    """
    config: Any = network.config
    implied = {
        "sample_shape": list(sample_shape),
        "in_channels": sample_shape[0],
        "img_resolution": sample_shape[-1],
    }
    for key in implied.keys() & config.keys():
        if config[key] != implied[key]:
            raise PidistillError(
                f"{name}: the network has {key} {config[key]!r}, but samples of shape "
                f"{sample_shape} imply {implied[key]!r}"
            )


def require_fit(network: nn.Module, sample_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise `PidistillError` unless the registered `network` can evaluate a sample of zeros."""
    label = torch.zeros(1, dtype=torch.int64) if num_classes else None
    subject = f"network {describe_network(network)['name']!r} with these arguments"
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(1, *sample_shape), torch.zeros(1), label).shape)
    except BAD_ARGUMENTS as error:
        raise PidistillError(
            f"{subject} cannot evaluate samples of shape {tuple(sample_shape)}: {one_line(error)}"
        ) from error
    if shape[2:] != tuple(sample_shape)[1:] or shape[1] < sample_shape[0]:
        raise PidistillError(
            f"{subject} turns samples of shape {tuple(sample_shape)} into {shape[1:]}; omit the "
            "arguments implied by the samples"
        )


def fresh_network(network: nn.Module) -> nn.Module:
    """A network with the architecture of `network` and weights from torch's default generator.

    Buffers, such as encoded prompts, are copied.

    Raises `PidistillError` if the class of `network` is not registered and one of its layers with
    weights has no method `reset_parameters`.
    """
    description = describe_network(network)
    if description["name"] is not None:
        fresh = build_described(description)
        fresh.load_state_dict(dict(network.named_buffers()), strict=False)
        return fresh.to(next(network.parameters()))
    fresh = copy.deepcopy(network)
    for module in reversed(list(fresh.modules())):  # children before their parents
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise PidistillError(
                f"network {description['class']} cannot start from fresh weights, because its "
                f"{type(module).__name__} has no method reset_parameters(); add one"
            )
    return fresh


def describe_network(network: nn.Module) -> dict[str, Any]:
    """All that is needed to rebuild `network`, except its weights, as JSON values.

    For an unregistered network, `name` and `config` are None, and `class` is its class, for humans.
    """
    cls = type(network)
    for name, registered in NETWORKS.items():
        if cls is registered:
            return {"name": name, "config": network.config}
    return {"name": None, "class": f"{cls.__module__}:{cls.__qualname__}", "config": None}


def build_described(description: dict[str, Any]) -> nn.Module:
    """Build a network with fresh weights from the result of `describe_network`.

    Raises `PidistillError` if its class is not registered or does not accept these arguments.
    """
    if description["name"] is None:
        raise PidistillError(
            f"the network is of class {description['class']}, which pidistill cannot build; "
            "build one in Python and pass it: load_student(folder, network=...)"
        )
    return build_network(description["name"], description["config"])
