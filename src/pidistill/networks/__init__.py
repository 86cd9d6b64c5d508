"""Raw networks `F(u, c_noise, label)`: architectures and nothing else.

A network is an `nn.Module` whose constructor takes plain JSON values and keeps them in
`self.config`; its class method `arguments_for(sample_shape, num_classes)` names those that follow
from the samples. It is called with

- `u` (b, ...), the scaled input;
- `c_noise` (b,), the noise conditioning, in the dtype of `u`;
- `label` (b,) int64 or None; -1, or None for all, means "no label";

and returns a tensor of the shape of `u` (or twice its channels where a variance is predicted too).
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.errors import PidistillError

NETWORKS = {
    "mlp": "pidistill.networks.mlp:MLP",
    "song_unet": "pidistill.networks.song_unet:SongUNet",
    "dhariwal_unet": "pidistill.networks.dhariwal_unet:DhariwalUNet",
    "diffusers_unet": "pidistill.networks.diffusers_unet:DiffusersUNet",
    "text_unet": "pidistill.networks.text_unet:TextUNet",
}


BAD_ARGUMENTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
"""What a network makes of arguments of which it can make nothing."""


def build_network(name: str, config: dict[str, Any]) -> nn.Module:
    """Build the network registered as `name` from its constructor arguments.

    Raises `PidistillError` when the name or an argument is not known.
    """
    try:
        network: nn.Module = _network_class(name)(**config)
    except BAD_ARGUMENTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PidistillError(
            f"network {name!r} does not take these arguments: {reason[:300]}"
        ) from error
    return network


def new_network(
    name: str, sample_shape: tuple[int, ...], num_classes: int, config: dict[str, Any]
) -> nn.Module:
    """Build the network registered as `name` for samples of a shape; `config` holds the rest.

    Raises `PidistillError` when the name or an argument is not known, or contradicts the samples.
    """
    follows = _network_class(name).arguments_for(sample_shape, num_classes)
    for key in follows.keys() & config.keys():
        if config[key] != follows[key]:
            raise PidistillError(
                f"network {name!r}: {key} is {config[key]!r}, but from the samples follows "
                f"{follows[key]!r}; leave it out"
            )
    return build_network(name, {**follows, **config})


def require_fit(network: nn.Module, sample_shape: tuple[int, ...], num_classes: int) -> None:
    """Raise `PidistillError` unless `network` evaluates a sample of this shape: zeros are tried."""
    name = network_name(network)
    label = torch.zeros(1, dtype=torch.int64) if num_classes else None
    try:
        with torch.no_grad():
            shape = tuple(network(torch.zeros(1, *sample_shape), torch.zeros(1), label).shape)
    except BAD_ARGUMENTS as error:
        reason = " ".join(str(error).split())
        raise PidistillError(
            f"network {name!r} with these arguments cannot evaluate samples of shape "
            f"{tuple(sample_shape)}: {reason[:300]}"
        ) from error
    if shape[2:] != tuple(sample_shape)[1:] or shape[1] < sample_shape[0]:
        raise PidistillError(
            f"network {name!r} with these arguments makes {shape[1:]} of samples of shape "
            f"{tuple(sample_shape)}; leave out what follows from the samples"
        )


def describe_network(network: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments of `network` as JSON values.

    A network whose class is not registered is described by its class alone.
    """
    path = f"{type(network).__module__}:{type(network).__qualname__}"
    if path not in NETWORKS.values():
        return {"name": None, "class": path, "config": None}
    return {"name": network_name(network), "config": network.config}


def build_described(description: dict[str, Any]) -> nn.Module:
    """Build a network with fresh weights, the inverse of `describe_network`.

    Raises `PidistillError` when its class is not registered, or does not take these arguments.
    """
    if description["name"] is None:
        raise PidistillError(
            f"the network is a {description['class']}, a class that is not registered in "
            "pidistill; build one and pass it as network="
        )
    return build_network(description["name"], description["config"])


def fresh_network(network: nn.Module) -> nn.Module:
    """A network of the architecture of `network` with fresh weights, drawn by torch's generator.

    Buffers, such as a table of encoded prompts, are copied: they are no weights.

    Raises `PidistillError` when the class of `network` is not registered.
    """
    fresh = build_network(network_name(network), network.config)  # type: ignore[arg-type]
    fresh.load_state_dict(dict(network.named_buffers()), strict=False)
    return fresh.to(next(network.parameters()))


def _network_class(name: str) -> Any:
    if name not in NETWORKS:
        raise PidistillError(f"unknown network {name!r}; expected one of {', '.join(NETWORKS)}")
    module_name, class_name = NETWORKS[name].split(":")
    return getattr(importlib.import_module(module_name), class_name)


def network_name(network: nn.Module) -> str:
    """The name under which the class of `network` is registered, the inverse of `build_network`.

    Raises `PidistillError` when it is not registered: such a network cannot be saved.
    """
    path = f"{type(network).__module__}:{type(network).__qualname__}"
    for name, registered in NETWORKS.items():
        if registered == path:
            return name
    raise PidistillError(
        f"network class {path} is not registered in pidistill.networks.NETWORKS, "
        "so a model that uses it cannot be saved"
    )


def one_hot_label(label: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """One-hot labels (b, num_classes) in the dtype of `like` (b, ...); "no label" is zeros."""
    if label is None:
        return like.new_zeros(len(like), num_classes)
    classes = torch.arange(num_classes, device=label.device)
    return (label[:, None] == classes).to(like.dtype)
