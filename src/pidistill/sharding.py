"""Converting between whole tensors and the shards that FSDP leaves on each process.

Ordinary tensors pass through unchanged. All processes must call the functions that gather or shard.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of `tensor`, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of `tensor`, gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_of(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor whose local shards are `part`, sharded like `like`."""
    if not isinstance(like, DTensor):
        return part
    sharded: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole(sharded)


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard the whole `tensor` like `like`, on its device."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    sharded: Tensor = distribute_tensor(tensor, like.device_mesh, like.placements)
    return sharded


def whole_tensors(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather each tensor in turn onto the CPU; returns an empty dict unless `keep`."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            gathered[name] = full.cpu()
    return gathered


@torch.no_grad()
def load_whole(module: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole weights into a possibly sharded module; names and shapes must match."""
    for name, tensor in module.state_dict().items():
        local(tensor).copy_(local(divided(weights[name], tensor)))
