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


def build_network(name: str, config: dict[str, Any]) -> nn.Module:
    """Build the network registered as `name` from its constructor arguments.

    Raises `PidistillError` when the name or an argument is not known.
    """
    try:
        network: nn.Module = _network_class(name)(**config)
    except TypeError as error:
        raise PidistillError(f"network {name!r} does not take these arguments: {error}") from error
    return network


def new_network(
    name: str, sample_shape: tuple[int, ...], num_classes: int, config: dict[str, Any]
) -> nn.Module:
    """Build the network registered as `name` for samples of a shape; `config` holds the rest.

    Raises `PidistillError` when the name or an argument is not known.
    """
    return build_network(
        name, {**_network_class(name).arguments_for(sample_shape, num_classes), **config}
    )


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
